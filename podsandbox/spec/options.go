package spec

import (
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// bindAttributes are those a bind can have of its own.
const bindAttributes = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC

// mountOptions is a parsed OCI option list.
type mountOptions struct {
	bind, recursive bool
	propagation     Propagation
	propagated      bool // said so
	attr            uint64
	readOnlyBelow   bool
	mapBelow        bool     // id mappings hold for the mounts below too
	data            []string // for the file system itself
}

// attributeOptions are the options that are attributes of a mount, with what they set and clear. Access time is one
// field of several bits (mount_setattr(2)).
var attributeOptions = map[string]struct{ set, clear uint64 }{
	"ro": {set: unix.MOUNT_ATTR_RDONLY}, "rw": {clear: unix.MOUNT_ATTR_RDONLY},
	"nosuid": {set: unix.MOUNT_ATTR_NOSUID}, "suid": {clear: unix.MOUNT_ATTR_NOSUID},
	"nodev": {set: unix.MOUNT_ATTR_NODEV}, "dev": {clear: unix.MOUNT_ATTR_NODEV},
	"noexec": {set: unix.MOUNT_ATTR_NOEXEC}, "exec": {clear: unix.MOUNT_ATTR_NOEXEC},
	"nodiratime": {set: unix.MOUNT_ATTR_NODIRATIME}, "diratime": {clear: unix.MOUNT_ATTR_NODIRATIME},
	"nosymfollow": {set: unix.MOUNT_ATTR_NOSYMFOLLOW}, "symfollow": {clear: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"relatime":    {set: unix.MOUNT_ATTR_RELATIME, clear: unix.MOUNT_ATTR__ATIME},
	"noatime":     {set: unix.MOUNT_ATTR_NOATIME, clear: unix.MOUNT_ATTR__ATIME},
	"strictatime": {set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME},
}

var propagationOptions = map[string]Propagation{
	"private": PropagationPrivate, "rprivate": PropagationPrivate,
	"slave": PropagationSlave, "rslave": PropagationSlave,
	"shared": PropagationShared, "rshared": PropagationShared,
}

// parseOptions reads the options of one mount (OCI runtime-spec, "Linux mount options"). "defaults" is nothing.
func parseOptions(m specs.Mount) (mountOptions, error) {
	var o mountOptions
	for _, option := range m.Options {
		if attribute, ok := attributeOptions[option]; ok {
			o.attr = o.attr&^attribute.clear | attribute.set
			continue
		}
		if p, ok := propagationOptions[option]; ok {
			o.propagation, o.propagated = p, true
			continue
		}
		switch option {
		case "bind":
			o.bind = true
		case "rbind":
			o.bind, o.recursive = true, true
		case "rro":
			o.attr, o.readOnlyBelow = o.attr|unix.MOUNT_ATTR_RDONLY, true
		case "idmap":
		case "ridmap":
			o.mapBelow = true
		case "defaults", "":
		case "remount", "tmpcopyup", "unbindable", "runbindable":
			return o, fmt.Errorf("mount %s: option %q: %w", m.Destination, option, ErrUnsupported)
		default:
			if strings.ContainsRune(option, 0) {
				return o, fmt.Errorf("mount %s: option %q: %w", m.Destination, option, ErrUnsupported)
			}
			o.data = append(o.data, option)
		}
	}
	if m.Type == "bind" {
		o.bind = true
	}
	asked := slices.Contains(m.Options, "idmap") || o.mapBelow
	if has := len(m.UIDMappings) > 0 && len(m.GIDMappings) > 0; asked && !has || (len(m.UIDMappings)+len(m.GIDMappings) > 0) && (!has || !o.bind) {
		return o, fmt.Errorf("mount %s: id mappings: want a bind with mappings of users and of groups: %w", m.Destination, ErrUnsupported)
	}
	if o.bind && len(o.data) > 0 {
		return o, fmt.Errorf("bind %s: option %q: %w", m.Destination, o.data[0], ErrUnsupported)
	}
	if o.bind && o.attr&^bindAttributes != 0 {
		return o, fmt.Errorf("bind %s: options %q: %w", m.Destination, m.Options, ErrUnsupported)
	}
	if !o.bind && (o.readOnlyBelow || o.propagated && o.propagation != PropagationPrivate) {
		return o, fmt.Errorf("mount %s of a new %s: propagation: %w", m.Destination, m.Type, ErrUnsupported)
	}
	return o, nil
}
