package cgroup

import (
	"errors"
	"strings"
	"testing"
)

func TestPodsByDriver(t *testing.T) {
	const id = "0123"
	tests := map[string]struct {
		driver, parent string
		want           Pod
		says           []string // of an error
	}{
		"slice of the kubelet": {DriverSystemd, "kubepods-besteffort-podab_cd.slice", Pod{
			Parent: "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podab_cd.slice",
			Scope:  "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podab_cd.slice/podwright-0123.scope",
		}, nil},
		"slice without a parent": {DriverSystemd, "system.slice", Pod{"/system.slice", "/system.slice/podwright-0123.scope"}, nil},
		"escaped name":           {DriverSystemd, `a\x2db.slice`, Pod{`/a\x2db.slice`, `/a\x2db.slice/podwright-0123.scope`}, nil},
		"path of a slice":        {DriverSystemd, "/a.slice/a-b.slice", Pod{"/a.slice/a-b.slice", "/a.slice/a-b.slice/podwright-0123.scope"}, nil},
		"wrong path of a slice":  {DriverSystemd, "/a-b.slice", Pod{}, []string{"/a-b.slice", "/a.slice/a-b.slice"}},
		"slice below a path":     {DriverSystemd, "x/a.slice", Pod{}, []string{"x/a.slice", "want the name of a slice"}},
		"path and systemd":       {DriverSystemd, "/kubepods/pod1", Pod{}, []string{"/kubepods/pod1", "does not end in .slice", DriverSystemd}},
		"scope":                  {DriverSystemd, "a.scope", Pod{}, []string{"a.scope", "does not end in .slice"}},
		"root slice":             {DriverSystemd, "-.slice", Pod{}, []string{"-.slice", "root"}},
		"empty part":             {DriverSystemd, "a--b.slice", Pod{}, []string{"a--b.slice", "empty part"}},
		"dash in front":          {DriverSystemd, "-a.slice", Pod{}, []string{"empty part"}},
		"dash at the end":        {DriverSystemd, "a-.slice", Pod{}, []string{"empty part"}},
		"nothing but the suffix": {DriverSystemd, ".slice", Pod{}, []string{"empty part"}},
		"percent sign":           {DriverSystemd, "a%b.slice", Pod{}, []string{"'%'", "not allowed"}},
		"line break":             {DriverSystemd, "a\nb.slice", Pod{}, []string{"not allowed"}},
		"way up":                 {DriverSystemd, "../a.slice", Pod{}, []string{"not allowed"}},
		"too long":               {DriverSystemd, strings.Repeat("a", 260) + ".slice", Pod{}, []string{"longer than 255"}},
		"path":                   {DriverCgroupfs, "/kubepods/besteffort/pod1", Pod{Parent: "/kubepods/besteffort/pod1"}, nil},
		"path that is a slice's": {DriverCgroupfs, "/a.slice", Pod{Parent: "/a.slice"}, nil},
		"slice and cgroupfs":     {DriverCgroupfs, "kubepods-besteffort.slice", Pod{}, []string{"kubepods-besteffort.slice", "absolute path", DriverCgroupfs}},
		"relative path":          {DriverCgroupfs, "kubepods/pod1", Pod{}, []string{"kubepods/pod1", "absolute"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			m := &Manager{driver: test.driver}
			m.scopes.manager = m
			got, err := m.Pod(test.parent, id)
			if test.says == nil {
				if err != nil || got != test.want {
					t.Errorf("%q: got %+v, %v, want %+v", test.parent, got, err, test.want)
				}
				return
			}
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("%q: got %+v, %v, want an invalid value", test.parent, got, err)
			}
			for _, part := range test.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q: %v, want it to say %q", test.parent, err, part)
				}
			}
		})
	}
}

func TestPodGroupIsAboveTheScope(t *testing.T) {
	for container, want := range map[string]string{
		"/a.slice/a-b.slice/podwright-0123.scope/c0": "/a.slice/a-b.slice",
		"/kubepods/pod1/c0":                          "/kubepods/pod1",
		"/podwright/c0":                              "/podwright",
		// A group that only looks like one of podwright's scopes, of somebody who may choose names with cgroupfs.
		"/pods/podwright-0123.scope/c0": "/pods/podwright-0123.scope",
	} {
		if got := PodGroup(container); got != want {
			t.Errorf("PodGroup(%q): got %q, want %q", container, got, want)
		}
	}
}

func TestDriverIsChosen(t *testing.T) {
	units := &fakeUnits{}
	tests := map[string]struct {
		cfg     Config
		version int
		want    string
		err     error
	}{
		"nothing said":             {Config{Units: units, HoldProgram: "x"}, 2, DriverCgroupfs, nil},
		"auto with systemd":        {Config{Driver: DriverAuto, Units: units, HoldProgram: "x"}, 2, DriverSystemd, nil},
		"auto with systemd on v1":  {Config{Driver: DriverAuto, Units: units, HoldProgram: "x"}, 1, DriverCgroupfs, nil},
		"auto without systemd":     {Config{Driver: DriverAuto}, 2, DriverCgroupfs, nil},
		"cgroupfs beside systemd":  {Config{Driver: DriverCgroupfs, Units: units, HoldProgram: "x"}, 2, DriverCgroupfs, nil},
		"systemd without systemd":  {Config{Driver: DriverSystemd, HoldProgram: "x"}, 2, "", ErrNotSupported},
		"systemd on v1":            {Config{Driver: DriverSystemd, Units: units, HoldProgram: "x"}, 1, "", ErrNotSupported},
		"systemd without program":  {Config{Driver: DriverSystemd, Units: units}, 2, "", ErrInvalid},
		"a driver that is no such": {Config{Driver: "openrc", Units: units}, 2, "", ErrInvalid},
	}
	for name, test := range tests {
		if got, err := chooseDriver(test.cfg, test.version); got != test.want || !errors.Is(err, test.err) {
			t.Errorf("%s: got %q, %v, want %q, %v", name, got, err, test.want, test.err)
		}
	}
}
