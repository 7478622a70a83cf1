package cgroup

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/podwright/podwright/runtime/sys"
)

func readTrimmed(path string) (string, error) {
	text, err := sys.ReadKernelFile(path, smallFile)
	return strings.TrimSpace(text), err
}

func readWords(path string) ([]string, error) {
	text, err := sys.ReadKernelFile(path, smallFile)
	return strings.Fields(text), err
}

func readUint(path string) (uint64, error) {
	text, err := readTrimmed(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}

// readFlatKeyed reads a file of "key value" lines; others are passed over.
func readFlatKeyed(path string) (map[string]uint64, error) {
	text, err := sys.ReadKernelFile(path, smallFile)
	if err != nil {
		return nil, err
	}
	return parseFlatKeyed(text), nil
}

func parseFlatKeyed(text string) map[string]uint64 {
	out := map[string]uint64{}
	for line := range strings.Lines(text) {
		key, number, ok := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseUint(number, 10, 64); ok && err == nil {
			out[key] = n
		}
	}
	return out
}
