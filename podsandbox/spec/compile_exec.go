package spec

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/runtime/launch"
)

// ExecSpec gives the part of a container's spec that Exec reads, a few kilobytes, to be kept in memory: execs are
// the hot path. Seccomp is reduced to whether there is a profile.
func ExecSpec(s *specs.Spec) *specs.Spec {
	out := &specs.Spec{Version: s.Version, Process: s.Process, Linux: &specs.Linux{Namespaces: s.Linux.Namespaces}}
	if s.Linux.Seccomp != nil {
		out.Linux.Seccomp = &specs.LinuxSeccomp{}
	}
	return out
}

// Exec plans a process inside a running container, with the user, groups, capabilities, filter, limits and environment
// of the container's own (B28, B29). Spec may be what ExecSpec gave.
func Exec(in ExecInput) (*Launchable, error) {
	if in.Spec == nil || in.Spec.Process == nil || in.Spec.Linux == nil {
		return nil, fmt.Errorf("plan exec: no container spec: %w", ErrInvalid)
	}
	if len(in.Args) == 0 || in.Args[0] == "" {
		return nil, invalid("cmd", "", "missing")
	}
	for _, arg := range in.Args {
		if strings.ContainsRune(arg, 0) {
			return nil, invalid("cmd", arg, "holds a NUL byte")
		}
	}
	process := *in.Spec.Process
	process.Args, process.Terminal = slices.Clone(in.Args), in.Terminal
	process.Env = slices.Clone(process.Env) // appended to below, and the container's is shared by all execs (CVE-2021-21334)
	hasTerm := slices.ContainsFunc(process.Env, func(e string) bool { return strings.HasPrefix(e, "TERM=") })
	if in.Terminal && !hasTerm {
		process.Env = append(process.Env, defaultTerm)
	}
	p := newPlanner(in.ID, &specs.Spec{Process: &process, Linux: in.Spec.Linux}, in.Node)
	p.joinCgroups()
	p.enterUser()
	p.oomScore(&process)
	var join uint64
	for _, ns := range in.Spec.Linux.Namespaces {
		join |= cloneFlag(ns.Type)
	}
	if join&unix.CLONE_NEWNS == 0 {
		return nil, fmt.Errorf("plan exec: the container has no mount namespace: %w", ErrUnsupported)
	}
	p.out.JoinIndex = p.need(Need{Kind: NeedContainer}, "container")
	p.addFd(p.out.JoinIndex, launch.Op{Code: launch.OpSetns, Step: "join container", Flags: join})
	if err := p.process(in.Filter, in.FilterFlags); err != nil {
		return nil, err
	}
	return p.out, nil
}

const (
	reaperUser = 65534 // nobody's: it owns nothing
	// reaperOOMScore spares the reaper, whose end is the end of every process of the sandbox.
	reaperOOMScore = -998
)

// Reaper plans PID 1 of a sandbox whose containers share a PID namespace. They see it, so it has their namespaces and
// nothing else: the empty root that OpReap makes by itself, no capability, no user of anyone's.
func Reaper(in ReaperInput) (*Launchable, error) {
	p := newPlanner(in.ID, &specs.Spec{Process: &specs.Process{SelinuxLabel: in.ProcessLabel}, Linux: &specs.Linux{MountLabel: in.MountLabel}}, in.Node)
	p.out.NewPID = true
	user := uint32(reaperUser)
	if in.User != nil {
		p.spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.UserNamespace, Path: in.UserPath}}
		user = min(user, in.User.UID.Size-1, in.User.GID.Size-1)
	}
	p.joinCgroups()
	p.enterUser()
	p.oomScore(&specs.Process{OOMScoreAdj: ptr(max(reaperOOMScore, in.Node.MinOOMScoreAdj))})
	for _, ns := range []struct {
		kind specs.LinuxNamespaceType
		path string
	}{{specs.NetworkNamespace, in.NetPath}, {specs.IPCNamespace, in.IPCPath}, {specs.UTSNamespace, in.UTSPath}} {
		if ns.path != "" {
			p.join(ns.kind, ns.path)
		}
	}
	p.add(launch.Op{Code: launch.OpUnshare, Step: "unshare namespaces", Flags: unix.CLONE_NEWCGROUP})
	p.keyring()
	p.add(launch.Op{Code: launch.OpSetsid, Step: "setsid"})
	p.add(launch.Op{Code: launch.OpUmask, Step: "set umask", Number: workloadUmask})
	p.confine(in.AppArmor)
	p.execLabel()
	p.add(launch.Op{Code: launch.OpBounding, Step: "drop bounding capabilities", Data: binary.LittleEndian.AppendUint64(nil, 0)})
	p.add(launch.Op{Code: launch.OpUser, Step: "set user", Flags: uint64(user), Number: int64(user), Strings: []string{}})
	p.add(launch.Op{Code: launch.OpCaps, Step: "set capabilities", Data: make([]byte, 5*8)})
	p.add(launch.Op{Code: launch.OpNoNewPrivs, Step: "set no_new_privs"})
	p.add(launch.Op{Code: launch.OpReap, Step: "reap", Strings: p.labelled("tmpfs", nil)})
	return p.out, nil
}
