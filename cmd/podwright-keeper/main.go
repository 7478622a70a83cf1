// Command podwright-keeper is the parent of every container on a node, and its anchor. The daemon starts it.
package main

import (
	"os"

	"github.com/podwright/podwright/runtime/keeperd"
)

var version = "devel" // stamped in by the linker

func main() { os.Exit(keeperd.Main(version, os.Args[1:])) }
