//go:build fault_label

package initproc

import (
	"syscall"

	"github.com/podwright/podwright/runtime/launch"
)

// An init that sets no label, for tests of what notices.
func init() {
	fault = func(table *[launch.OpReap + 1]step) {
		table[launch.OpExecLabel] = func(*runner, *launch.Op) (string, syscall.Errno) { return "", 0 }
	}
}
