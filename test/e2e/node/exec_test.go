package node

import (
	"bytes"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/runtime/kerneltest"
)

func TestExecSyncAnswersCodeAndBothStreams(t *testing.T) {
	p := onNode(t).pod(t)
	c := p.sleeper(nil)
	resp, err := c.tryExec(10, "sh", "-c", "echo out; echo err >&2; exit 42")
	if err != nil || resp.GetExitCode() != 42 || string(resp.GetStdout()) != "out\n" || string(resp.GetStderr()) != "err\n" {
		t.Errorf("got %v, %v, want code 42, out and err", resp, err)
	}
	resp, err = c.tryExec(10, "sh", "-c", "kill -9 $$")
	if err != nil || resp.GetExitCode() != 137 {
		t.Errorf("killed: got %v, %v, want code 137", resp, err)
	}
	if got := c.exec("sh", "-c", "read x; echo \"<$x>\""); got != "<>\n" {
		t.Errorf("its stdin: got %q, want an end of file at once", got)
	}
	_, err = c.tryExec(10, "/no/such/program")
	wantError(t, err, codes.InvalidArgument, "/no/such/program", c.id)
	_, err = c.tryExec(10)
	wantError(t, err, codes.InvalidArgument, "cmd")
	if got := c.exec("printf", "a\\000b\\377"); got != "a\x00b\xff" {
		t.Errorf("bytes: got %q", got)
	}
}

// A timeout ends the command and all it started, nothing else, and its processes are gone when the answer comes.
func TestExecSyncTimeoutKillsItsTreeAlone(t *testing.T) {
	for name, change := range map[string][]func(*criv1.PodSandboxConfig){"own processes": nil, "pod's processes": {podPID}} {
		t.Run(name, func(t *testing.T) {
			n := onNode(t)
			p := n.pod(t, change...)
			c := p.start(nil, "sh", "-c", "sleep 7777 & wait")
			begin := time.Now()
			_, err := c.tryExec(1, "sh", "-c", "sleep 8888 & setsid sleep 8889 & sleep 8890")
			wantError(t, err, codes.DeadlineExceeded, c.id)
			if took := time.Since(begin); took < time.Second || took > patient(15*time.Second) {
				t.Errorf("it took %s, want the timeout of 1 s", took)
			}
			all, err := kerneltest.Descendants(1)
			if err != nil {
				t.Fatal(err)
			}
			own := 0
			for _, process := range all {
				command := process.Command()
				if strings.Contains(command, "sleep 888") || strings.Contains(command, "sleep 8890") {
					t.Errorf("left after the answer: %d %s (%c)", process.PID, command, process.State)
				}
				if command == "sleep 7777" {
					own++
				}
			}
			if own != 1 {
				t.Errorf("the container's own child: got %d of it, want 1", own)
			}
			// What was killed is the container's PID 1 to reap, which takes it a moment.
			eventually(t, 10*time.Second, "no zombie of it", func() bool {
				all, err := kerneltest.Descendants(1)
				return err == nil && !slices.ContainsFunc(all, func(p kerneltest.Process) bool { return p.State == 'Z' && p.Name == "sleep" })
			})
			if s := c.status(); s.GetState() != criv1.ContainerState_CONTAINER_RUNNING {
				t.Errorf("the container: got %v, want it running", s.GetState())
			}
		})
	}
}

func TestExecSyncOutputIsCapped(t *testing.T) {
	p := onNode(t).pod(t)
	c := p.sleeper(nil)
	resp, err := c.tryExec(60, "sh", "-c", "head -c 20000000 /dev/zero & head -c 20000000 /dev/zero >&2; wait; exit 5")
	if err != nil || resp.GetExitCode() != 5 {
		t.Fatalf("40 MB of output: got %v, want an answer with code 5", err)
	}
	out, all := len(resp.GetStdout()), len(resp.GetStdout())+len(resp.GetStderr())
	if all > 16<<20-1024 || all < 8<<20 || out == 0 {
		t.Errorf("got %d bytes of stdout and %d in all, want no more than fits into one message of 16 MiB", out, all)
	}
	resp, err = c.tryExec(60, "head", "-c", "5000000", "/dev/zero")
	if err != nil || !bytes.Equal(resp.GetStdout(), make([]byte, 5000000)) {
		t.Errorf("5 MB of output: got %d bytes, %v, want all", len(resp.GetStdout()), err)
	}
}

func TestExecSyncDoesNotWaitForBackgroundChildrenB26(t *testing.T) {
	p := onNode(t).pod(t)
	c := p.sleeper(nil)
	begin := time.Now()
	resp, err := c.tryExec(30, "sh", "-c", "sleep 5555 & echo started; exit 3")
	if err != nil || resp.GetExitCode() != 3 || string(resp.GetStdout()) != "started\n" {
		t.Errorf("got %v, %v, want code 3 and the output", resp, err)
	}
	if took := time.Since(begin); took > patient(5*time.Second) {
		t.Errorf("it took %s", took)
	}
	if got := c.exec("ps", "-o", "args"); !strings.Contains(got, "sleep 5555") {
		t.Errorf("the background child: got %q, want it to live on", got)
	}
}

func TestExecInWhatDoesNotRunIsRefusedB27(t *testing.T) {
	p := onNode(t).pod(t)
	c := p.create(nil, "true")
	_, err := c.tryExec(10, "true")
	wantError(t, err, codes.FailedPrecondition, c.id, "created")
	if err := c.tryStart(); err != nil {
		t.Fatal(err)
	}
	c.wait(20 * time.Second)
	_, err = c.tryExec(10, "true")
	wantError(t, err, codes.FailedPrecondition, c.id, "exited")
}

// An exec has what the container has: user, groups, capabilities, filter, no_new_privs, cgroup, environment, directory.
func TestExecInheritsFromTheContainerB28(t *testing.T) {
	p := onNode(t).pod(t)
	config := func(c *criv1.ContainerConfig) {
		s := security(c)
		s.RunAsUser, s.RunAsGroup, s.SupplementalGroups = &criv1.Int64Value{Value: 1000}, &criv1.Int64Value{Value: 4001}, []int64{3000}
		s.NoNewPrivs = true
		s.Capabilities = &criv1.Capability{DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"NET_RAW"}}
		s.Seccomp = &criv1.SecurityProfile{ProfileType: criv1.SecurityProfile_RuntimeDefault}
		c.WorkingDir, c.Envs = "/tmp", []*criv1.KeyValue{{Key: "GIVEN", Value: []byte("yes")}}
	}
	const look = "grep -e ^Cap -e ^Seccomp -e ^NoNewPrivs -e ^Uid -e ^Gid -e ^Groups /proc/self/status; cat /proc/self/cgroup; pwd; env | sort; cat /proc/self/oom_score_adj; ulimit -n"
	want := p.output(config, "sh", "-c", look)
	if got := p.sleeper(config).exec("sh", "-c", look); got != want {
		t.Errorf("exec sees\n%s\nwant what the workload sees\n%s", got, want)
	}
	privileged := func(c *criv1.ContainerConfig) { security(c).Privileged = true }
	strong := p.n.pod(t, privilegedPod)
	want = strong.output(privileged, "sh", "-c", look)
	if got := strong.sleeper(privileged).exec("sh", "-c", look); got != want {
		t.Errorf("exec into a privileged one sees\n%s\nwant\n%s (B29)", got, want)
	}
}

// A container that ends takes its execs along, and their callers get an answer.
func TestExecEndsWithItsContainerB22(t *testing.T) {
	p := onNode(t).pod(t)
	c := p.sleeper(nil)
	answer := make(chan error, 1)
	go func() {
		_, err := c.tryExec(50, "sleep", "6666")
		answer <- err
	}()
	eventually(t, 10*time.Second, "exec", func() bool { return strings.Contains(c.exec("ps", "-o", "args"), "sleep 6666") })
	c.stop(0)
	select {
	case <-answer:
	case <-time.After(15 * time.Second):
		t.Error("the exec's caller still waits 15 s after the container's end")
	}
}

func TestParallelExecsDoNotMix(t *testing.T) {
	p := onNode(t).pod(t)
	c := p.sleeper(nil)
	errs := make(chan string, 20)
	for i := range 20 {
		go func() {
			word := strings.Repeat(string(rune('a'+i)), 3)
			resp, err := c.tryExec(50, "sh", "-c", "echo "+word+"; exit "+map[bool]string{true: "1", false: "0"}[i%2 == 1])
			if err != nil || string(resp.GetStdout()) != word+"\n" || int(resp.GetExitCode()) != i%2 {
				errs <- word
				t.Errorf("exec %d: got %v, %v", i, resp, err)
				return
			}
			errs <- ""
		}()
	}
	for range 20 {
		<-errs
	}
}

// A caller that gives up leaves no process behind, at whatever moment it does (B5).
func TestCancelledExecsLeaveNoProcess(t *testing.T) {
	p := onNode(t).pod(t, podPID) // whose PID 1 reaps what loses its parent
	c := p.sleeper(nil)
	var wait sync.WaitGroup
	for i := range 120 {
		wait.Go(func() {
			short, cancel := contextWithTimeout(time.Duration(i*2) * time.Millisecond)
			defer cancel()
			p.n.ExecSync(short, &criv1.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"sh", "-c", "while :; do sleep 3333; done"}})
		})
	}
	wait.Wait()
	defer func() {
		if t.Failed() {
			t.Log(c.exec("ps", "-o", "pid,ppid,stat,args"))
		}
	}()
	eventually(t, 20*time.Second, "end of all execs", func() bool {
		return c.groupFile("pids.current", "pids.current") == "1"
	})
	c.exec("true")
}
