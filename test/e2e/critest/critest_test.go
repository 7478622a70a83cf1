// Package critest runs the CRI validation suite of cri-tools against podwright.
// It owns the lab (namespaces, images, registry, CNI) that the scripts beside it make, and the
// list of specs podwright lacks an RPC or LSM for; it may reach podwright by its socket only.
// Source: sigs.k8s.io/cri-tools v1.36.0.
package critest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Every spec runs but those in skips.txt, none fails, and the node is afterwards as it was.
// PODWRIGHT_BIN is the directory of the binaries to test; the default is bin/.
func TestCritest(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("root is missing: the lab needs namespaces, mounts and cgroups")
	}
	bin := os.Getenv("PODWRIGHT_BIN")
	if bin == "" {
		bin = "../../../bin"
	}
	bin, err := filepath.Abs(bin)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "podwright")); err != nil {
		t.Skipf("a build of podwright is missing: %v", err)
	}
	// A failure's logs are wanted afterwards, so run chooses a directory that stays.
	cmd := exec.Command("./run", "--bin-dir", bin)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		t.Errorf("critest against %s: %v; the table above says why", bin, err)
	}
}
