package spec

import (
	"io/fs"
	"path"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// defaultDevices exist in every container (OCI runtime-spec, "Default Devices").
var defaultDevices = [...]Device{
	{Path: "/dev/null", Type: "c", Major: 1, Minor: 3, Mode: 0o666, Access: "rwm"},
	{Path: "/dev/zero", Type: "c", Major: 1, Minor: 5, Mode: 0o666, Access: "rwm"},
	{Path: "/dev/full", Type: "c", Major: 1, Minor: 7, Mode: 0o666, Access: "rwm"},
	{Path: "/dev/random", Type: "c", Major: 1, Minor: 8, Mode: 0o666, Access: "rwm"},
	{Path: "/dev/urandom", Type: "c", Major: 1, Minor: 9, Mode: 0o666, Access: "rwm"},
	{Path: "/dev/tty", Type: "c", Major: 5, Minor: 0, Mode: 0o666, Access: "rwm"},
}

const anyNumber = -1

// terminalRules allow what terminals need and no default node gives: the console, the multiplexer, devpts slaves.
var terminalRules = [...]Device{
	{Type: "c", Major: 5, Minor: 1, Access: "rwm"},
	{Type: "c", Major: 5, Minor: 2, Access: "rwm"},
	{Type: "c", Major: 136, Minor: anyNumber, Access: "rwm"},
}

// devicesOf gives the nodes beyond the default ones and the group's rules. Making a node is allowed for every number,
// as the field does: it is harmless where opening it is denied.
func devicesOf(in *ContainerInput) ([]specs.LinuxDevice, []specs.LinuxDeviceCgroup, error) {
	privileged := in.Config.GetLinux().GetSecurityContext().GetPrivileged()
	for i, asked := range in.Config.GetDevices() {
		if !resolved(path.Clean(asked.GetContainerPath()), in.Devices) {
			return nil, nil, invalid(indexed("devices", i)+".host_path", asked.GetHostPath(), "no device there")
		}
	}
	var nodes []specs.LinuxDevice
	var rules []specs.LinuxDeviceCgroup
	if privileged {
		rules = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	} else {
		rules = []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}, {Allow: true, Type: "c", Access: "m"}, {Allow: true, Type: "b", Access: "m"}}
		for _, d := range append(defaultDevices[:len(defaultDevices):len(defaultDevices)], terminalRules[:]...) {
			rules = append(rules, rule(d))
		}
	}
	for i, d := range in.Devices {
		if err := checkResolved(indexed("devices", i), d); err != nil {
			return nil, nil, err
		}
		d.Path = cleanDevice(d)
		if !ownDevice(d.Path) {
			mode := fs.FileMode(d.Mode & 0o777)
			nodes = append(nodes, specs.LinuxDevice{Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor, FileMode: &mode, UID: ptr(d.UID), GID: ptr(d.GID)})
		}
		if !privileged {
			rules = append(rules, rule(d))
		}
	}
	return nodes, rules, nil
}

func cleanDevice(d Device) string { return path.Clean(d.Path) }

func rule(d Device) specs.LinuxDeviceCgroup {
	out := specs.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: ptr(d.Major), Access: d.Access}
	if d.Minor != anyNumber {
		out.Minor = ptr(d.Minor)
	}
	return out
}

// resolved says whether the caller found something for a requested device: itself, or what a directory holds.
func resolved(target string, devices []Device) bool {
	for _, d := range devices {
		if p := path.Clean(d.Path); p == target || strings.HasPrefix(p, target+"/") {
			return true
		}
	}
	return false
}

func checkResolved(field string, d Device) error {
	switch {
	case checkAbsolute(field+".container_path", d.Path) != nil:
		return invalid(field+".container_path", d.Path, "no absolute path")
	case d.Type != "c" && d.Type != "b", d.Major < 0, d.Minor < 0:
		return invalid(field+".host_path", d.Path, "no character or block device")
	case !goodAccess(d.Access):
		return invalid(field+".permissions", d.Access, "want one or more of r, w and m, each once")
	}
	return nil
}

// ownDevice says which paths a container always makes by itself, whatever the host has there.
func ownDevice(p string) bool {
	for _, d := range defaultDevices {
		if p == d.Path {
			return true
		}
	}
	for _, top := range []string{"/dev/ptmx", "/dev/console", "/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd"} {
		if p == top || strings.HasPrefix(p, top+"/") {
			return true
		}
	}
	return false
}
