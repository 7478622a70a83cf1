package cni

import (
	"cmp"
	"slices"
	"time"
)

// Running is a plugin that runs now.
type Running struct {
	Plugin    string
	Command   string // ADD, DEL, GC
	SandboxID string // "" where it works for none: GC
	PID       int
	Deadline  time.Time // it is killed then
}

// Running gives the plugins that run for a sandbox, and GC, for whose end every other waits. It reads memory only.
func (n *Network) Running(sandboxID string) []Running {
	var list []Running
	n.runner.running.Range(func(key, _ any) bool {
		if p := key.(*Running); p.SandboxID == sandboxID || p.Command == "GC" {
			list = append(list, *p)
		}
		return true
	})
	slices.SortFunc(list, func(a, b Running) int { return cmp.Compare(a.PID, b.PID) })
	return list
}
