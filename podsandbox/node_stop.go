package podsandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/podwright/podwright/podsandbox/record"
)

// StopAll stops every running container as StopContainer does, all at once, with what is left of the grace: for a node
// that goes down, where nobody else would give them their stop signal. Records and sandboxes stay: the next boot finds them.
func (m *Manager) StopAll(ctx context.Context, grace time.Duration) error {
	var wait sync.WaitGroup
	var mu sync.Mutex // guards errs
	var errs []error
	count := 0
	m.containers.each(func(c *container) {
		if c.record().Phase != record.ContainerRunning {
			return
		}
		count++
		wait.Add(1)
		// Owner: this call, which waits; each ends by grace and killDeadline.
		go func() {
			defer wait.Done()
			if err := m.StopContainer(ctx, c.id, grace); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("container %s: %w", c.id, err))
			}
		}()
	})
	klog.FromContext(ctx).Info("The node goes down: stopping all containers", "containers", count, "grace", grace)
	wait.Wait()
	return errors.Join(errs...)
}
