package apparmor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	parserName = "apparmor_parser"
	// parserDeadline is for a machine under load: a second is what the parser takes on a slow one.
	parserDeadline = 30 * time.Second
	parserGrace    = 2 * time.Second // for its output, once it has ended or was killed
	maxSaidBytes   = 1 << 10         // of its words in an error
)

// ErrNoParser reports that profiles cannot be loaded here.
var ErrNoParser = errors.New(parserName + " is not installed (Debian's package apparmor has it)")

// Parser finds the program that compiles and loads profiles: in PATH, and where distributions put it.
func Parser() (string, error) {
	if path, err := exec.LookPath(parserName); err == nil && filepath.IsAbs(path) {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if path := filepath.Join(dir, parserName); unix.Access(path, unix.X_OK) == nil {
			return path, nil
		}
	}
	return "", ErrNoParser
}

// runParser gives text to the parser, with nothing kept in its cache.
func runParser(ctx context.Context, path, text string, args ...string) error {
	running, cancel := context.WithTimeout(ctx, parserDeadline)
	defer cancel()
	cmd := exec.CommandContext(running, path, append([]string{"--skip-cache"}, args...)...)
	var said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(text), &said, &said
	cmd.Env, cmd.Dir = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}, "/"
	cmd.WaitDelay = parserGrace
	err := cmd.Run()
	if running.Err() != nil {
		err = fmt.Errorf("killed: %w", running.Err())
	}
	if err == nil {
		return nil
	}
	words := strings.TrimSpace(said.String())
	if len(words) > maxSaidBytes {
		words = words[:maxSaidBytes] + "..."
	}
	if words != "" {
		return fmt.Errorf("%s: %w: %q", path, err, words)
	}
	return fmt.Errorf("%s: %w", path, err)
}
