package podsandbox

import (
	"strings"
	"testing"

	"github.com/podwright/podwright/runtime/cgroup"
)

func TestOnlyAFailureAfterAKillIsOneForWantOfMemory(t *testing.T) {
	const (
		asked  = 1 << iota // by the stop signal
		killed             // by podwright
	)
	tests := []struct {
		name string
		code int
		own  uint64
		sent int
		want bool
	}{
		{"first process killed", 137, 1, 0, true},
		{"first process killed in the time it had to end", 137, 1, asked, true},
		{"killed by podwright after a child was", 137, 1, asked | killed, false},
		{"killed by somebody else", 137, 0, 0, false},
		{"gave up without its child", 1, 1, 0, true},
		{"gave up with the last code that is its own", 127, 1, 0, true},
		{"ended by another signal", 134, 1, 0, false},
		{"terminated, by whomever (kubernetes 140718)", 143, 1, 0, false},
		{"terminated when asked", 143, 1, asked, false},
		{"failed when asked", 1, 1, asked, false},
		{"ended well", 0, 5, 0, false},
		{"failed by itself", 1, 0, 0, false},
	}
	for _, test := range tests {
		if got := oomEnd(test.code, test.own, test.sent&asked != 0, test.sent&killed != 0); got != test.want {
			t.Errorf("%s (code %d, %d own): got %v, want %v", test.name, test.code, test.own, got, test.want)
		}
	}
}

func TestTheLimitThatWasReachedIsNamed(t *testing.T) {
	none := cgroup.MemoryLimit{Bytes: cgroup.NoLimit}
	limit := func(bytes, hits uint64) cgroup.MemoryLimit { return cgroup.MemoryLimit{Bytes: bytes, Hits: hits} }
	tests := []struct {
		name     string
		own, pod cgroup.MemoryLimit
		before   uint64
		want     string
	}{
		{"the container's", limit(10, 1), none, 0, "own limit of 10 bytes"},
		{"the container's below the pod's", limit(10, 1), limit(20, 7), 7, "own limit of 10 bytes"},
		{"the pod's", none, limit(20, 3), 2, "pod's limit of 20 bytes was reached (cgroup /pods/x)"},
		{"the pod's above the container's", limit(10, 0), limit(20, 1), 0, "pod's limit of 20 bytes"},
		{"the pod's, before this container's time", none, limit(20, 3), 3, "the node"},
		{"the node's", limit(10, 0), limit(20, 0), 0, "the node"},
		{"the container's, on v1", cgroup.MemoryLimit{Bytes: 10, AtPeak: true}, cgroup.MemoryLimit{Bytes: 20, AtPeak: true}, 0, "own limit of 10 bytes"},
		{"the pod's, on v1", none, cgroup.MemoryLimit{Bytes: 20, AtPeak: true}, 0, "pod's limit of 20 bytes was reached, now or before its start"},
		{"counts without a limit", limit(cgroup.NoLimit, 4), limit(cgroup.NoLimit, 4), 0, "the node"},
	}
	for _, test := range tests {
		if got := oomCause(test.own, test.pod, test.before, "/pods/x"); !strings.Contains(got, test.want) {
			t.Errorf("%s: got %q, want %q in it", test.name, got, test.want)
		}
	}
}
