package keeperd

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Promise 1: what the keeper is made of. It is the parent of everything on the node, so it has no code that it could
// do without.
func TestClosure(t *testing.T) {
	const module = "github.com/podwright/podwright/"
	allowed := map[string]bool{
		"cmd/podwright-keeper": true, "runtime/keeperd": true, "runtime/keeperd/internal/anchor": true,
		"runtime/keeperd/internal/crilog": true, "runtime/spawn": true, "runtime/launch": true, "runtime/wire": true, "runtime/sys": true,
	}
	banned := map[string]string{
		"net":           "a resolver and a poller for sockets that are never opened; the one socket is made by the daemon",
		"net/http":      "a server is a surface; the keeper has one socket",
		"os/user":       "looks up names, which may load what the host configured",
		"os/exec":       "looks up paths; programs come as descriptors, and spawn alone forks",
		"plugin":        "loads code",
		"runtime/cgo":   "a C runtime: threads and signals that Go doesn't know",
		"runtime/pprof": "belongs into tests",
		"testing":       "belongs into tests",
		"text/template": "a language, and reflection that keeps every method of every type",
		"flag":          "the arguments are the anchor's and the daemon's, not a user's",
		"crypto/tls":    "nothing here speaks to the network",
	}
	for _, arch := range []string{"amd64", "arm64"} {
		list := exec.Command("go", "list", "-deps", "-f", "{{if .Standard}}std{{else}}own{{end}} {{.ImportPath}}", module+"cmd/podwright-keeper")
		list.Env = append(os.Environ(), "GOARCH="+arch, "CGO_ENABLED=0")
		text, err := list.Output()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			kind, path, _ := strings.Cut(strings.TrimSpace(line), " ")
			if why, bad := banned[path]; bad {
				t.Errorf("%s: the keeper links %s: %s", arch, path, why)
			}
			if kind == "own" && !allowed[strings.TrimPrefix(path, module)] && path != "golang.org/x/sys/unix" {
				t.Errorf("%s: the keeper links %s, which is not among what it may be made of", arch, path)
			}
		}
	}
}

// maxLines bounds the code of keeper and anchor, comments and empty lines aside, so that it can be read in an afternoon.
// The design says about 1,500. What it costs more: ending launches that a crash cut short, telling a launch's messages
// from forged ones, the keeper that replaces a dead anchor, the rehearsal before an upgrade, and some 230 lines for clients
// of the containers' streams: only the keeper has these, and whoever else copied them would be one more to hold a
// container up. The next feature has to pay by taking something out.
const maxLines = 2800

func TestSize(t *testing.T) {
	total := 0
	for _, dir := range []string{".", "internal/anchor", "internal/crilog"} {
		files, err := filepath.Glob(dir + "/*.go")
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v, %v", dir, files, err)
		}
		for _, file := range files {
			if !strings.HasSuffix(file, "_test.go") {
				total += codeLines(t, file)
			}
		}
	}
	if t.Logf("%d lines", total); total > maxLines {
		t.Errorf("keeper and anchor have %d lines of code, at most %d are allowed", total, maxLines)
	}
}

func codeLines(t *testing.T, file string) (n int) {
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for scan := bufio.NewScanner(f); scan.Scan(); {
		if line := strings.TrimSpace(scan.Text()); line != "" && !strings.HasPrefix(line, "//") {
			n++
		}
	}
	return n
}
