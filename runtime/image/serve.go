package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

const (
	// An unpacker that needs more memory than the second is refused it, and ends; from the first on it collects garbage
	// whatever that costs.
	unpackerBytes, maxUnpackerBytes = 1 << 30, 2 << 30
)

// ServeLayers is what an unpacker does (Config.Unpacker): it takes jobs from in and answers them on out, until in ends. Then
// the daemon is done with it, or is gone, and the process exits within whatever it does: nothing may be written to a store
// that another daemon opens.
func ServeLayers(in io.Reader, out io.Writer) error {
	if err := restrain(); err != nil {
		return fmt.Errorf("unpack layers: %w", err)
	}
	jobs := make(chan layerJob)
	// Owner: the process, which ends with it.
	go func() {
		for {
			var job layerJob
			switch err := readFrame(in, &job); {
			case errors.Is(err, io.EOF):
				os.Exit(0)
			case err != nil:
				fmt.Fprintln(os.Stderr, "unpack layers:", err)
				os.Exit(1)
			}
			jobs <- job
		}
	}()
	for job := range jobs {
		result, err := unpackLayer(job)
		if err != nil {
			result = failedLayer(err)
		}
		if err := writeFrame(out, result); err != nil {
			return fmt.Errorf("unpack layers: answer: %w", err)
		}
	}
	return nil
}

// restrain bounds the process's memory: what it reads comes from anybody. What else it is kept to it was born with (confine).
func restrain() error {
	debug.SetMemoryLimit(unpackerBytes)
	// Not RLIMIT_AS: Go reserves much more than it uses.
	limit := unix.Rlimit{Cur: maxUnpackerBytes, Max: maxUnpackerBytes}
	if err := unix.Setrlimit(unix.RLIMIT_DATA, &limit); err != nil {
		return os.NewSyscallError("setrlimit", err)
	}
	return nil
}

// unpackLayer unpacks one layer into the directory of its snapshot.
func unpackLayer(job layerJob) (layerResult, error) {
	var none layerResult
	blob, err := os.Open(job.Blob)
	if err != nil {
		return none, err
	}
	defer blob.Close()
	stream, err := decompress(blob)
	if err != nil {
		return none, err
	}
	ahead := newReadAhead(stream)
	defer ahead.Close()
	sum := digest.Canonical.Digester()
	tee := &countingTee{next: ahead, sum: sum.Hash()}
	dirs := newDirTracker()
	opts := []archive.ApplyOpt{archive.WithFilter(dirs.see)}
	if job.Stacked {
		// The lowest layer has nothing to hide, and a whiteout left there
		// shows up in listings of directories that no other layer has.
		opts = append(opts, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout))
	}
	if _, err := archive.Apply(context.Background(), job.Dir, tee, opts...); err != nil {
		return none, err
	}
	if err := tee.drain(); err != nil {
		return none, err
	}
	result := layerResult{Digest: sum.Digest(), Size: tee.count}
	if job.Stacked {
		result.Implied = dirs.implied()
	}
	return result, nil
}
