// Package podwright_test holds the house rules: which package may import which (the floors), what
// keeper and init may depend on, and the forms every source file keeps. Each ban carries its reason.
// Source: docs/architecture.md.
package podwright_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
)

const module = "github.com/podwright/podwright"

// Floors, lowest first. A package imports packages of strictly lower floors only.
const (
	f0 = iota
	f1
	f2
	f3
	f4
	special // keeper and init: reached from their mains only
	support // tests
)

// row places a package, or with the suffix /... everything below it.
type row struct {
	path  string
	floor int
}

// floors lists every package there is and those the architecture has a place for already.
var floors = []row{
	{"cmd/podwright", f4}, {"cmd/podwright/...", f4},
	{"cmd/podwright-keeper", f4}, {"cmd/podwright-init", f4},
	{"cri", f3}, {"cri/streaming", f3}, {"cri/admin", f3}, {"cri/admin/v1", f0}, {"cri/telemetry", f3},
	{"podsandbox", f2}, {"podsandbox/spec", f1}, {"podsandbox/isolation", f1}, {"podsandbox/record", f1}, {"podsandbox/podfiles", f1},
	{"cni", f1},
	{"runtime/image", f2}, {"runtime/namespace", f1}, {"runtime/cgroup", f1}, {"runtime/mounts", f1}, {"runtime/diskuse", f1}, {"runtime/selinux", f1},
	{"runtime/apparmor", f1}, {"runtime/seccomp", f1}, {"runtime/keeper", f1}, {"runtime/oci", f1},
	{"runtime/launch", f0}, {"runtime/wire", f0}, {"runtime/sys", f0}, {"runtime/systemd", f0}, {"seccompprofiles", f0},
	{"runtime/keeperd", special}, {"runtime/keeperd/internal/anchor", special}, {"runtime/keeperd/internal/crilog", special},
	{"runtime/spawn", special}, {"runtime/initproc", special},
	{"manifests", support}, {"runtime/kerneltest", support}, {"test/e2e", support}, {"test/e2e/...", support},
}

// specialUses are exceptions: what is listed for init before there is one has the same owner as what init does.
var specialUses = map[string]string{"runtime/keeper": "runtime/initproc", "runtime/cgroup": "runtime/initproc"}

// specialImports says who may reach the packages of floor special, and whom they may reach.
var specialImports = map[string][]string{
	"cmd/podwright-keeper":            {"runtime/keeperd"},
	"cmd/podwright-init":              {"runtime/initproc"},
	"runtime/keeperd":                 {"runtime/keeperd/internal/anchor", "runtime/keeperd/internal/crilog", "runtime/launch", "runtime/wire", "runtime/sys", "runtime/spawn"},
	"runtime/keeperd/internal/anchor": {"runtime/launch", "runtime/wire", "runtime/sys", "runtime/spawn"},
	"runtime/keeperd/internal/crilog": {"runtime/wire", "runtime/sys"},
	"runtime/spawn":                   {"runtime/sys", "runtime/launch"},
	"runtime/initproc":                {"runtime/launch", "runtime/sys", "runtime/spawn"},
}

// bans name an import path prefix, who may use it all the same, and why nobody else may.
var bans = []struct{ path, allowed, reason string }{
	{"github.com/seccomp/libseccomp-golang", "runtime/seccomp", "only one place compiles filters; init gets finished BPF"},
	{"k8s.io/cri-streaming", "cri/streaming", "one owner of streams and their protocols"},
	{"k8s.io/streaming", "cri/streaming", "one owner of streams and their protocols"},
	{"k8s.io/cri-api", "cri cri/streaming podsandbox podsandbox/spec podsandbox/record cmd/podwright test/e2e", "mechanisms know no CRI types"},
	{"github.com/containerd/containerd/v2", "runtime/image", "images are the only thing containerd's libraries do here"},
	{"github.com/containernetworking/cni", "cni", "the network stands behind one package"},
	{"github.com/containerd/cgroups", "runtime/cgroup", "one owner of cgroup files"},
	{"github.com/vishvananda/netlink", "runtime/namespace cni test/e2e", "only the owners of namespaces and networks speak netlink"},
	{"github.com/coreos/go-systemd/v22/dbus", "runtime/systemd", "one connection, and a deadline on every call"},
	{"github.com/opencontainers/selinux", "runtime/selinux", "one owner of labels"},
	{"google.golang.org/grpc", "cri cri/... cmd/podwright test/e2e", "gRPC codes exist at the edge only"},
	{"github.com/spf13/cobra", "cmd/podwright", "flags are the command's"},
	{"github.com/prometheus", "cri/telemetry", "the rest tells telemetry what it does, and does not know who asks"},
	{"go.opentelemetry.io", "cri/telemetry", "the rest tells telemetry what it does, and does not know who asks"},
	{"os/user", "", "host accounts decide nothing in a container"},
	{"plugin", "", "nothing is loaded at run time"},
}

func TestImportsGoDownTheFloors(t *testing.T) {
	for _, p := range packages(t) {
		floor, ok := floorOf(p.name)
		if !ok {
			t.Errorf("package %s has no row in the floors table", p.name)
			continue
		}
		for _, imported := range p.imports {
			inner, isOurs := strings.CutPrefix(imported, module+"/")
			if !isOurs {
				checkBans(t, p.name, floor, imported)
				continue
			}
			target, ok := floorOf(inner)
			switch {
			case !ok:
				t.Errorf("%s imports %s, which has no row", p.name, inner)
			case specialImports[p.name] != nil:
				if !contains(specialImports[p.name], inner) {
					t.Errorf("%s imports %s: its closure is std, x/sys and %v", p.name, inner, specialImports[p.name])
				}
			case target == special && specialUses[p.name] == inner:
			case target == special:
				t.Errorf("%s imports %s: keeper and init are reached from their mains only", p.name, inner)
			case floor == support:
			case target == support:
				t.Errorf("%s imports %s: test support stays out of the product", p.name, inner)
			case target == floor && !sameCommand(p.name, inner):
				t.Errorf("%s imports %s: same floor; take an interface instead", p.name, inner)
			case target > floor:
				t.Errorf("%s imports %s: imports go down only", p.name, inner)
			}
		}
	}
}

func checkBans(t *testing.T, name string, floor int, imported string) {
	t.Helper()
	for _, ban := range bans {
		if imported != ban.path && !strings.HasPrefix(imported, ban.path+"/") || floor == support {
			continue
		}
		if !allowedBy(ban.allowed, name) {
			t.Errorf("%s imports %s: %s", name, imported, ban.reason)
		}
	}
}

func allowedBy(allowed, name string) bool {
	for _, a := range strings.Fields(allowed) {
		prefix, below := strings.CutSuffix(a, "/...")
		if name == a || (below || strings.HasPrefix(a, "cmd/") || a == "test/e2e") && strings.HasPrefix(name, prefix+"/") {
			return true
		}
	}
	return false
}

// TestKeeperAndInitStaySmall: what survives the daemon and what runs as root inside a container must be
// readable in an afternoon, so their whole closure is std, x/sys and the packages named here.
func TestKeeperAndInitStaySmall(t *testing.T) {
	tests := []struct {
		main string
		own  []string
	}{
		{"cmd/podwright-keeper", []string{"cmd/podwright-keeper", "runtime/keeperd", "runtime/keeperd/internal/anchor", "runtime/keeperd/internal/crilog",
			"runtime/launch", "runtime/wire", "runtime/sys", "runtime/spawn"}},
		{"cmd/podwright-init", []string{"cmd/podwright-init", "runtime/initproc", "runtime/launch", "runtime/sys", "runtime/spawn"}},
	}
	for _, test := range tests {
		if _, err := os.Stat(test.main); err != nil {
			t.Errorf("%s: %v", test.main, err)
			continue
		}
		cmd := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", "./"+test.main)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("go list %s: %v\n%s", test.main, err, out)
			continue
		}
		for _, dep := range strings.Fields(string(out)) {
			own, isOurs := strings.CutPrefix(dep, module+"/")
			if isOurs && contains(test.own, own) || dep == "golang.org/x/sys/unix" {
				continue
			}
			t.Errorf("%s depends on %s: its closure is std, x/sys/unix and %v", test.main, dep, test.own)
		}
	}
}

func TestEveryPackageSaysWhatItOwns(t *testing.T) {
	for _, p := range packages(t) {
		if !strings.HasPrefix(p.doc, "Package ") && !strings.HasPrefix(p.doc, "Command ") {
			t.Errorf("%s has no package comment that begins with Package or Command", p.name)
		} else if strings.Count(p.doc, "\n") < 1 && !strings.HasPrefix(p.name, "cmd/") {
			t.Errorf("%s: the package comment says what it owns, what it may not do and its source; one line is too little", p.name)
		}
	}
}

// limits of a file and a function; a source that is data by nature has its own.
const (
	maxFileLines     = 400
	maxFunctionLines = 60
	maxNarrative     = 80 // straight-line narrative such as init's steps or a table of constants
	maxMethods       = 25
)

func TestFilesFunctionsAndTypesStaySmall(t *testing.T) {
	for _, p := range packages(t) {
		methods := map[string]int{}
		for _, f := range p.files {
			file := p.set.File(f.Pos())
			if n := file.LineCount(); n > maxFileLines {
				t.Errorf("%s has %d lines, more than %d: split it by noun", file.Name(), n, maxFileLines)
			}
			for _, decl := range f.Decls {
				fn, ok := decl.(*ast.FuncDecl)
				if !ok {
					continue
				}
				if n := p.set.Position(fn.End()).Line - p.set.Position(fn.Pos()).Line + 1; n > maxFunctionLines && (n > maxNarrative || !isNarrative(fn)) {
					t.Errorf("%s: %s has %d lines, more than %d", file.Name(), fn.Name.Name, n, maxFunctionLines)
				}
				if fn.Recv != nil {
					methods[receiver(fn)]++
				}
			}
		}
		for name, n := range methods {
			if n > maxMethods {
				t.Errorf("%s.%s has %d methods, more than %d", p.name, name, n, maxMethods)
			}
		}
	}
}

// isNarrative: no loop and no switch, so that the reader only goes down.
func isNarrative(fn *ast.FuncDecl) bool {
	straight := true
	ast.Inspect(fn.Body, func(n ast.Node) bool {
		switch n.(type) {
		case *ast.ForStmt, *ast.RangeStmt, *ast.SwitchStmt, *ast.TypeSwitchStmt, *ast.SelectStmt:
			straight = false
		}
		return straight
	})
	return straight
}

func TestForbiddenCalls(t *testing.T) {
	// Those allowed unix.Kill signal children of their own that are not reaped yet, or their groups: such a pid is nobody else's.
	calls := []struct{ pkg, name, allowed, reason string }{
		{"os", "Create", "", "it follows links and truncates; use OpenFile with O_EXCL"},
		{"unix", "Setns", "runtime/namespace runtime/initproc runtime/spawn runtime/mounts", "only the owners of locked threads change namespaces"},
		{"unix", "Unshare", "runtime/namespace runtime/initproc runtime/spawn runtime/mounts", "only the owners of locked threads change namespaces"},
		{"unix", "Kill", "runtime/initproc cni runtime/keeperd runtime/keeperd/internal/anchor", "a pid may be another process by now; signal through a pidfd"},
		{"syscall", "Kill", "", "a pid may be another process by now; signal through a pidfd"},
		{"http", "ListenAndServe", "", "listeners are made where they are configured"},
	}
	for _, p := range packages(t) {
		if floor, _ := floorOf(p.name); floor == support {
			continue
		}
		for _, f := range p.files {
			ast.Inspect(f, func(n ast.Node) bool {
				sel, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				left, ok := sel.X.(*ast.Ident)
				for _, c := range calls {
					if ok && left.Name == c.pkg && sel.Sel.Name == c.name && !allowedBy(c.allowed, p.name) {
						t.Errorf("%s: %s.%s is forbidden here: %s", p.set.Position(n.Pos()), c.pkg, c.name, c.reason)
					}
				}
				return true
			})
		}
	}
}

type sourcePackage struct {
	name    string // below the module
	doc     string
	imports []string
	files   []*ast.File
	set     *token.FileSet
}

// packages parses every source of the module that people write, tests aside.
func packages(t *testing.T) []sourcePackage {
	t.Helper()
	byDir := map[string]*sourcePackage{}
	err := filepath.WalkDir(".", func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." {
			_, nested := os.Stat(filepath.Join(path, "go.mod"))
			if strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "zz" || d.Name() == "bin" || nested == nil {
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, ".pb.go") {
			return nil
		}
		return addFile(byDir, path)
	})
	if err != nil {
		t.Fatal(err)
	}
	var list []sourcePackage
	for _, p := range byDir {
		list = append(list, *p)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].name < list[j].name })
	if len(list) == 0 {
		t.Fatal("found no package: the test runs in the wrong directory")
	}
	return list
}

func addFile(byDir map[string]*sourcePackage, path string) error {
	dir := filepath.ToSlash(filepath.Dir(path))
	p := byDir[dir]
	if p == nil {
		p = &sourcePackage{name: dir, set: token.NewFileSet()}
		byDir[dir] = p
	}
	f, err := parser.ParseFile(p.set, path, nil, parser.ParseComments)
	if err != nil {
		return err
	}
	p.files = append(p.files, f)
	if f.Doc != nil && p.doc == "" {
		p.doc = f.Doc.Text()
	}
	for _, imp := range f.Imports {
		if name := strings.Trim(imp.Path.Value, `"`); !contains(p.imports, name) {
			p.imports = append(p.imports, name)
		}
	}
	return nil
}

func floorOf(name string) (int, bool) {
	for _, r := range floors {
		if prefix, below := strings.CutSuffix(r.path, "/..."); name == r.path || below && strings.HasPrefix(name, prefix+"/") {
			return r.floor, true
		}
	}
	return 0, false
}

// sameCommand: a command and its own internals stand on one floor.
func sameCommand(a, b string) bool {
	return strings.HasPrefix(a, "cmd/podwright") && strings.HasPrefix(b, "cmd/podwright/")
}

func receiver(fn *ast.FuncDecl) string {
	switch x := fn.Recv.List[0].Type.(type) {
	case *ast.StarExpr:
		if id, ok := x.X.(*ast.Ident); ok {
			return id.Name
		}
	case *ast.Ident:
		return x.Name
	}
	return "?"
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}
