// Package systemd asks the node's service manager for what only it may do: it starts and stops units, and tells whether
// the node is about to go down. It owns one connection to it, made when it is first needed and again when it broke, and a
// deadline for every call. It knows no sandboxes, makes no control group and decides nothing about a unit; what it is asked
// may take long where PID 1 is busy, so nothing that has to answer at once may wait for it.
// Source: org.freedesktop.systemd1(5), systemd.scope(5), sd_booted(3).
package systemd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

const (
	// callTimeout is how long one call may take, connecting included.
	callTimeout = 10 * time.Second
	// jobTimeout is how long a job may take that the call began: other units may have to be started or stopped for it.
	jobTimeout = 30 * time.Second
)

var (
	// ErrExists: a unit of that name is there, perhaps about to go.
	ErrExists = errors.New("unit exists")
	// ErrNoUnit: systemd has no such unit, loaded or installed.
	ErrNoUnit = errors.New("no such unit")
)

// Booted says whether systemd runs the node (sd_booted(3)).
func Booted() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// OwnUnit names the service that this process runs in; "" outside of any.
func OwnUnit() string {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	return unitOf(string(text))
}

// unitOf finds the service in the text of a /proc/<pid>/cgroup.
func unitOf(cgroups string) string {
	for line := range strings.Lines(cgroups) {
		group, ok := strings.CutPrefix(strings.TrimSpace(line), "0::/")
		for ; ok && group != "" && group != "."; group = path.Dir(group) {
			if strings.HasSuffix(group, ".service") {
				return path.Base(group)
			}
		}
	}
	return ""
}

// Conn is the connection, shared by all who need it. Close ends it for good.
type Conn struct {
	dial func(context.Context) (*dbus.Conn, error)

	mu     sync.Mutex // guards what follows
	conn   *dbus.Conn // nil before the first call and after a failed one
	closed bool
}

// New makes a Conn without connecting.
func New() *Conn { return &Conn{dial: dial} }

// Close ends the connection.
func (c *Conn) Close() error {
	c.mu.Lock()
	conn := c.conn
	c.conn, c.closed = nil, true
	c.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
	return nil
}

// dial reaches PID 1 itself, which works without a message bus, early at boot and late at shutdown; where that is not
// allowed, through the bus. The context given to the library would bound the connection's life, not the dialling.
func dial(ctx context.Context) (*dbus.Conn, error) {
	type answer struct {
		conn *dbus.Conn
		err  error
	}
	answers := make(chan answer, 1)
	// Owner: this call; a PID 1 that hangs keeps it until it answers, and what it then gives is closed.
	go func() {
		conn, err := dbus.NewSystemdConnectionContext(context.Background())
		if err != nil {
			var busErr error
			if conn, busErr = dbus.NewSystemConnectionContext(context.Background()); busErr != nil {
				err = errors.Join(err, busErr)
			} else {
				err = nil
			}
		}
		answers <- answer{conn, err}
	}()
	select {
	case a := <-answers:
		return a.conn, a.err
	case <-ctx.Done():
		// Owner: ends with the answer above.
		go func() {
			if a := <-answers; a.err == nil {
				a.conn.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

// get gives the present connection, or a new one.
func (c *Conn) get(ctx context.Context) (*dbus.Conn, error) {
	c.mu.Lock()
	conn, closed := c.conn, c.closed
	c.mu.Unlock()
	if closed {
		return nil, net.ErrClosed
	}
	if conn != nil && conn.Connected() {
		return conn, nil
	}
	fresh, err := c.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to systemd: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.conn != nil && c.conn != conn { // somebody else was faster
		defer fresh.Close()
		if c.closed {
			return nil, net.ErrClosed
		}
		return c.conn, nil
	}
	if conn != nil {
		conn.Close()
	}
	c.conn = fresh
	return fresh, nil
}

// drop forgets a connection that broke, or on which a call was not answered in time.
func (c *Conn) drop(conn *dbus.Conn) {
	c.mu.Lock()
	if c.conn == conn {
		c.conn = nil
	}
	c.mu.Unlock()
	conn.Close()
}

// call makes one call, and once more where the connection turns out to be broken: systemd executes itself anew at an
// upgrade. A call that was made twice that way may find what the first one did.
func (c *Conn) call(ctx context.Context, f func(context.Context, *dbus.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for again := false; ; again = true {
		conn, err := c.get(ctx)
		if err != nil {
			return err
		}
		err = f(ctx, conn)
		if err == nil {
			return nil
		}
		broken := !conn.Connected() || errors.Is(err, godbus.ErrClosed)
		if broken || ctx.Err() != nil {
			c.drop(conn)
		}
		if !broken || again || ctx.Err() != nil {
			return named(err)
		}
	}
}

// job makes a call that begins a job and waits until it is done.
func (c *Conn) job(ctx context.Context, begin func(context.Context, *dbus.Conn, chan<- string) error) error {
	ctx, cancel := context.WithTimeout(ctx, jobTimeout)
	defer cancel()
	results := make(chan string, 1)
	var used *dbus.Conn
	err := c.call(ctx, func(ctx context.Context, conn *dbus.Conn) error {
		used = conn
		return begin(ctx, conn, results)
	})
	if err != nil {
		return err
	}
	// A connection that breaks now takes the result with it: whoever asked looks at the unit.
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case result := <-results:
			if result != "done" {
				return fmt.Errorf("systemd's job ended as %q", result)
			}
			return nil
		case <-ctx.Done():
			return fmt.Errorf("wait for systemd's job: %w", ctx.Err())
		case <-look.C:
			if !used.Connected() {
				return fmt.Errorf("wait for systemd's job: %w", godbus.ErrClosed)
			}
		}
	}
}

// named gives systemd's answers the names that callers branch on.
func named(err error) error {
	var answer godbus.Error
	if !errors.As(err, &answer) {
		return err
	}
	switch answer.Name {
	case "org.freedesktop.systemd1.UnitExists":
		return fmt.Errorf("%w: %w", ErrExists, err)
	case "org.freedesktop.systemd1.NoSuchUnit":
		return fmt.Errorf("%w: %w", ErrNoUnit, err)
	}
	return err
}
