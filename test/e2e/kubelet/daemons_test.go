package kubelet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/test/e2e/registry"
)

// Where a node has these.
const (
	kubeletConfig  = "/etc/kubernetes/kubelet.yaml"
	dropIns        = "/etc/kubernetes/kubelet.conf.d"
	staticPods     = "/etc/kubernetes/manifests"
	criSocket      = "/run/podwright/podwright.sock"
	metricsAddress = "127.0.0.1:9417"
)

// daemon is a program that serves the node and may be killed and started again.
type daemon struct {
	name  string
	args  []string
	ready func() error

	cmd   *exec.Cmd
	ended chan error
}

func podwright() *daemon {
	return &daemon{name: "podwright", args: []string{filepath.Join(binDir(), "podwright"), "serve"}, ready: func() error {
		conn, err := net.Dial("unix", criSocket)
		if err == nil {
			err = conn.Close()
		}
		return err
	}}
}

func newKubelet() *daemon {
	return &daemon{name: "kubelet", args: []string{os.Getenv(programVariable), "--config=" + kubeletConfig, "--config-dir=" + dropIns,
		"--node-ip=" + nodeIP, "--v=2"}, ready: func() error {
		_, err := get("/healthz")
		return err
	}}
}

func (d *daemon) log() string { return filepath.Join(os.Getenv(workVariable), d.name+".log") }

// start starts it and waits until it answers.
func (d *daemon) start() error {
	log, err := os.OpenFile(d.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	d.cmd, d.ended = exec.Command(d.args[0], d.args[1:]...), make(chan error, 1)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.cmd.Start(); err != nil {
		return err
	}
	// Owner: the daemon; ends with it; end reads the answer.
	go func(cmd *exec.Cmd, ended chan<- error) { ended <- cmd.Wait() }(d.cmd, d.ended)
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		err := d.ready()
		if err == nil {
			return nil
		}
		select {
		case end := <-d.ended:
			return fmt.Errorf("%s ended: %v\n%s", d.name, end, d.logTail())
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not answer: %w\n%s", d.name, err, d.logTail())
		}
	}
}

// end ends it with a signal and waits.
func (d *daemon) end(signal os.Signal) error {
	if err := d.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case err := <-d.ended:
		if signal == unix.SIGKILL {
			return nil
		}
		return err
	case <-time.After(time.Minute):
		return fmt.Errorf("%s still runs a minute after %v", d.name, signal)
	}
}

func (d *daemon) logTail() string {
	raw, _ := os.ReadFile(d.log())
	return fmt.Sprintf("the end of the log of %s:\n%s", d.name, raw[max(0, len(raw)-8000):])
}

// serveImages serves the one image of all pods: busybox, the probe, and stay, which does nothing until it is told to end.
func serveImages() error {
	program, err := os.ReadFile(filepath.Join(os.Getenv(workVariable), "probe"))
	if err != nil {
		return err
	}
	base, err := registry.Busybox(runtime.GOARCH, "/bin/busybox", v1.Config{})
	if err != nil {
		return fmt.Errorf("busybox-static is missing: %w", err)
	}
	layers, err := base.Layers()
	if err != nil {
		return err
	}
	top, err := registry.Layer(registry.Gzip, registry.Dir("bin", 0o755), registry.Regular("bin/probe", 0o755, string(program)),
		registry.Regular("bin/stay", 0o755, "#!/bin/sh\ntrap 'exit 0' TERM\nsleep 1000000 & wait\n"))
	if err != nil {
		return err
	}
	image, err := registry.Image(runtime.GOARCH, v1.Config{}, append(layers, top)...)
	if err != nil {
		return err
	}
	server := registry.New(registry.Config{})
	if _, err := server.Push("lab/busybox:1", image); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:5000")
	if err != nil {
		return err
	}
	// Owner: the process; ends with it.
	go server.Serve(context.Background(), listener)
	return nil
}
