package systemd

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

// Names of podwright's units, as they are installed.
const (
	DaemonUnit = "podwright.service"
	KeeperUnit = "podwright-keeper.service"
	// PodsTarget is stopped after the daemon and before the pods' scopes when the node goes down.
	PodsTarget = "podwright-pods.target"
)

// Scope is a unit around a process that is there already.
type Scope struct {
	Name        string // "podwright-<id>.scope"
	Slice       string // the unit it is in; started where it is not active
	Description string
	PID         int
	// Before are units that are stopped before the scope is when the node goes down, After those that are stopped after it.
	Before, After []string
	// StopTimeout is how long what runs in the scope may take after SIGTERM when systemd stops it; then it is killed.
	StopTimeout time.Duration
}

// properties are those of a scope that hands its whole control group to podwright and limits nothing by itself: a
// default limit of tasks is lifted, and protection of memory is passed on from the slice to the groups in the scope.
func (s Scope) properties() []dbus.Property {
	property := func(name string, value any) dbus.Property {
		return dbus.Property{Name: name, Value: godbus.MakeVariant(value)}
	}
	list := []dbus.Property{
		dbus.PropDescription(s.Description), dbus.PropSlice(s.Slice), dbus.PropPids(uint32(s.PID)),
		property("Delegate", true),
		// A scope whose processes were killed has failed, and would stay to be looked at.
		property("CollectMode", "inactive-or-failed"),
		property("TasksMax", uint64(math.MaxUint64)),
		property("MemoryMin", uint64(math.MaxUint64)), property("MemoryLow", uint64(math.MaxUint64)),
		property("TimeoutStopUSec", uint64(s.StopTimeout.Microseconds())),
	}
	if len(s.Before) > 0 {
		list = append(list, dbus.PropBefore(s.Before...))
	}
	if len(s.After) > 0 {
		list = append(list, dbus.PropAfter(s.After...))
	}
	return list
}

// StartScope starts a scope around its process and returns when that is in the scope's group.
func (c *Conn) StartScope(ctx context.Context, s Scope) error {
	err := c.job(ctx, func(ctx context.Context, conn *dbus.Conn, done chan<- string) error {
		_, err := conn.StartTransientUnitContext(ctx, s.Name, "fail", s.properties(), done)
		return err
	})
	if errors.Is(err, ErrExists) {
		// One that failed and was not collected is in the way of a name only.
		reset := c.call(ctx, func(ctx context.Context, conn *dbus.Conn) error { return conn.ResetFailedUnitContext(ctx, s.Name) })
		if reset != nil && !errors.Is(reset, ErrNoUnit) {
			err = errors.Join(err, reset)
		}
	}
	if err != nil {
		return fmt.Errorf("start unit %s: %w", s.Name, err)
	}
	return nil
}

// StartUnit starts an installed unit and returns when it is active.
func (c *Conn) StartUnit(ctx context.Context, name string) error {
	err := c.job(ctx, func(ctx context.Context, conn *dbus.Conn, done chan<- string) error {
		_, err := conn.StartUnitContext(ctx, name, "replace", done)
		return err
	})
	if err != nil {
		return fmt.Errorf("start unit %s: %w", name, err)
	}
	return nil
}

// StopUnit stops a unit and returns when it is inactive; one that systemd does not know is.
func (c *Conn) StopUnit(ctx context.Context, name string) error {
	err := c.job(ctx, func(ctx context.Context, conn *dbus.Conn, done chan<- string) error {
		_, err := conn.StopUnitContext(ctx, name, "replace", done)
		return err
	})
	if err != nil && !errors.Is(err, ErrNoUnit) {
		return fmt.Errorf("stop unit %s: %w", name, err)
	}
	return nil
}

// Installed says whether a unit of that name can be started.
func (c *Conn) Installed(ctx context.Context, name string) (bool, error) {
	var state string
	err := c.call(ctx, func(ctx context.Context, conn *dbus.Conn) error {
		property, err := conn.GetUnitPropertyContext(ctx, name, "LoadState")
		if err == nil {
			state, _ = property.Value.Value().(string)
		}
		return err
	})
	if errors.Is(err, ErrNoUnit) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for unit %s: %w", name, err)
	}
	return state == "loaded", nil
}

// Stopping says whether the node is about to be switched off or started anew.
func (c *Conn) Stopping(ctx context.Context) (bool, error) {
	var state string
	err := c.call(ctx, func(ctx context.Context, conn *dbus.Conn) error {
		property, err := conn.SystemStateContext(ctx)
		if err == nil {
			state = strings.Trim(property.Value.String(), `"`)
		}
		return err
	})
	if err != nil {
		return false, fmt.Errorf("ask systemd for the node's state: %w", err)
	}
	return state == "stopping", nil
}
