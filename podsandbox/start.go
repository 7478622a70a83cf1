package podsandbox

import (
	"context"
	"fmt"
	"time"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/podwright/podwright/podsandbox/spec"
	"github.com/podwright/podwright/runtime/keeper"
	"github.com/podwright/podwright/runtime/wire"
)

// recoverPause is between two passes, where the keeper went away during the first.
const recoverPause = time.Second

// Start loads every record, so that lists and statuses have what was recorded last, and recovers them. It returns when that
// is done, before the socket opens, or when the keeper does not answer: recovery then goes on by itself once it does, and
// until then Recovered says why nothing can be changed.
func (m *Manager) Start(ctx context.Context, client *keeper.Client) error {
	loaded, err := m.cfg.Records.Load()
	if err != nil {
		return fmt.Errorf("load records: %w", err)
	}
	m.keeper.Store(client)
	m.unreadable.keep(ctx, loaded.Bad)
	r := &recovery{m: m}
	for i := range loaded.Sandboxes {
		r.loadSandbox(ctx, &loaded.Sandboxes[i])
	}
	for i := range loaded.Containers {
		r.loadContainer(ctx, &loaded.Containers[i])
	}
	m.exits.Add(1)
	// Owner: Manager; recovery and one compilation, then the watch, which ends with ctx or Leave; Shutdown waits for it.
	go func() {
		defer m.exits.Done()
		if m.recover(ctx, client) {
			m.warm()
			m.watch.run(ctx)
		}
	}()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for client.Connected() {
		select {
		case <-m.recovered:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("recover records: %w", ctx.Err())
		case <-look.C:
		}
	}
	klog.FromContext(ctx).Error(m.Recovered(), "Serving what was last recorded, and no changes, until the keeper answers")
	return nil
}

// recover compares every record with what kernel and keeper say, in one pass by the table of docs/architecture.md, and
// says whether it came to its end. One bad record or failed step is logged and never fatal; where the keeper goes away in
// the middle, the pass is made again.
func (m *Manager) recover(ctx context.Context, client *keeper.Client) bool {
	select {
	case <-client.Reached():
	case <-ctx.Done():
		return false
	}
	for err := m.pass(ctx, client, nil); err != nil; err = m.pass(ctx, client, nil) {
		klog.FromContext(ctx).Error(err, "Could not recover all records yet")
		select {
		case <-time.After(recoverPause):
		case <-ctx.Done():
			return false
		}
	}
	m.finishUpdates(ctx)
	close(m.recovered)
	return true
}

// pass asks the keeper for its processes and brings every record in line. claimed are processes that somebody waits for.
func (m *Manager) pass(ctx context.Context, client *keeper.Client, claim func(children map[string]wire.Child)) error {
	children, err := client.List(ctx)
	if err != nil {
		return fmt.Errorf("ask the keeper for its processes: %w", err)
	}
	r := &recovery{m: m, client: client, children: map[string]wire.Child{}}
	for _, child := range children {
		r.children[child.ID] = child
	}
	if claim != nil {
		claim(r.children)
	}
	r.all(ctx)
	return r.interrupted
}

// warm compiles the filter that most containers get, so that the first of them does not wait for it. An error is the
// first container's to report.
func (m *Manager) warm() {
	caps, err := spec.Capabilities(&criv1.ContainerConfig{}, m.cfg.Node)
	if err == nil {
		_, _, err = m.cfg.Seccomp.CompileProfile(m.cfg.SeccompDefault, caps)
	}
	if err != nil {
		klog.ErrorS(err, "Could not compile the default seccomp profile")
	}
}

// OnFresh is for the keeper's client to call when keeper and anchor were lost together and started anew: everything
// that is recorded as running is looked at again, as after a restart of the daemon.
func (m *Manager) OnFresh() {
	select {
	case <-m.recovered:
	case <-m.leaving: // the next daemon looks
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), teardownDeadline)
	defer cancel()
	err := m.pass(ctx, m.keeper.Load(), func(children map[string]wire.Child) {
		m.waiters.Range(func(id, waiter any) bool {
			if _, known := children[id.(string)]; !known { // its exit will never come
				select {
				case waiter.(chan wire.Exit) <- wire.Exit{Code: lostCode, Lost: true}:
				default:
				}
			}
			delete(children, id.(string)) // somebody waits for it: no stranger
			return true
		})
	})
	if err != nil {
		klog.FromContext(ctx).Error(err, "Could not look at all records again with the new keeper")
	}
}
