package cgroup

import (
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func device(allow bool, kind string, major, minor int64, access string) specs.LinuxDeviceCgroup {
	d := specs.LinuxDeviceCgroup{Allow: allow, Type: kind, Access: access}
	if major >= 0 {
		d.Major = &major
	}
	if minor >= 0 {
		d.Minor = &minor
	}
	return d
}

// defaultDevices is what an unprivileged container gets, cut to three.
func defaultDevices() []specs.LinuxDeviceCgroup {
	return []specs.LinuxDeviceCgroup{
		device(false, "a", -1, -1, "rwm"),
		device(true, "c", -1, -1, "m"),
		device(true, "c", 1, 3, "rwm"), // null
		device(true, "c", 1, 5, "r"),   // zero, for reading only
	}
}

// deviceProbe prints, one letter per attempt, whether it may: read null, write
// null, read zero, write zero, read and write zero at once, read urandom.
const deviceProbe = `exec 2>&-; try() { if ( eval "$1" ); then printf y; else printf n; fi; }
	try ': < /dev/null'; try ': > /dev/null'; try ': < /dev/zero'; try ': > /dev/zero'; try ': <> /dev/zero'; try ': < /dev/urandom'; echo`

func TestDevicesAreFilteredAndUpdated(t *testing.T) {
	for _, m := range []*Manager{newManager(t), unifiedManager(t)} {
		t.Run(fmt.Sprintf("v%d", m.version), func(t *testing.T) {
			if m.version == 1 {
				needControllers(t, m, "devices")
			}
			ctx, path := testContext(t), groupName(t, m)
			if err := m.Create(ctx, path, &specs.LinuxResources{Devices: defaultDevices()}); err != nil {
				t.Fatal(err)
			}
			check := func(when, want string) {
				t.Helper()
				_, out := join(t, m, path, deviceProbe)
				if line, err := out.ReadString('\n'); strings.TrimSpace(line) != want {
					t.Errorf("%s: got %q (%v), want %q", when, line, err, want)
				}
			}
			check("default", "yyynnn")
			more := append(defaultDevices(), device(true, "c", 1, 9, "rwm"), device(true, "c", 1, 5, "w"))
			for range 2 {
				if err := m.Update(ctx, path, &specs.LinuxResources{Devices: more}); err != nil {
					t.Fatal(err)
				}
			}
			check("urandom and zero added", "yyyyyy")
			less := append(defaultDevices(), device(false, "c", 1, 3, "w"))
			if err := m.Update(ctx, path, &specs.LinuxResources{Devices: less}); err != nil {
				t.Fatal(err)
			}
			check("null taken for writing", "ynynnn")
			if err := m.Update(ctx, path, &specs.LinuxResources{CPU: &specs.LinuxCPU{}}); err != nil {
				t.Fatal(err)
			}
			check("an update without devices", "ynynnn")
			all := []specs.LinuxDeviceCgroup{device(true, "a", -1, -1, "rwm")}
			if err := m.Update(ctx, path, &specs.LinuxResources{Devices: all}); err != nil {
				t.Fatal(err)
			}
			check("everything", "yyyyyy")
			// Recreating it, as a restarted daemon may, filters again.
			if err := m.Create(ctx, path, &specs.LinuxResources{Devices: defaultDevices()}); err != nil {
				t.Fatal(err)
			}
			check("default again", "yyynnn")
		})
	}
}

// TestDeviceProgramLoads holds the program against the kernel's verifier for
// shapes of rules that reach different ends of the compiler.
func TestDeviceProgramLoads(t *testing.T) {
	m := unifiedManager(t)
	ctx, path := testContext(t), groupName(t, m)
	if err := m.Create(ctx, path, nil); err != nil {
		t.Fatal(err)
	}
	many := []specs.LinuxDeviceCgroup{device(false, "a", -1, -1, "rwm")}
	for i := range int64(200) {
		many = append(many, device(true, "b", 8, i, "rw"))
	}
	for name, devices := range map[string][]specs.LinuxDeviceCgroup{
		"no rule":                  {},
		"only a denial":            {device(false, "a", -1, -1, "rwm")},
		"only a grant":             {device(true, "", -1, -1, "")},
		"a grant, then a denial":   {device(true, "a", -1, -1, "rwm"), device(false, "c", 1, 3, "w")},
		"a denial without a grant": {device(false, "b", -1, 3, "w")},
		"everything in the middle": {device(true, "c", 1, 3, "r"), device(false, "a", -1, -1, "rwm"), device(true, "c", 1, 5, "r")},
		"everything last":          {device(true, "c", 1, 3, "r"), device(true, "a", -1, -1, "rwm")},
		"two hundred":              many,
	} {
		if err := m.Update(ctx, path, &specs.LinuxResources{Devices: devices}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDeviceDiffNeverTakesWhatStays(t *testing.T) {
	rules := func(devices []specs.LinuxDeviceCgroup) deviceSet {
		r, err := deviceRules(devices)
		if err != nil {
			t.Fatal(err)
		}
		set, ok := deviceSetOf(r)
		if !ok {
			t.Fatalf("no set for %v", devices)
		}
		return set
	}
	have := rules(defaultDevices())
	want := rules(append(defaultDevices(), device(true, "c", 1, 9, "rwm"), device(false, "c", 1, 3, "wm"), device(true, "c", 1, 5, "w")))
	var got []string
	for _, w := range deviceDiffV1(have, want) {
		got = append(got, w.File+" "+w.Value)
	}
	text := strings.Join(got, "\n")
	if expect := "devices.allow c 1:5 w\ndevices.allow c 1:9 rwm\ndevices.deny c 1:3 wm"; text != expect {
		t.Errorf("got\n%s\nwant\n%s", text, expect)
	}
	if again := deviceDiffV1(want, want); len(again) != 0 {
		t.Errorf("no change gives writes: %v", again)
	}
}
