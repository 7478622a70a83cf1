package podsandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/podsandbox/spec"
	"github.com/podwright/podwright/runtime/cgroup"
	"github.com/podwright/podwright/runtime/keeper"
	"github.com/podwright/podwright/runtime/launch"
	"github.com/podwright/podwright/runtime/mounts"
	"github.com/podwright/podwright/runtime/namespace"
	"github.com/podwright/podwright/runtime/wire"
)

// launchRequest is one process to start: everything the keeper cannot open by itself is opened here.
type launchRequest struct {
	op         *Operation
	id         string
	container  string // the owner of an exec
	kind       wire.Kind
	launchable *spec.Launchable
	cgroup     string // made already, but for the reaper's
	streams    *streams
	stdinOnce  bool
	root       *mounts.OverlaySource // the root of a container
	sandbox    *sandbox              // of a container
	joined     joined
}

// joined is a process whose PID namespace is joined by way of its pid; PID 0 without one.
type joined struct {
	wire.Process
	name string // for errors
}

// gone says whether it ended, or is about to: then nothing starts in its namespace any more (ENOMEM) or is killed at once, which
// explains nothing. It is an error because of cause, or the cause itself, which may be nil.
func (j joined) gone(cause error) error {
	if j.PID == 0 {
		return cause
	}
	now, err := readMember(j.PID)
	switch {
	case err == nil && now.start == j.StartTime && now.state != 'Z' && !now.exiting:
		return cause
	case cause == nil:
		return kindf(ErrPrecondition, "%s is gone", j.name)
	}
	return kindf(ErrPrecondition, "%s is gone: %w", j.name, cause)
}

// launch opens what the plan needs, in the plan's order, and hands it to the keeper in one request. It returns
// when the workload's own program runs, or with the step that failed. The console of an exec is the caller's.
func (m *core) launch(ctx context.Context, req launchRequest) (keeper.Process, error) {
	client := m.keeper.Load()
	if client == nil {
		return keeper.Process{}, m.Ready()
	}
	opened := &openedNeeds{}
	defer opened.close()
	if req.kind == wire.KindReaper {
		if err := m.cfg.Cgroups.Create(ctx, req.cgroup, nil); err != nil {
			return keeper.Process{}, fmt.Errorf("make cgroup %s: %w", req.cgroup, err)
		}
	}
	group, err := m.cfg.Cgroups.Open(req.cgroup)
	if err != nil {
		return keeper.Process{}, fmt.Errorf("open cgroup %s: %w", req.cgroup, err)
	}
	defer group.Close()
	req.op.at("open mounts")
	// What was opened by a pid may be the namespace of whoever has the pid now, the host's even.
	if err := req.joined.gone(m.openNeeds(ctx, req, group.Tasks, opened)); err != nil {
		return keeper.Process{}, err
	}
	request := keeper.Launch{
		ID: req.id, Container: req.container, Kind: req.kind, Plan: req.launchable.Plan, JoinIndex: req.launchable.JoinIndex,
		NewPID: req.launchable.NewPID, Terminal: req.launchable.Terminal, StdinOnce: req.stdinOnce, User: req.launchable.User, Cgroup: group.Dir, Table: opened.files,
	}
	if s := req.streams; s != nil {
		request.Stdin, request.Stdout, request.Stderr = s.stdin, s.stdout, s.stderr
		request.StdinWrite, request.StdoutRead, request.StderrRead, request.Log = s.stdinWrite, s.stdoutRead, s.stderrRead, s.log
	}
	req.op.at("start process")
	req.op.on(Wait{For: WaitStart, group: req.cgroup})
	process, err := client.Launch(ctx, request)
	if err != nil && req.kind == wire.KindExec && takesNoProcess(err) {
		process, err = launchBelow(ctx, m, client, req, request, err)
	}
	if err != nil {
		return keeper.Process{}, req.joined.gone(launchError(err))
	}
	return process, nil
}

// takesNoProcess: the container's group has given its controllers to groups below, which only a container with a
// writable cgroup view can do.
func takesNoProcess(err error) bool {
	var step *launch.StepError
	return errors.As(err, &step) && errors.Is(step.Errno, unix.EBUSY) && (step.Step == "clone" || step.Step == "spawn")
}

// launchBelow starts an exec beside the container's first process instead, wherever below its group that has moved.
func launchBelow(ctx context.Context, m *core, client *keeper.Client, req launchRequest, request keeper.Launch, cause error) (keeper.Process, error) {
	c, ok := m.containers.get(req.container)
	if !ok {
		return keeper.Process{}, cause
	}
	group, err := cgroup.OpenOf(m.cfg.Cgroups, req.cgroup, c.record().PID)
	if err != nil {
		return keeper.Process{}, fmt.Errorf("%w (the container gave its controllers to groups below its own; %w)", cause, err)
	}
	defer group.Close()
	request.Cgroup = group.Dir
	return client.Launch(ctx, request)
}

// identity is what a record keeps of a process.
func identity(p keeper.Process) wire.Process {
	return wire.Process{PID: p.PID, StartTime: p.StartTime}
}

// launchError gives a failed step its kind: a program or directory that isn't there is the request's fault.
func launchError(err error) error {
	var step *launch.StepError
	if errors.As(err, &step) && (errors.Is(step.Errno, unix.ENOENT) || errors.Is(step.Errno, unix.ENOTDIR) || errors.Is(step.Errno, unix.EACCES)) &&
		(step.Step == "exec" || step.Step == "chdir") {
		return kindf(ErrInvalid, "%w", err)
	}
	if step != nil && strings.HasPrefix(step.Step, spec.AppArmorStep) && errors.Is(step.Errno, unix.ENOENT) {
		return kindf(ErrPrecondition, "AppArmor profile %q is not loaded any more: %w", step.Step[len(spec.AppArmorStep):], err)
	}
	return err
}

// openedNeeds collects the files of a plan's table.
type openedNeeds struct{ files []*os.File }

func (o *openedNeeds) close() {
	for _, f := range o.files {
		if f != nil {
			f.Close()
		}
	}
}

func (m *core) openNeeds(ctx context.Context, req launchRequest, tasks []*os.File, opened *openedNeeds) error {
	nextTask := 0
	for i, need := range req.launchable.Needs {
		var f *os.File
		var err error
		switch need.Kind {
		case spec.NeedCgroupTasks:
			if nextTask == len(tasks) {
				return fmt.Errorf("open the tasks file of hierarchy %s: the group has %d", need.Name, len(tasks))
			}
			if f, err = dup(tasks[nextTask]); err == nil {
				nextTask++
			}
		case spec.NeedNamespace:
			f, err = os.Open(need.Path)
		case spec.NeedRoot:
			f, err = m.cfg.Mounts.Overlay(ctx, *req.root)
		case spec.NeedBind:
			req.op.on(Wait{For: WaitMount, Name: need.Bind.Source})
			f, err = m.openBind(ctx, req, i, need.Bind)
		case spec.NeedImage:
			f, err = openImageNeed(ctx, m, req, i, need.Image)
		case spec.NeedContainer: // the keeper has it
		default:
			err = fmt.Errorf("a plan needs kind %d, which nobody opens", need.Kind)
		}
		if err != nil {
			return err
		}
		opened.files = append(opened.files, f)
	}
	return nil
}

func (m *core) openBind(ctx context.Context, req launchRequest, index int, bind spec.Bind) (*os.File, error) {
	source := bindSource(bind)
	userNS, err := mappingOf(ctx, m.cfg.Namespaces, req.sandbox, namespace.UserMap{UIDs: ociMaps(bind.UIDs), GIDs: ociMaps(bind.GIDs)})
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", bind.Target, err)
	}
	if userNS != nil {
		defer userNS.Close()
		source.UserNS = userNS
	}
	tree, err := m.cfg.Mounts.OpenBind(ctx, source)
	if errors.Is(err, os.ErrNotExist) {
		return nil, kindf(ErrInvalid, "mount %s: host_path %q: %w", bind.Target, bind.Source, err)
	}
	if errors.Is(err, mounts.ErrNotSupported) && userNS != nil {
		return nil, kindf(ErrInvalid, "mount %s: host_path %q: %w", bind.Target, bind.Source, err)
	}
	if errors.Is(err, mounts.ErrNotShared) {
		return nil, kindf(ErrPrecondition, "mount %s: host_path %q: %w", bind.Target, bind.Source, err)
	}
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", bind.Target, err)
	}
	req.launchable.SetDirectory(index, tree.IsDir)
	return tree.File, nil
}

func openImageNeed(ctx context.Context, m *core, req launchRequest, index int, image spec.ImageMount) (*os.File, error) {
	tree, err := openImage(ctx, m, req.sandbox, req.id, image, req.root.MountLabel)
	if err != nil {
		return nil, fmt.Errorf("mount image %s on %s: %w", image.ID, image.Target, err)
	}
	req.launchable.SetDirectory(index, tree.IsDir)
	return tree.File, nil
}

// bindSource is a plan's bind in the words of the package that opens it.
func bindSource(bind spec.Bind) mounts.BindSource {
	return mounts.BindSource{
		Path: bind.Source, Recursive: bind.Recursive, ReadOnly: bind.ReadOnly, RecursiveReadOnly: bind.RecursiveReadOnly,
		Propagation: mounts.Propagation(bind.Propagation), NoExec: bind.NoExec, NoDev: bind.NoDev, NoSuid: bind.NoSuid,
		MapBelow: bind.MapBelow,
	}
}

// hostSource is the cheapest bind of a host path, to see that it can be had.
func hostSource(path string) mounts.BindSource { return mounts.BindSource{Path: path} }

func dup(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("duplicate %s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
