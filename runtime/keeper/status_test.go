package keeper

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/podwright/podwright/runtime/launch"
)

// B5: init may be killed between its clone and the message that names it, because the launch was given up or by the
// container's memory limit. The clone is not lost: what it says of itself before it executes tells who it is.
func TestCloneThatInitCouldNotNameIsTheChild(t *testing.T) {
	n := newNode(t)
	say := fmt.Sprintf("printf '%s' >&%d || exit 1; exec %d>&-; ", execNext(), launch.StatusFd, launch.StatusFd)
	w := n.sh("c1", say+"echo $$; exit 5")
	w.Plan.Ops[0].Arg = "clone, unnamed"
	p, err := n.Launch(n.ctx(), w.Launch)
	closeFiles(w.files)
	if err != nil { // the end of init was seen first: then the clone must have got no further
		t.Logf("launch: %v", err)
	} else {
		if e := n.exit("c1"); e.Code != 5 {
			t.Errorf("got %+v, want code 5", e)
		}
		if got, want := w.text(t, "stdout"), fmt.Sprintln(p.PID); got != want {
			t.Errorf("pid: got %q, want %q", got, want)
		}
	}
	w = n.sh("c2", "sleep 0.2; "+say+"exec sleep 1000")
	w.Plan.Ops[0].Arg = "clone, unnamed"
	if _, err := n.Launch(n.ctx(), w.Launch); err == nil {
		t.Error("a launch whose init died before the clone came to its end: got no error")
	}
	closeFiles(w.files)
	time.Sleep(300 * time.Millisecond)
	n.noOrphans()
}

// A container that may trace can take the status socket from init's clone in a shared PID namespace. What it says there
// must not make another container's process the launch's, which would be killed with it.
func TestForgedCloneIsRefused(t *testing.T) {
	n := newNode(t)
	victim := n.start(n.workload("victim", "exec", "sleep", "1000"))
	w := n.workload("c1", "forge", "sleep", strconv.Itoa(victim.PID))
	if _, err := n.Launch(n.ctx(), w.Launch); err == nil {
		t.Error("got no error")
	}
	closeFiles(w.files)
	time.Sleep(100 * time.Millisecond)
	if !alive(victim.PID) {
		t.Error("the victim was killed")
	}
}
