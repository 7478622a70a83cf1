package kerneltest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// Scope says what of a machine belongs to the node under test.
type Scope struct {
	Cgroup string   // a group at the top of every hierarchy; all groups below it count
	Dirs   []string // directories whose files and directories count
	// SkipFile leaves a path and what is below it out; nil leaves nothing out.
	SkipFile func(path string) bool
	// Programs are looked into: their open files, their mounts where they have others than the test, and threads that
	// stayed in a foreign namespace. The names stand for them, so that a restarted one, or one whose
	// arguments changed, is the same.
	Programs map[string]int
	// Ancestor's descendants are counted, zombies too; 0 counts none.
	Ancestor int
}

// Snapshot counts what a node is made of. What has no stable name, such as a pipe, is counted by kind.
type Snapshot map[string]int

// Take looks at the node. Things that come and go while it looks may be in it or not; Settled asks again.
func (s Scope) Take() (Snapshot, error) {
	found := Snapshot{}
	for _, look := range []func(Snapshot) error{s.mounts, s.network, s.cgroups, s.files, s.programs, s.processes} {
		if err := look(found); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// openFile begins the keys of what programs have open.
const openFile = "open file of "

func (s Snapshot) add(format string, args ...any) { s[fmt.Sprintf(format, args...)]++ }

// Diff lists what is in after and not in before, "left", and the other way round, "gone". An open file that was closed
// is no loss: a program may have been busy before.
func (s Snapshot) Diff(after Snapshot) []string {
	var diff []string
	for _, key := range slices.Sorted(maps.Keys(after)) {
		if n := after[key] - s[key]; n > 0 {
			diff = append(diff, fmt.Sprintf("left: %d × %s", n, key))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(s)) {
		if n := s[key] - after[key]; n > 0 && !strings.HasPrefix(key, openFile) {
			diff = append(diff, fmt.Sprintf("gone: %d × %s", n, key))
		}
	}
	return diff
}

// MustTake is Take for tests.
func (s Scope) MustTake(t testing.TB) Snapshot {
	t.Helper()
	found, err := s.Take()
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// Settled reports an error unless the node is as it was in before, at the latest after patience: namespaces and
// interfaces die asynchronously. It says whether it is.
func (s Scope) Settled(t testing.TB, before Snapshot, patience time.Duration) bool {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		diff := before.Diff(s.MustTake(t))
		if len(diff) == 0 {
			return true
		}
		if time.Now().After(deadline) {
			const most = 40
			if n := len(diff); n > most {
				diff = append(diff[:most], fmt.Sprintf("and %d more", n-most))
			}
			t.Errorf("the node is not as it was, after %s:\n%s", patience, strings.Join(diff, "\n"))
			return false
		}
	}
}
