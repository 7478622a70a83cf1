package initproc

import _ "unsafe" // for linkname

// pin keeps Go's runtime from taking the processor from this thread, for good: without it, a thread that has had it for
// 10 ms, by the clock on the wall, so soon where many want it, hands it to another one, which the runtime starts if none is
// idle. The kernel refuses that to a process that has joined a PID namespace (clone(2), EINVAL), and the runtime gives up
// ("failed to create new OS thread"). Nothing may block in the runtime from now on, and nothing here does: no channel, no
// other goroutine, raw system calls only. The runtime promises to keep the name (go.dev/issue/67401).
//
//go:linkname pin runtime.procPin
func pin() int
