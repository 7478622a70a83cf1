//go:build fault_seccomp

package initproc

import (
	"syscall"

	"github.com/podwright/podwright/runtime/launch"
)

// An init that loads no filter, for tests of what notices.
func init() {
	fault = func(table *[launch.OpReap + 1]step) {
		table[launch.OpSeccomp] = func(*runner, *launch.Op) (string, syscall.Errno) { return "", 0 }
	}
}
