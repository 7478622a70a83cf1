// Command podwright-init is what the keeper starts inside a container's new namespaces; it sets the container
// up by a launch plan and becomes the workload. All of it is runtime/initproc. Not for use by hand.
package main

import "github.com/podwright/podwright/runtime/initproc"

// version is stamped by the linker.
var version = "development"

func main() { initproc.Main(version) }
