package spec

import (
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// userOptions are a pod's with the user namespace that the kubelet gives its first one.
func userOptions() *criv1.NamespaceOption {
	mapping := func() []*criv1.IDMapping { return []*criv1.IDMapping{{HostId: 65536, Length: 65536}} }
	return &criv1.NamespaceOption{Pid: criv1.NamespaceMode_CONTAINER, UsernsOptions: &criv1.UserNamespace{Uids: mapping(), Gids: mapping()}}
}

func userSandbox() *criv1.PodSandboxConfig {
	sandbox := goodSandbox()
	sandbox.Linux.SecurityContext.NamespaceOptions = userOptions()
	return sandbox
}

func TestUserNamespacesThatAreRefused(t *testing.T) {
	const options, userns = "linux.security_context.namespace_options.", usernsField
	for _, c := range []struct {
		name, field string
		spoil       func(*criv1.NamespaceOption)
	}{
		{"no mapping", userns + "uids", func(o *criv1.NamespaceOption) { o.UsernsOptions.Uids = nil }},
		{"no mapping of groups", userns + "gids", func(o *criv1.NamespaceOption) { o.UsernsOptions.Gids = nil }},
		{"two mappings", userns + "uids", func(o *criv1.NamespaceOption) {
			o.UsernsOptions.Uids = append(o.UsernsOptions.Uids, &criv1.IDMapping{ContainerId: 70000, HostId: 200000, Length: 1})
		}},
		{"without root", userns + "uids[0].container_id", func(o *criv1.NamespaceOption) { o.UsernsOptions.Uids[0].ContainerId = 1 }},
		{"of no length", userns + "gids[0].length", func(o *criv1.NamespaceOption) { o.UsernsOptions.Gids[0].Length = 0 }},
		{"over the node's root", userns + "uids[0].host_id", func(o *criv1.NamespaceOption) { o.UsernsOptions.Uids[0].HostId = 0 }},
		{"beyond the last id", userns + "uids[0].host_id", func(o *criv1.NamespaceOption) { o.UsernsOptions.Uids[0].HostId = 1<<32 - 65536 }},
		{"that wraps", userns + "gids[0].host_id", func(o *criv1.NamespaceOption) { o.UsernsOptions.Gids[0].Length = 1<<32 - 1 }},
		{"of a container", userns + "mode", func(o *criv1.NamespaceOption) { o.UsernsOptions.Mode = criv1.NamespaceMode_CONTAINER }},
		{"of a target", userns + "mode", func(o *criv1.NamespaceOption) { o.UsernsOptions.Mode = criv1.NamespaceMode_TARGET }},
		{"the node's with a mapping", userns + "uids", func(o *criv1.NamespaceOption) {
			o.UsernsOptions.Mode, o.UsernsOptions.Gids = criv1.NamespaceMode_NODE, nil
		}},
		{"with the node's network", options + "network", func(o *criv1.NamespaceOption) { o.Network = criv1.NamespaceMode_NODE }},
		{"with the node's shared memory", options + "ipc", func(o *criv1.NamespaceOption) { o.Ipc = criv1.NamespaceMode_NODE }},
		{"with the node's processes", options + "pid", func(o *criv1.NamespaceOption) { o.Pid = criv1.NamespaceMode_NODE }},
	} {
		sandbox := userSandbox()
		c.spoil(sandbox.Linux.SecurityContext.NamespaceOptions)
		t.Run(c.name, func(t *testing.T) { wantField(t, ValidateSandbox(sandbox, testNode(2)), c.field) })
	}
	if err := ValidateSandbox(userSandbox(), testNode(2)); err != nil {
		t.Errorf("the kubelet's own mapping: %v", err)
	}
	unable := testNode(2)
	unable.UserNamespaces = false
	wantField(t, ValidateSandbox(userSandbox(), unable), userns+"mode")
}

func TestAContainerHasItsSandboxesUserNamespace(t *testing.T) {
	other := userOptions()
	other.UsernsOptions.Gids[0].HostId++
	host := &criv1.NamespaceOption{Pid: criv1.NamespaceMode_CONTAINER}
	for _, c := range []struct {
		name    string
		options *criv1.NamespaceOption
		sandbox *criv1.PodSandboxConfig
		field   string
	}{
		{"says nothing", nil, userSandbox(), ""},
		{"the same", userOptions(), userSandbox(), ""},
		{"the node's in both", host, goodSandbox(), ""},
		{"another mapping", other, userSandbox(), usernsField + "uids"},
		{"the node's in a sandbox with one", host, userSandbox(), usernsField + "mode"},
		{"one in a sandbox with the node's", userOptions(), goodSandbox(), usernsField + "mode"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := goodContainer()
			config.Linux.SecurityContext.NamespaceOptions = c.options
			err := ValidateContainer(config, c.sandbox, testNode(2))
			if c.field != "" {
				wantField(t, err, c.field)
			} else if err != nil {
				t.Errorf("got %v, want no error", err)
			}
		})
	}
}

func TestMappingsOfMountsThatAreRefused(t *testing.T) {
	m := func(container, host, length uint32) *criv1.IDMapping {
		return &criv1.IDMapping{ContainerId: container, HostId: host, Length: length}
	}
	list := func(all ...*criv1.IDMapping) []*criv1.IDMapping { return all }
	fits := list(m(0, 65536, 65536))
	for _, c := range []struct {
		name       string
		uids, gids []*criv1.IDMapping
		sandbox    *criv1.PodSandboxConfig
		field      string
	}{
		{"of the pod", fits, fits, userSandbox(), ""},
		{"of a part of the pod's ids", list(m(1000, 66536, 1)), fits, userSandbox(), ""},
		{"in a pod with the node's", list(m(0, 1000, 10), m(10, 0, 10)), fits, goodSandbox(), ""},
		{"of users alone", fits, nil, userSandbox(), "mounts[0].uidMappings"},
		{"of no length", list(m(0, 65536, 0)), fits, userSandbox(), "mounts[0].uidMappings[0].length"},
		{"overlap on the node", list(m(0, 65536, 10), m(10, 65545, 10)), fits, userSandbox(), "mounts[0].uidMappings[1]"},
		{"overlap on disk", fits, list(m(0, 65536, 10), m(9, 65556, 10)), userSandbox(), "mounts[0].gidMappings[1]"},
		{"beyond the last id", list(m(1<<32-1, 65536, 1)), fits, userSandbox(), "mounts[0].uidMappings[0].container_id"},
		{"of nobody in the pod", fits, list(m(0, 65535, 10)), userSandbox(), "mounts[0].gidMappings[0].host_id"},
		{"more than the kernel takes", make([]*criv1.IDMapping, 341), fits, goodSandbox(), "mounts[0].uidMappings"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := goodContainer()
			config.Mounts[0].UidMappings, config.Mounts[0].GidMappings = c.uids, c.gids
			err := ValidateContainer(config, c.sandbox, testNode(2))
			if c.field != "" {
				wantField(t, err, c.field)
			} else if err != nil {
				t.Errorf("got %v, want no error", err)
			}
		})
	}
	config := goodContainer()
	config.Mounts[0].Propagation = criv1.MountPropagation_PROPAGATION_BIDIRECTIONAL
	wantField(t, ValidateContainer(config, userSandbox(), testNode(2)), "mounts[0].propagation")
}

func TestUsersThatTheUserNamespaceLacksAreRefused(t *testing.T) {
	user := &UserMapping{UID: specs.LinuxIDMapping{HostID: 70000, Size: 1000}, GID: specs.LinuxIDMapping{HostID: 80000, Size: 10}}
	const sc = "linux.security_context."
	for _, c := range []struct {
		id        identity
		fromImage bool
		field     string
	}{
		{identity{uid: 1000}, false, sc + "run_as_user"}, {identity{gid: 10}, false, sc + "run_as_group"},
		{identity{groups: []uint32{0, 10}}, false, sc + "supplemental_groups"}, {identity{uid: 1000}, true, "image.config.User"},
	} {
		wantField(t, checkMapped(c.id, user, c.fromImage), c.field)
	}
	last := identity{uid: 999, gid: 9, groups: []uint32{9}}
	if err := checkMapped(last, user, false); err != nil {
		t.Errorf("the last ids: %v", err)
	}
	if err := checkMapped(identity{uid: 1 << 31}, nil, false); err != nil {
		t.Errorf("any id without a user namespace: %v", err)
	}
	if uid, gid := user.Outside(5, 6); uid != 70005 || gid != 80006 {
		t.Errorf("ids on the node: got %d:%d, want 70005:80006", uid, gid)
	}
}

func TestReaperOfAUserNamespaceIsAUserThatItHas(t *testing.T) {
	user := &UserMapping{UID: specs.LinuxIDMapping{HostID: 70000, Size: 1000}, GID: specs.LinuxIDMapping{HostID: 70000, Size: 1000}}
	l, err := Reaper(ReaperInput{ID: "5a5a", Node: testNode(2), NetPath: "/run/netns/5a5a", IPCPath: "/ipc", UTSPath: "/uts", UserPath: "/user", User: user})
	if err != nil {
		t.Fatal(err)
	}
	checkLaunchable(t, l)
	compare(t, "testdata/reaper-user.txt", []byte(Print(l)))
}

func TestRecursiveReadOnlyNeedsTheKernel(t *testing.T) {
	config, node := goodContainer(), testNode(2)
	config.Mounts[0].Readonly, config.Mounts[0].RecursiveReadOnly = true, true
	if err := ValidateContainer(config, goodSandbox(), node); err != nil {
		t.Errorf("on a node that can: %v", err)
	}
	node.RecursiveReadOnly = false
	wantField(t, ValidateContainer(config, goodSandbox(), node), "mounts[0].recursive_read_only")
}
