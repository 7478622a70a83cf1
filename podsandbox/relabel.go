package podsandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/podsandbox/spec"
	"github.com/podwright/podwright/runtime/mounts"
	"github.com/podwright/podwright/runtime/selinux"
)

// unattended is how long a volume goes on being labelled that no create waits for: long enough for the kubelet to ask
// again, and short enough that what is of no use to anybody ends and lets go of the volume.
const unattended = 5 * time.Minute

// sandboxLook is how often who waits for a label looks whether its sandbox is still there.
const sandboxLook = time.Second

// relabels are the volumes being labelled, one job for each.
//
// A job outlives the create that asked for it: a volume may have millions of files, and a create a few minutes. The next
// create joins the job, or finds it done and everything right. No lock is held meanwhile. A job that dies with the daemon
// leaves nothing but files that are right already.
type relabels struct {
	ops     *operations
	leaving <-chan struct{} // ends them all

	mu      sync.Mutex // mu guards running.
	running map[volumeID]*relabelJob
}

func newRelabels(ops *operations, leaving <-chan struct{}) *relabels {
	return &relabels{ops: ops, leaving: leaving, running: map[volumeID]*relabelJob{}}
}

// volumeID is the top of a volume, by whatever path.
type volumeID struct{ dev, ino uint64 }

// labeller is what does a job: a selinux.Relabel.
type labeller interface {
	Run(ctx context.Context) error
	Progress() selinux.Progress
}

// relabelJob is one walk over one volume.
type relabelJob struct {
	path, label string // the path as the first create called it
	walk        labeller
	done        chan struct{}
	err         error // final once done is closed
	cancel      context.CancelCauseFunc

	// relabels.mu guards what follows.
	waiting int         // creates
	idle    *time.Timer // since nobody waits
	given   bool        // it was cancelled: who comes now waits for its end and starts another
	over    bool        // it has ended
}

// volume is one that is to have a label.
type volume struct {
	path, label string
	id          volumeID
	top         *os.File
}

// errUnattended is why a job ended that nobody waited for.
var errUnattended = fmt.Errorf("nobody waited for it for %s", unattended)

// errSuperseded is why a job ended that nobody waited for any more when somebody wanted another label.
var errSuperseded = errors.New("the volume is to have another label")

// errLeaving is why a job ended with the daemon.
var errLeaving = errors.New("podwright is being stopped; what has its label by now keeps it")

// relabelVolumes gives each volume that asks for it the container's mount label, and notes what of it could not be done. It
// waits no longer than ctx and the sandbox last.
func relabelVolumes(ctx context.Context, m *core, op *Operation, s *sandbox, c *container, ociSpec *specs.Spec) error {
	label := ociSpec.Linux.MountLabel
	if label == "" {
		return nil
	}
	for i, mount := range c.config.GetMounts() {
		if !mount.GetSelinuxRelabel() || mount.GetImage() != nil { // an image's mount gives its files their label itself
			continue
		}
		op.at("label volumes")
		field := fmt.Sprintf("mounts[%d].selinux_relabel", i)
		progress, err := relabelVolume(ctx, m, op, s, hostMount{path: mount.GetHostPath()}, label)
		if err == nil {
			err = relabelBelow(ctx, m, op, s, mount.GetHostPath(), label, func(left string) { spec.AddNotes(ociSpec, field+" left out "+left) })
		}
		switch {
		case errors.Is(err, selinux.ErrNoLabels):
			spec.AddNotes(ociSpec, field+" has no effect: the file system of "+mount.GetHostPath()+" keeps no labels, all its files have that of its mount")
		case err != nil:
			return fmt.Errorf("config.%s of %q: %w", field, mount.GetHostPath(), err)
		case progress.Linked > 0:
			spec.AddNotes(ociSpec, fmt.Sprintf("%s left out %d files of %s that have names outside of it (hard links)", field, progress.Linked, mount.GetHostPath()))
		}
	}
	return nil
}

// hostMount is the top of a volume, or of a file system that is mounted in one and has this number.
type hostMount struct {
	path string
	dev  uint64
}

// errElsewhere: another file system is mounted at a path by now.
var errElsewhere = errors.New("another file system is there by now")

// relabelBelow sees to the tmpfs that are mounted in a volume and nowhere else, which the container has with it. Other
// mounts in it keep their labels. What the policy keeps podwright from labelling is left out, as if it were such a mount.
func relabelBelow(ctx context.Context, m *core, op *Operation, s *sandbox, path, label string, left func(what string)) error {
	var below []mounts.TmpfsMount
	err := m.cfg.Mounts.Look(ctx, path, func() error {
		real, err := filepath.EvalSymlinks(path)
		if err == nil {
			below, err = mounts.TmpfsBelow(real)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("look for mounts below: %w", err)
	}
	for _, t := range below {
		_, err := relabelVolume(ctx, m, op, s, hostMount{t.Path, t.Dev}, label)
		switch {
		case err == nil, errors.Is(err, selinux.ErrNoLabels):
		case ctx.Err() != nil, errors.Is(err, ErrTimeout), errors.Is(err, ErrUnavailable):
			return fmt.Errorf("tmpfs %s: %w", t.Path, err)
		default:
			left(fmt.Sprintf("the tmpfs on %s: %v", t.Path, err))
		}
	}
	return nil
}

func relabelVolume(ctx context.Context, m *core, op *Operation, s *sandbox, at hostMount, label string) (selinux.Progress, error) {
	op.on(Wait{For: WaitMount, Name: at.path})
	tree, err := m.cfg.Mounts.OpenBind(ctx, hostSource(at.path))
	if err != nil {
		return selinux.Progress{}, err
	}
	v := volume{path: at.path, label: label, top: tree.File}
	err = m.cfg.Mounts.Look(ctx, at.path, func() error {
		var st unix.Stat_t
		if err := unix.Fstat(int(v.top.Fd()), &st); err != nil {
			return err
		}
		v.id = volumeID{st.Dev, st.Ino}
		if at.dev != 0 && at.dev != st.Dev {
			return errElsewhere
		}
		return selinux.Relabelable(at.path, v.top, m.cfg.StateDir, m.cfg.RunDir)
	})
	if err != nil {
		tree.File.Close()
		return selinux.Progress{}, relabelError(err)
	}
	stopped := func() error {
		if s.record().Phase != record.SandboxReady {
			return kindf(ErrPrecondition, "sandbox %s was stopped meanwhile", s.id)
		}
		return nil
	}
	progress, err := m.relabels.do(ctx, op, v, selinux.NewRelabel(v.top, label), stopped)
	return progress, relabelError(err)
}

// relabelError gives what a walk says its kind.
func relabelError(err error) error {
	switch {
	case errors.Is(err, selinux.ErrProtected), errors.Is(err, unix.EINVAL):
		return kindf(ErrInvalid, "%w", err)
	case errors.Is(err, selinux.ErrReadOnly), errors.Is(err, selinux.ErrTooDeep), errors.Is(err, selinux.ErrTooMany), errors.Is(err, os.ErrPermission):
		return kindf(ErrPrecondition, "%w", err)
	}
	return err
}

// do joins the job that gives v its label, or starts one with walk. A job that gives v another label is waited for
// first, and ended if nobody else waits for it: of two containers that want different labels the last one has its way. It
// takes v.top over. stopped is asked from time to time whether to go on waiting.
func (r *relabels) do(ctx context.Context, op *Operation, v volume, walk labeller, stopped func() error) (selinux.Progress, error) {
	started := false
	defer func() {
		if !started {
			v.top.Close()
		}
	}()
	for {
		job, mine := r.enter(ctx, v, walk)
		started = started || mine
		op.on(Wait{For: WaitVolume, Name: job.path, relabel: job})
		err := job.await(ctx, stopped)
		again := r.leave(job) || job.label != v.label
		switch {
		case err != nil:
			return job.walk.Progress(), err
		case again && !mine:
		case job.err != nil:
			return job.walk.Progress(), job.err
		default:
			return job.walk.Progress(), nil
		}
	}
}

// enter makes the caller one of those who wait for the job of v, and says whether it started that.
func (r *relabels) enter(ctx context.Context, v volume, walk labeller) (job *relabelJob, started bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if job := r.running[v.id]; job != nil {
		if job.label != v.label && job.waiting == 0 && !job.given {
			job.given = true
			job.cancel(errSuperseded)
		}
		job.waiting++
		if job.idle != nil {
			job.idle.Stop()
			job.idle = nil
		}
		return job, false
	}
	detached, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	job = &relabelJob{path: v.path, label: v.label, walk: walk, done: make(chan struct{}), cancel: cancel, waiting: 1}
	r.running[v.id] = job
	// Owner: relabels; ends with the walk, which ends soon after nobody waits for it or Leave. Nobody waits for this
	// goroutine: a file system that doesn't answer may hold it up for good, and the kernel may end it anywhere.
	go r.run(detached, job, v)
	return job, true
}

func (r *relabels) run(ctx context.Context, job *relabelJob, v volume) {
	defer v.top.Close()
	// Owner: this call; ends with it.
	go func() {
		select {
		case <-r.leaving:
			job.cancel(kindf(ErrUnavailable, "%w", errLeaving))
		case <-job.done:
		}
	}()
	op := r.ops.begin(kindRelabel, job.path, "")
	op.at("label files")
	op.on(Wait{For: WaitVolume, Name: job.path, relabel: job})
	job.err = job.walk.Run(ctx)
	if cause := context.Cause(ctx); job.err != nil && cause != nil {
		job.err = cause
	}
	r.ops.end(ctx, op, job.err)
	r.remove(v.id, job)
	close(job.done)
	job.cancel(nil)
	if p := job.walk.Progress(); p.Changed > 0 {
		klog.FromContext(ctx).V(2).Info("Labelled a volume", "path", job.path, "label", job.label, "files", p.Seen, "changed", p.Changed, "err", job.err, "duration", op.Took())
	}
}

func (r *relabels) remove(id volumeID, job *relabelJob) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.running, id)
	job.over = true
	if job.idle != nil {
		job.idle.Stop()
	}
}

// leave takes a create off those who wait for job, and says whether job was given up. The last one out sets its timer.
func (r *relabels) leave(job *relabelJob) (given bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if job.waiting--; job.waiting == 0 && !job.given && !job.over {
		job.idle = time.AfterFunc(unattended, func() { r.giveUp(job) })
	}
	return job.given
}

// giveUp ends a job that still nobody waits for.
func (r *relabels) giveUp(job *relabelJob) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if job.waiting == 0 {
		job.given = true
		job.cancel(errUnattended)
	}
}

// await is job's end, whatever that is, or an error of who waits.
func (job *relabelJob) await(ctx context.Context, stopped func() error) error {
	look := time.NewTicker(sandboxLook)
	defer look.Stop()
	for {
		select {
		case <-job.done:
			return nil
		case <-ctx.Done():
			return kindf(ErrTimeout, "it goes on in the background (%s); ask again to wait for it: %w", progressText(job.walk.Progress()), ctx.Err())
		case <-look.C:
			if err := stopped(); err != nil {
				return err
			}
		}
	}
}

// progressText is what operators read.
func progressText(p selinux.Progress) string {
	text := fmt.Sprintf("%d files seen, %d labelled", p.Seen, p.Changed)
	if p.Dir != "" {
		text += ", at " + p.Dir
	}
	return text
}
