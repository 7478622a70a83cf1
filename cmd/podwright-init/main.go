// Command podwright-init is what the keeper starts inside a container's new namespaces; it sets the container
// up by a launch plan and becomes the workload. All of it is runtime/initproc. Not for use by hand.
package main

import "github.com/podwright/podwright/runtime/initproc"

// version is stamped by the linker.
var version = "development"

// init, and not main: Go runs it on the process's first thread and keeps it there (package runtime). Asking for
// the same in main by LockOSThread starts one more thread, which costs every exec probe 50 µs.
func init() { initproc.Main(version) }

func main() {}
