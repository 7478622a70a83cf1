package podsandbox

import (
	"context"
	"fmt"
	"time"

	"github.com/podwright/podwright/podsandbox/spec"
	"github.com/podwright/podwright/runtime/wire"
)

// launchGrace is how much longer than its caller a start may take that is under way: the command would else be ended
// alone at a moment when it may have started others.
const launchGrace = 2 * time.Second

// launchedExec is what came of a start.
type launchedExec struct {
	process wire.Process
	output  *execOutput
	err     error
}

// outliving gives a context that ends grace after ctx.
func outliving(ctx context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(grace, cancel) })
	return longer, func() { stop(); cancel() }
}

// abandonExec ends a command whose caller gave up while it was being started, with all that it starts.
func (m *execManager) abandonExec(ctx context.Context, c *container, execID string, launched <-chan launchedExec, waiter <-chan wire.Exit) {
	m.exits.Add(1)
	// Owner: core; ends soon after the start does; Shutdown waits for it.
	go func() {
		defer m.exits.Done()
		l := <-launched
		if l.err != nil {
			m.waiters.Delete(execID)
			return
		}
		defer l.output.close()
		m.killTree(c.record().CgroupPath, l.process, waiter)
		m.forgetExec(ctx, execID)
	}()
}

// launchExec starts the command, a bounded number at a time; its output is read once it is asked for.
func (m *execManager) launchExec(ctx context.Context, op *Operation, c *container, execID string, launchable *spec.Launchable) (wire.Process, *execOutput, error) {
	op.at("wait for a slot")
	select {
	case m.starting <- struct{}{}:
	case <-ctx.Done():
		return wire.Process{}, nil, ctx.Err()
	}
	defer func() { <-m.starting }()
	if err := ctx.Err(); err != nil {
		return wire.Process{}, nil, err
	}
	output, s, err := newExecOutput(&m.kept)
	if err != nil {
		return wire.Process{}, nil, err
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
		if said := output.lastWords(); said != "" {
			err = fmt.Errorf("%w (it said %q)", err, said)
		}
		output.close()
	}
	return process, output, err
}
