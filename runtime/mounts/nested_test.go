package mounts

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/kerneltest"
)

func TestTmpfsBelowIsWhatIsMountedThereAlone(t *testing.T) {
	table := strings.Join([]string{
		"30 1 254:0 / / rw - ext4 /dev/vda rw",
		"31 30 0:40 / /v/data/own rw,nosuid shared:5 - tmpfs none rw",
		`32 31 0:41 / /v/data/own/with\040space rw - tmpfs none rw`,
		"33 30 0:42 / /run rw - tmpfs run rw",
		"34 30 0:42 / /v/data/run rw - tmpfs run rw",
		"35 30 0:43 /part /v/data/part rw - tmpfs none rw",
		"36 30 0:44 / /v/database rw - tmpfs none rw",
		"37 30 0:45 / /v/data rw - tmpfs none rw",
		"38 30 254:1 / /v/data/disk rw - ext4 /dev/vdb rw",
	}, "\n")
	want := []TmpfsMount{{"/v/data/own", unix.Mkdev(0, 40)}, {"/v/data/own/with space", unix.Mkdev(0, 41)}}
	if got, err := tmpfsBelow(strings.NewReader(table), "/v/data"); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if got, err := tmpfsBelow(strings.NewReader(table), "/v/data/disk"); err != nil || len(got) != 0 {
		t.Errorf("below a disk: got %v, %v", got, err)
	}
}

func TestTmpfsBelowReadsTheKernelsTable(t *testing.T) {
	kerneltest.Root(t)
	kerneltest.Subprocess(t, unix.CLONE_NEWNS, func(t *testing.T) {
		top := t.TempDir()
		mkdirs(t, top+"/a b")
		if err := unix.Mount("none", top+"/a b", "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(top+"/a b", unix.MNT_DETACH)
		var st unix.Stat_t
		if err := unix.Stat(top+"/a b", &st); err != nil {
			t.Fatal(err)
		}
		got, err := TmpfsBelow(top)
		if want := []TmpfsMount{{top + "/a b", st.Dev}}; err != nil || !slices.Equal(got, want) {
			t.Errorf("got %v, %v, want %v", got, err, want)
		}
	})
}
