package cgroup

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/initproc"
)

// holder is the process that keeps a scope, see there.
type holder struct {
	process *os.Process
	word    *os.File // the other end of its standard input
}

// startHolder starts podwright-init as one. It ends when the holder is closed without stay, or this process dies before.
func startHolder(program string) (*holder, error) {
	plan, err := holdFile()
	if err != nil {
		return nil, err
	}
	defer plan.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	input, word, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	defer input.Close()
	process, err := os.StartProcess(program, []string{"podwright-hold"}, &os.ProcAttr{
		Dir: "/", Env: []string{}, Files: []*os.File{input, null, null, plan}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		word.Close()
		return nil, err
	}
	return &holder{process: process, word: word}, nil
}

// stay lets the holder live on without this process.
func (h *holder) stay() error {
	_, err := h.word.Write([]byte{1})
	if err = errors.Join(err, h.word.Close()); err != nil {
		return fmt.Errorf("let the first process stay: %w", err)
	}
	return nil
}

// end ends a holder that is not needed.
func (h *holder) end() {
	h.word.Close()
	_ = h.process.Kill() // by its pidfd: it is a child that nobody has waited for
	_, _ = h.process.Wait()
}

func holdFile() (*os.File, error) {
	fd, err := unix.MemfdCreate("podwright-hold", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before 6.3
		fd, err = unix.MemfdCreate("podwright-hold", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "podwright-hold")
	if _, err := f.Write(initproc.HoldFile()); err != nil {
		f.Close()
		return nil, fmt.Errorf("write plan: %w", err)
	}
	return f, nil
}
