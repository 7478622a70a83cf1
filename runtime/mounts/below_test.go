package mounts

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/sys"
)

func TestReadOnlyBelowIsFoundWhereTheKernelHasIt(t *testing.T) {
	newOpener(t)
	unchangedTable(t)
	if err := ProbeReadOnlyBelow(); err != nil {
		t.Error(err)
	}
}

// A kernel that takes the call and leaves what is below writable would be found out.
func TestTreeThatIsWritableBelowFailsTheProbe(t *testing.T) {
	newOpener(t)
	unchangedTable(t)
	for name, attr := range map[string]struct {
		recursive bool
		set       uint64
	}{"nothing read-only": {}, "the top alone": {false, unix.MOUNT_ATTR_RDONLY}, "another attribute": {true, unix.MOUNT_ATTR_NOEXEC}} {
		var err error
		onOwnThread(func() {
			var tree *os.File
			if tree, err = stageNested(); err != nil {
				return
			}
			defer tree.Close()
			if err = sys.MountSetattr(tree, attr.recursive, unix.MountAttr{Attr_set: attr.set}); err == nil {
				err = checkReadOnlyBelow(tree)
			}
		})
		if !errors.Is(err, ErrNotSupported) {
			t.Errorf("%s: got %v, want ErrNotSupported", name, err)
		}
	}
}
