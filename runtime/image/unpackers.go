package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/podwright/podwright/runtime/sys"
)

// unpackers start processes that unpack layers, each of them one. They are processes so that the daemon's answers don't wait
// for them: Go stops all threads of a process to collect garbage, and one that yields to others is stopped late. And what a
// layer of anybody's making does to a parser, or its memory, is not done to the daemon, nor to another layer.
//
// An unpacker sees the end of its input when the daemon ends, however it does, and has the store's lock (disk.unpacking)
// until it is gone.
type unpackers struct {
	command []string
	lock    *os.File
}

// unpacker is one process.
type unpacker struct {
	cmd     *exec.Cmd
	jobs    io.WriteCloser
	results io.Reader
	said    head // on its standard error
}

// unpackerPatience is how long a killed unpacker's standard error is waited for.
const unpackerPatience = 5 * time.Second

func (u *unpackers) start() (*unpacker, error) {
	var p *unpacker
	// What is put on the thread goes to the process, and ends with the thread.
	err := sys.OnThread(func() (err error) {
		sys.Background()
		if err = sys.LimitBounding(unpackerCapabilities...); err == nil {
			p, err = u.launch()
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("start unpacker: %w", err)
	}
	return p, nil
}

func (u *unpackers) launch() (*unpacker, error) {
	p := &unpacker{cmd: exec.Command(u.command[0], u.command[1:]...)}
	p.cmd.Env, p.cmd.Dir, p.cmd.ExtraFiles, p.cmd.Stderr, p.cmd.WaitDelay = []string{}, "/", []*os.File{u.lock}, &p.said, unpackerPatience
	p.cmd.SysProcAttr = unpackerNamespaces()
	var err error
	if p.jobs, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if p.results, err = p.cmd.StdoutPipe(); err != nil {
		return nil, errors.Join(err, p.jobs.Close())
	}
	return p, p.cmd.Start() // closes both if it fails
}

// unpack has one layer unpacked. When it returns nobody writes to the layer's directory any more.
func (u *unpackers) unpack(ctx context.Context, job layerJob) (layerResult, error) {
	var err error
	if job.Filter, err = confinementFilter(); err != nil {
		return layerResult{}, fmt.Errorf("confine unpacker: %w", err)
	}
	p, err := u.start()
	if err != nil {
		return layerResult{}, err
	}
	var result layerResult
	stop := context.AfterFunc(ctx, func() { _ = p.cmd.Process.Kill() })
	if err = writeFrame(p.jobs, job); err == nil {
		err = readFrame(p.results, &result)
	}
	if !stop() {
		_ = p.end() // killed
		return layerResult{}, ctx.Err()
	}
	if err != nil {
		_ = p.cmd.Process.Kill() // it may be alive and talk nonsense
		return layerResult{}, fmt.Errorf("the process that unpacks layers failed: %w (%w)", err, p.end())
	}
	// It has said all that it has to say, and whoever took it over shall have no more time than that.
	_ = p.cmd.Process.Kill()
	_ = p.end()
	return result, result.err()
}

// end lets the process end and waits for it. What it said on its standard error is part of the error.
func (p *unpacker) end() error {
	_ = p.jobs.Close()
	err := p.cmd.Wait()
	if said := strings.TrimSpace(string(p.said)); err != nil && said != "" {
		return fmt.Errorf("%w: %s", err, printable(said))
	}
	return err
}

// head keeps the beginning of what is written: a panic says there what it is.
type head []byte

func (h *head) Write(p []byte) (int, error) {
	*h = append(*h, p[:min(len(p), maxErrorLen-len(*h))]...)
	return len(p), nil
}
