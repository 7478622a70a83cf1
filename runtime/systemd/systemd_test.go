package systemd

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

func TestOwnUnitIsTheServiceAround(t *testing.T) {
	for cgroups, want := range map[string]string{
		"0::/podwright.slice/podwright.service\n":        "podwright.service",
		"0::/system.slice/podwright.service/sub/group\n": "podwright.service",
		"0::/user.slice/user-0.slice/session-1.scope\n":  "",
		"0::/\n": "",
		"12:pids:/system.slice/x.service\n0::/system.slice/y.service\n": "y.service",
		"": "",
	} {
		if got := unitOf(cgroups); got != want {
			t.Errorf("%q: got %q, want %q", cgroups, got, want)
		}
	}
}

// A PID 1 that hangs costs a call its own deadline, and no connection is kept for it.
func TestCallsEndWithTheirDeadline(t *testing.T) {
	dials := 0
	c := &Conn{dial: func(ctx context.Context) (*dbus.Conn, error) {
		dials++
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	begin := time.Now()
	for name, err := range map[string]error{"start": c.StartScope(ctx, Scope{Name: "x.scope"}), "stop": c.StopUnit(ctx, "x.scope")} {
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: got %v, want the deadline", name, err)
		}
	}
	if _, err := c.Stopping(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("state: got %v, want the deadline", err)
	}
	if took := time.Since(begin); took > time.Second {
		t.Errorf("took %v", took)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := c.StopUnit(t.Context(), "x.scope"); !errors.Is(err, net.ErrClosed) || dials > 3 {
		t.Errorf("after Close: got %v after %d dials, want a closed connection", err, dials)
	}
}

func TestAnswersHaveNames(t *testing.T) {
	for name, want := range map[string]error{
		"org.freedesktop.systemd1.UnitExists": ErrExists, "org.freedesktop.systemd1.NoSuchUnit": ErrNoUnit,
	} {
		if err := named(godbus.Error{Name: name}); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", name, err, want)
		}
	}
	if err := named(context.Canceled); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// What a scope is started with is what keeps systemd from limiting, keeping or killing what is podwright's.
func TestScopeLeavesEverythingToPodwright(t *testing.T) {
	got := map[string]any{}
	for _, p := range (Scope{Name: "a.scope", Slice: "b.slice", PID: 7, Before: []string{"c.service"}, StopTimeout: 30 * time.Second}).properties() {
		got[p.Name] = p.Value.Value()
	}
	const none = ^uint64(0)
	for name, want := range map[string]any{
		"Delegate": true, "CollectMode": "inactive-or-failed", "TasksMax": none, "MemoryMin": none, "MemoryLow": none,
		"TimeoutStopUSec": uint64(30_000_000), "Slice": "b.slice",
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	if _, ok := got["MemoryMax"]; ok {
		t.Error("a limit is set on the scope, where systemd would write it again")
	}
}
