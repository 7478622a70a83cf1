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

// ServeLayers is what an unpacker does (Config.Unpacker): it takes a job from in, answers it on out, and waits for the end of
// in. Then the daemon is done with it, or is gone, and the process exits within whatever it does: nothing may be written to
// a store that another daemon opens.
func ServeLayers(in io.Reader, out io.Writer) error {
	job, blob, err := receive(in)
	if err != nil {
		return fmt.Errorf("unpack layers: %w", err)
	}
	defer blob.Close()
	result, err := unpackLayer(blob, job.Stacked)
	if err != nil {
		result = failedLayer(err)
	}
	if err := writeFrame(out, result); err != nil {
		return fmt.Errorf("unpack layers: answer: %w", err)
	}
	select {} // until in ends
}

// receive takes the job, opens its layer, and gives up what unpacking doesn't need: the layer's directory is the root.
func receive(in io.Reader) (layerJob, *os.File, error) {
	var job layerJob
	if os.Getpid() != 1 { // it would be the node's mounts that change
		return job, nil, errors.New("started by podwright's daemon only, in namespaces of its own")
	}
	if err := restrain(); err != nil {
		return job, nil, err
	}
	switch err := readFrame(in, &job); {
	case errors.Is(err, io.EOF):
		os.Exit(0)
	case err != nil:
		return job, nil, err
	}
	// Owner: the process, which ends with it.
	go func() {
		_, _ = in.Read(make([]byte, 1))
		os.Exit(0)
	}()
	blob, err := os.Open(job.Blob)
	if err != nil {
		return job, nil, err
	}
	if err = enterLayer(job.Dir); err == nil {
		err = refuse(job.Filter)
	}
	if err != nil {
		blob.Close()
		return job, nil, fmt.Errorf("confine: %w", err)
	}
	return job, blob, nil
}

// restrain bounds the process's memory: what it reads comes from anybody.
func restrain() error {
	debug.SetMemoryLimit(unpackerBytes)
	// Not RLIMIT_AS: Go reserves much more than it uses.
	limit := unix.Rlimit{Cur: maxUnpackerBytes, Max: maxUnpackerBytes}
	if err := unix.Setrlimit(unix.RLIMIT_DATA, &limit); err != nil {
		return os.NewSyscallError("setrlimit", err)
	}
	return nil
}

// unpackLayer unpacks one layer into the root directory.
func unpackLayer(blob io.Reader, stacked bool) (layerResult, error) {
	var none layerResult
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
	if stacked {
		// The lowest layer has nothing to hide, and a whiteout left there
		// shows up in listings of directories that no other layer has.
		opts = append(opts, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout))
	}
	if _, err := archive.Apply(context.Background(), "/", tee, opts...); err != nil {
		return none, err
	}
	if err := tee.drain(); err != nil {
		return none, err
	}
	result := layerResult{Digest: sum.Digest(), Size: tee.count}
	if stacked {
		result.Implied = dirs.implied()
	}
	return result, nil
}
