//go:build fault_rlimit

package initproc

import (
	"syscall"

	"github.com/podwright/podwright/runtime/launch"
)

// An init that sets no limit, for tests of what notices.
func init() {
	fault = func(table *[launch.OpReap + 1]step) {
		table[launch.OpRlimit] = func(*runner, *launch.Op) (string, syscall.Errno) { return "", 0 }
	}
}
