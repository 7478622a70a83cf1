package podsandbox

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/podsandbox/spec"
	"github.com/podwright/podwright/runtime/keeper"
	"github.com/podwright/podwright/runtime/wire"
)

// launchGrace is how much longer than its caller a start may take that is under way: the command would else be ended
// alone at a moment when it may have started others.
const launchGrace = 2 * time.Second

// execStreams are the two ends of a command's streams.
type execStreams interface {
	// open makes them, and gives the command's ends.
	open() (*streams, error)
	// lastWords is what a start that failed left behind.
	lastWords() string
	close()
}

// startedExec is a command that runs.
type startedExec struct {
	id      string // in the keeper
	process wire.Process
	console *os.File // the terminal's master; nil without one
	exit    chan wire.Exit
}

// launchedExec is what came of a start.
type launchedExec struct {
	process keeper.Process
	err     error
}

// begin starts a command for a caller who may give up meanwhile: what then comes of the start is ended. Where it fails,
// the streams are closed; else they are the caller's to close, and the command the caller's to forget.
func (m *execManager) begin(ctx context.Context, op *Operation, c *container, launchable *spec.Launchable, ends execStreams) (*startedExec, error) {
	s := &startedExec{id: execPrefix + record.NewID()}
	s.exit = m.awaitExit(s.id)
	launched := make(chan launchedExec, 1)
	m.exits.Add(1)
	// Owner: core; ends by execStartDeadline, launchGrace after the caller; Shutdown waits for it.
	go func() {
		defer m.exits.Done()
		process, err := m.launchExec(ctx, op, c, s.id, launchable, ends)
		launched <- launchedExec{process, err}
	}()
	select {
	case l := <-launched:
		if l.err != nil {
			m.waiters.Delete(s.id)
			return nil, m.execError(ctx, c, l.err)
		}
		s.process, s.console = identity(l.process), l.process.Console
		return s, nil
	case <-ctx.Done():
		m.abandonExec(ctx, c, s, launched, ends)
		return nil, m.execError(ctx, c, ctx.Err())
	}
}

// outliving gives a context that ends grace after ctx.
func outliving(ctx context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(grace, cancel) })
	return longer, func() { stop(); cancel() }
}

// abandonExec ends a command whose caller gave up while it was being started, with all that it starts.
func (m *execManager) abandonExec(ctx context.Context, c *container, s *startedExec, launched <-chan launchedExec, ends execStreams) {
	m.exits.Add(1)
	// Owner: core; ends soon after the start does; Shutdown waits for it.
	go func() {
		defer m.exits.Done()
		l := <-launched
		if l.err != nil {
			m.waiters.Delete(s.id)
			return
		}
		defer ends.close()
		if l.process.Console != nil {
			defer l.process.Console.Close()
		}
		m.killTree(c.record().CgroupPath, identity(l.process), s.exit)
		m.forgetExec(ctx, s.id)
	}()
}

// launchExec starts the command, a bounded number at a time; its output is read once it is asked for.
func (m *execManager) launchExec(ctx context.Context, op *Operation, c *container, execID string, launchable *spec.Launchable, ends execStreams) (keeper.Process, error) {
	op.at("wait for a slot")
	select {
	case m.starting <- struct{}{}:
	case <-ctx.Done():
		return keeper.Process{}, ctx.Err()
	}
	defer func() { <-m.starting }()
	if err := ctx.Err(); err != nil {
		return keeper.Process{}, err
	}
	s, err := ends.open()
	if err != nil {
		ends.close()
		return keeper.Process{}, err
	}
	defer s.close()
	longer, cancel := outliving(ctx, launchGrace)
	defer cancel()
	ctx, cancel = context.WithTimeout(longer, execStartDeadline) // or a hung start without a timeout keeps its slot
	defer cancel()
	process, err := m.launch(ctx, launchRequest{
		op: op, id: execID, container: c.id, kind: wire.KindExec, launchable: launchable, cgroup: c.record().CgroupPath, streams: s,
	})
	if err != nil {
		s.close()
		if said := ends.lastWords(); said != "" {
			err = fmt.Errorf("%w (it said %q)", err, said)
		}
		ends.close()
	}
	return process, err
}
