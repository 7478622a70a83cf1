package kubelet

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestInitContainerSidecarAndMainStartInOrder(t *testing.T) {
	mustRun(t, "order")
	want := "first\nsidecar\nmain\nhello from the node\n"
	if got, err := logs("order", "main"); err != nil || !strings.HasPrefix(got, want) || !strings.Contains(got, "Read-only file system") {
		t.Errorf("got %q, %v, want %q and a read-only directory of the node", got, err, want)
	}
	if _, err := os.Stat("/var/lib/lab/mine"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file written to the read-only directory: got %v", err)
	}
	first, err := container("order", "first")
	if end := first.State.Terminated; err != nil || end == nil || end.ExitCode != 0 || end.Reason != "Completed" {
		t.Errorf("the init container: got %s, %v, want it completed", first, err)
	}
	sidecar, err := container("order", "sidecar")
	if err != nil || !sidecar.Started || sidecar.State.Running == nil || sidecar.RestartCount != 0 {
		t.Errorf("the sidecar: got %s, %v, want it running, started by its probe", sidecar, err)
	}
}

func TestProbesFindWhatIsSickAndItIsStartedAgain(t *testing.T) {
	mustRun(t, "probes")
	for name, sicken := range map[string]string{"exec": "rm /tmp/well", "http": "rm /www/well", "tcp": "killall httpd"} {
		if c, err := container("probes", name); err != nil || c.RestartCount != 0 {
			t.Errorf("%s at first: got %s, %v, want no restart", name, c, err)
		}
		command(t, "probes", name, sicken)
	}
	mustEventually(t, time.Minute, "restarts of what is sick", func() error {
		for _, name := range []string{"exec", "http", "tcp"} {
			c, err := container("probes", name)
			if err != nil || c.RestartCount == 0 || !c.Ready {
				return fmt.Errorf("container %s: %w", c, err)
			}
		}
		return nil
	})
	for _, name := range []string{"exec", "http", "tcp"} {
		if c, err := container("probes", name); err != nil || c.RestartCount != 1 || c.LastState.Terminated == nil {
			t.Errorf("%s: got %s, %v, want one restart", name, c, err)
		}
	}
	if got, err := logs("probes", "exec", "previous=true"); err != nil || got != "begin\n" {
		t.Errorf("the log before the restart: got %q, %v", got, err)
	}
}

func TestHooksRunAfterTheStartAndBeforeTheEnd(t *testing.T) {
	mustRun(t, "hooks")
	const order = "/var/lib/lab/hooks/order"
	if got, err := os.ReadFile(order); err != nil || string(got) != "postStart\n" {
		t.Errorf("after the start: got %q, %v, want postStart", got, err)
	}
	if err := os.Remove(filepath.Join(staticPods, "hooks.yaml")); err != nil {
		t.Fatal(err)
	}
	want := "postStart\npreStop\nTERM\n"
	mustEventually(t, time.Minute, "end of the pod", func() error {
		if got, err := os.ReadFile(order); err != nil || string(got) != want {
			return fmt.Errorf("got %q, %w, want %q", got, err, want)
		}
		if names, err := sandboxNames(); err != nil || names["hooks-lab"] == "SANDBOX_READY" {
			return fmt.Errorf("sandbox %s, %w", names["hooks-lab"], err)
		}
		return nil
	})
}

func TestMemoryLimitThatIsHitIsOOMKilled(t *testing.T) {
	inLab(t)
	for name, want := range map[string]struct {
		code   int
		reason string
	}{"itself": {137, "OOMKilled"}, "child": {3, "OOMKilled"}, "unharmed": {0, "Completed"}} {
		mustEventually(t, 2*time.Minute, "end of "+name, func() error {
			c, err := container("oom", name)
			if err == nil && c.State.Terminated == nil {
				err = fmt.Errorf("container %s", c)
			}
			return err
		})
		c, err := container("oom", name)
		if err != nil {
			t.Fatal(err)
		}
		end := c.State.Terminated
		if end.ExitCode != want.code || end.Reason != want.reason || want.reason == "OOMKilled" && !strings.Contains(end.Message, "33554432") {
			t.Errorf("%s: got %+v, want code %d, %s", name, *end, want.code, want.reason)
		}
	}
}

func TestCrashLoopBacksOff(t *testing.T) {
	inLab(t)
	// The status shows the reason at times, between one sync of the pod and the next; the log has each.
	mustEventually(t, 2*time.Minute, "back-off", func() error {
		log, err := os.ReadFile(lab.kubelet.log())
		if err == nil && !strings.Contains(string(log), `CrashLoopBackOff: \"back-off 20s restarting failed container=main pod=crash-lab`) {
			err = errors.New("the kubelet does not wait twice as long after the second failure")
		}
		return err
	})
	c, err := container("crash", "main")
	end := c.State.Terminated
	if end == nil {
		end = c.LastState.Terminated
	}
	if err != nil || c.RestartCount < 2 || c.State.Running != nil || end == nil || end.ExitCode != 7 || end.Reason != "Error" {
		t.Errorf("got %s, %v, want it ended with code 7 at least three times", c, err)
	}
	// Not while the next run takes its place.
	mustEventually(t, time.Minute, "the log of the last run", func() error {
		got, err := logs("crash", "main")
		if err == nil && got != "sorry\n" {
			err = fmt.Errorf("got %q", got)
		}
		return err
	})
}

func TestSharedPIDNamespace(t *testing.T) {
	mustRun(t, "sharedpid")
	seen := command(t, "sharedpid", "two", "ps -o pid,args")
	if !strings.Contains(seen, "httpd -f -p 8004") || !strings.Contains(seen, "stay") {
		t.Errorf("got %q, want the processes of both containers", seen)
	}
	for line := range strings.Lines(seen) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "1" && (strings.Contains(line, "httpd") || strings.Contains(line, "stay")) {
			t.Errorf("PID 1: got %q, want none of the containers'", line)
		}
	}
	killOther(t)
	if end, err := container("sharedpid", "one"); err != nil || end.LastState.Terminated == nil || end.LastState.Terminated.ExitCode != 137 {
		t.Errorf("the end from outside: got %s, %v, want code 137", end, err)
	}
	if seen := command(t, "sharedpid", "two", "ps -o pid,args"); !strings.Contains(seen, "httpd -f -p 8004") {
		t.Errorf("after the restart: got %q, want the other container's process", seen)
	}
}

// killOther kills one container's process out of the other, and waits until it runs again.
func killOther(t *testing.T) {
	t.Helper()
	before, err := container("sharedpid", "one")
	if err != nil {
		t.Fatal(err)
	}
	command(t, "sharedpid", "two", "killall -KILL httpd")
	mustEventually(t, time.Minute, "the other container's restart", func() error {
		c, err := container("sharedpid", "one")
		if err != nil || c.RestartCount != before.RestartCount+1 || !c.Ready {
			return fmt.Errorf("container %s: %w", c, err)
		}
		return nil
	})
}

// serves fetches a page and compares it.
func serves(url, want string) error {
	got, err := body(http.Get(url))
	if err == nil && got != want {
		err = fmt.Errorf("%s: got %q, want %q", url, got, want)
	}
	return err
}

func TestPodOnTheNodesNetwork(t *testing.T) {
	mustRun(t, "hostnet")
	mustEventually(t, 10*time.Second, "the page", func() error { return serves("http://127.0.0.1:8003/", "lab\n") })
	if got := command(t, "hostnet", "main", "ip -o address"); !strings.Contains(got, nodeIP+"/24") {
		t.Errorf("addresses: got %q, want the node's", got)
	}
}

func TestPortOfTheNodeLeadsToThePod(t *testing.T) {
	mustRun(t, "hostport")
	p, err := podNamed("hostport")
	if err != nil || !strings.HasPrefix(p.Status.PodIP, "10.88.") {
		t.Errorf("the pod's address: got %q, %v, want one of the bridge's", p.Status.PodIP, err)
	}
	for _, address := range []string{nodeIP + ":18080", p.Status.PodIP + ":8080"} {
		mustEventually(t, 10*time.Second, "the page", func() error { return serves("http://"+address+"/", "hostport-lab\n") })
	}
}

func TestUserNamespaceShiftsIDs(t *testing.T) {
	mustRun(t, "users")
	got, err := logs("users", "main")
	fields := strings.Fields(got)
	if err != nil || len(fields) != 4 || fields[0] != "0" || fields[1] != "0" || fields[2] == "0" || fields[3] != "65536" {
		t.Fatalf("uid and mapping: got %q, %v, want root, mapped to 65536 others", got, err)
	}
	c, err := container("users", "main")
	if err != nil {
		t.Fatal(err)
	}
	p, err := processOf(c)
	if err != nil {
		t.Fatal(err)
	}
	var on unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d", p.PID), &on); err != nil || fmt.Sprint(on.Uid) != fields[2] {
		t.Errorf("the process on the node: got uid %d, %v, want %s", on.Uid, err, fields[2])
	}
	pod, err := podNamed("users")
	if err != nil {
		t.Fatal(err)
	}
	// Volumes are mapped: their files belong to whom the container says.
	volume, err := filepath.Glob("/var/lib/kubelet/pods/*/volumes/kubernetes.io~empty-dir/shared/mine")
	if err != nil || len(volume) != 1 {
		t.Fatalf("files of pod %s: got %v, %v", pod.Metadata.UID, volume, err)
	}
	if err := unix.Stat(volume[0], &on); err != nil || on.Uid != 0 {
		t.Errorf("%s: got owner %d, %v, want 0", volume[0], on.Uid, err)
	}
}
