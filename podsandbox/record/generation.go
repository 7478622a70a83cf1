package record

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const generationSuffix = ".json"

func generationName(file string, generation uint64) string {
	return file + "." + strconv.FormatUint(generation, 10) + generationSuffix
}

// parseGeneration reads back what generationName made.
func parseGeneration(name string) (file string, generation uint64, ok bool) {
	file, rest, _ := strings.Cut(name, ".")
	digits, isOurs := strings.CutSuffix(rest, generationSuffix)
	generation, err := strconv.ParseUint(digits, 10, 64)
	return file, generation, isOurs && err == nil && name == generationName(file, generation)
}

// listGenerations gives the generations of each file in an object's directory, newest first. An unreadable directory
// has none; whoever reads a file of it learns why.
func listGenerations(root *os.Root, dir string) map[string][]uint64 {
	entries, err := fs.ReadDir(root.FS(), dir)
	if err != nil {
		return nil
	}
	found := map[string][]uint64{}
	for _, entry := range entries {
		if file, generation, ok := parseGeneration(entry.Name()); ok {
			found[file] = append(found[file], generation)
		}
	}
	for _, list := range found {
		slices.Sort(list)
		slices.Reverse(list)
	}
	return found
}

// newestWhole hands the newest generation that take accepts; a crash may have cut the newest of all short. The error is
// the newest one's, and fs.ErrNotExist where there is none.
func newestWhole(root *os.Root, dir, file string, take func([]byte) error) error {
	first := fmt.Errorf("%s: %w", filepath.Join(dir, file), fs.ErrNotExist)
	for i, generation := range listGenerations(root, dir)[file] {
		b, err := readBounded(root, filepath.Join(dir, generationName(file, generation)))
		if err == nil {
			err = take(b)
		}
		if err == nil {
			return nil
		}
		if i == 0 {
			first = err
		}
	}
	return first
}

// newestGeneration is the highest number in use anywhere: the next one is above it whatever the clock does.
func newestGeneration(root *os.Root) (uint64, error) {
	var newest uint64
	for _, kind := range []string{sandboxDir, containerDir} {
		objects, err := fs.ReadDir(root.FS(), kind)
		if err != nil {
			return 0, err
		}
		for _, object := range objects {
			for _, list := range listGenerations(root, filepath.Join(kind, object.Name())) {
				newest = max(newest, list[0])
			}
		}
	}
	return newest, nil
}

// dropOlder removes the generations that a synced one made superfluous.
func dropOlder(root *os.Root, dir, file string, synced uint64) error {
	var errs error
	for _, generation := range listGenerations(root, dir)[file] {
		if generation < synced {
			errs = errors.Join(errs, ignoreAbsent(root.Remove(filepath.Join(dir, generationName(file, generation)))))
		}
	}
	return errs
}
