//go:build fault_caps

package initproc

import (
	"encoding/binary"
	"syscall"

	"github.com/podwright/podwright/runtime/launch"
)

// An init that leaves CAP_SYS_ADMIN in the bounding set, for tests of what notices.
func init() {
	const sysAdmin = 1 << 21
	fault = func(table *[launch.OpReap + 1]step) {
		table[launch.OpBounding] = func(r *runner, op *launch.Op) (string, syscall.Errno) {
			weak := *op
			weak.Data = binary.LittleEndian.AppendUint64(nil, mask64(op.Data, 0)|sysAdmin)
			return bounding(r, &weak)
		}
	}
}
