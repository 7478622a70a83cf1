package cgroup

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// deviceProgram compiles rules to a BPF_PROG_TYPE_CGROUP_DEVICE program. For
// each requested access the last rule that names device and access decides; what
// no rule names is denied.
//
// The program of containerd/cgroups v3.1.3 is not used: it lets an allow rule
// match when any one of the requested accesses is granted, so that a device
// allowed for reading can be opened for writing with O_RDWR.
func deviceProgram(rules []deviceRule) asm.Instructions {
	// struct bpf_cgroup_dev_ctx: u32 access_type (type in the low half, access in
	// the high), u32 major, u32 minor. R3 holds the accesses not yet granted.
	insts := asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Half),
		asm.LoadMem(asm.R3, asm.R1, 0, asm.Word),
		asm.RSh.Imm32(asm.R3, 16),
		asm.LoadMem(asm.R4, asm.R1, 4, asm.Word),
		asm.LoadMem(asm.R5, asm.R1, 8, asm.Word),
	}
	allows := false
	first := 0 // rules before the last one for everything can't be reached
	for i, r := range rules {
		if r.kind == 'a' {
			first = i
		}
	}
	for i := len(rules) - 1; i >= first; i-- {
		block := ruleInstructions(rules[i], ruleLabel(i-1, first))
		block[0] = block[0].WithSymbol(ruleLabel(i, first))
		insts = append(insts, block...)
		allows = allows || rules[i].allow
	}
	insts = append(insts, asm.Mov.Imm32(asm.R0, 0).WithSymbol("deny"), asm.Return())
	if allows { // the verifier refuses instructions that nothing jumps to
		insts = append(insts, asm.Mov.Imm32(asm.R0, 1).WithSymbol("allow"), asm.Return())
	}
	return insts
}

func ruleLabel(i, first int) string {
	if i < first {
		return "deny"
	}
	return "rule" + strconv.Itoa(i)
}

func ruleInstructions(r deviceRule, next string) asm.Instructions {
	var block asm.Instructions
	switch r.kind {
	case 'b':
		block = append(block, asm.JNE.Imm(asm.R2, unix.BPF_DEVCG_DEV_BLOCK, next))
	case 'c':
		block = append(block, asm.JNE.Imm(asm.R2, unix.BPF_DEVCG_DEV_CHAR, next))
	}
	if r.major != -1 {
		block = append(block, asm.JNE.Imm(asm.R4, int32(r.major), next))
	}
	if r.minor != -1 {
		block = append(block, asm.JNE.Imm(asm.R5, int32(r.minor), next))
	}
	if r.allow {
		return append(block,
			asm.And.Imm32(asm.R3, int32(accessAll&^r.access)),
			asm.JEq.Imm(asm.R3, 0, "allow"))
	}
	return append(block, asm.JSet.Imm(asm.R3, int32(r.access), "deny"))
}

// setDevicesV2 puts the program for rules on the group, in the place of an
// earlier one in one step (BPF_F_REPLACE), so that no moment is unfiltered.
func setDevicesV2(dir string, rules []deviceRule) error {
	dirFile, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer dirFile.Close()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupDevice, Instructions: deviceProgram(rules), License: "Apache",
	})
	if err != nil {
		return fmt.Errorf("load device program for %s: %w", dir, err)
	}
	defer prog.Close() // the attachment keeps it
	attached, err := link.QueryPrograms(link.QueryOptions{Target: int(dirFile.Fd()), Attach: ebpf.AttachCGroupDevice})
	if err != nil {
		return fmt.Errorf("query device programs of %s: %w", dir, err)
	}
	old, err := openPrograms(attached.Programs)
	if err != nil {
		return fmt.Errorf("device programs of %s: %w", dir, err)
	}
	defer func() {
		for _, p := range old {
			p.Close()
		}
	}()
	attach := link.RawAttachProgramOptions{
		Target: int(dirFile.Fd()), Program: prog, Attach: ebpf.AttachCGroupDevice, Flags: unix.BPF_F_ALLOW_MULTI,
	}
	if len(old) == 1 {
		attach.Anchor = link.ReplaceProgram(old[0])
	}
	if err := link.RawAttachProgram(attach); err != nil {
		return fmt.Errorf("attach device program to %s: %w", dir, err)
	}
	if len(old) < 2 {
		return nil
	}
	// Several: all must allow, so the old ones go after the new one is there.
	var errs []error
	for _, p := range old {
		err := link.RawDetachProgram(link.RawDetachProgramOptions{
			Target: int(dirFile.Fd()), Program: p, Attach: ebpf.AttachCGroupDevice,
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("detach device program from %s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}

func openPrograms(attached []link.AttachedProgram) ([]*ebpf.Program, error) {
	var progs []*ebpf.Program
	for _, a := range attached {
		p, err := ebpf.NewProgramFromID(a.ID)
		if err != nil {
			for _, open := range progs {
				open.Close()
			}
			return nil, err
		}
		progs = append(progs, p)
	}
	return progs, nil
}
