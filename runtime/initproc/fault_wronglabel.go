//go:build fault_wronglabel

package initproc

import (
	"strings"
	"syscall"

	"github.com/podwright/podwright/runtime/launch"
)

// An init that gives workloads the label of privileged ones, for tests of what notices.
func init() {
	fault = func(table *[launch.OpReap + 1]step) {
		table[launch.OpExecLabel] = func(r *runner, op *launch.Op) (string, syscall.Errno) {
			wrong := *op
			wrong.Arg = strings.Replace(op.Arg, ":container_t:", ":spc_t:", 1)
			return execLabel(r, &wrong)
		}
	}
}
