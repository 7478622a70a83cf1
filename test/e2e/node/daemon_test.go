package node

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestOneDaemonPerRunDirectory(t *testing.T) {
	n := onNode(t)
	out, err := n.podwright("serve")
	if err == nil || !strings.Contains(out, "another podwright runs") || !strings.Contains(out, n.path("run")) {
		t.Errorf("a second daemon: got %q, %v, want a refusal that names the directory", out, err)
	}
	info, err := os.Stat(n.socket())
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("socket: got %v, %v, want mode 0660", info, err)
	}
	if _, err := n.Version(ctx(t), &criv1.VersionRequest{}); err != nil {
		t.Errorf("the first daemon afterwards: %v", err)
	}
}

// READY is said to systemd after recovery, when calls are answered, and STOPPING before the end.
func TestSystemdIsTold(t *testing.T) {
	if hasLabels() {
		t.Skip("the policy lets podwright's domain talk to systemd's socket, and to nobody who says to be systemd")
	}
	needNode(t)
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	said := func() string {
		buf := make([]byte, 4096)
		socket.SetReadDeadline(time.Now().Add(20 * time.Second))
		count, err := socket.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:count])
	}
	n := ownNode(t, options{env: []string{"NOTIFY_SOCKET=" + path}})
	if got := said(); !strings.Contains(got, "READY=1") {
		t.Errorf("at first: got %q, want READY=1", got)
	}
	n.restart(t, unix.SIGTERM, func() {
		if got := said(); !strings.Contains(got, "STOPPING=1") {
			t.Errorf("at the end: got %q, want STOPPING=1", got)
		}
	})
}
