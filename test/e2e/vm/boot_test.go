// Package vm tests on the host what boots the guest: when a machine is booted a second time, and when not.
// It owns trees with stand-ins for qemu and for the guest's build; it may not boot anything.
// Source: ./boot.
package vm

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// machine stands in for qemu: it does what the next line of the file modes says.
const machine = `#!/bin/bash
for argument; do
	case $argument in
	file:*/output) output=${argument#file:} ;;
	file:*/console) console=${argument#file:} ;;
	file=*/result,*) result=${argument#file=} && result=${result%%,*} ;;
	esac
done
read -r mode <"$MODES"
sed -i 1d "$MODES"
echo "a console: $mode" >"$console"
case $mode in
panic) : >"$output" ;;
absent) exit 1 ;;
hang) : >"$output" && exec sleep 1000 ;;
ends) echo up >"$output" ;;
code-*)
	echo up >"$output"
	dir=$(mktemp -d)
	echo "${mode#code-}" >"$dir/code"
	tar -C "$dir" -cf "$result" . && rm -r "$dir"
	;;
esac
`

func TestAGuestThatDoesNotComeUpIsBootedOnceMore(t *testing.T) {
	boot, err := os.ReadFile("boot")
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		modes []string
		code  int
		left  int // boots that nobody asked for
		words string
	}{
		"comes up":                        {modes: []string{"code-0", "code-0"}, left: 1},
		"comes up and something failed":   {modes: []string{"code-3", "code-0"}, code: 3, left: 1},
		"comes up and ends":               {modes: []string{"ends", "code-0"}, code: 124, left: 1, words: "ended without a result"},
		"panics":                          {modes: []string{"panic", "code-0"}, words: "a console: panic"},
		"panics twice":                    {modes: []string{"panic", "panic", "code-0"}, code: 124, left: 1, words: "BOOTING ONCE MORE"},
		"hangs and then something failed": {modes: []string{"hang", "code-5"}, code: 5, words: "BOOTING ONCE MORE"},
		"is no machine":                   {modes: []string{"absent", "code-0"}, words: "qemu: 1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tree := t.TempDir()
			modes := filepath.Join(tree, "modes")
			for file, text := range map[string]string{
				"vm/boot": string(boot), "bin/qemu-system-x86_64": machine, "modes": strings.Join(test.modes, "\n") + "\n",
				"vm/guest/build": "#!/bin/bash\necho /nowhere\n", "tools/ensure-packages": "#!/bin/bash\n", "payload/run": "",
			} {
				file = filepath.Join(tree, file)
				if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o755)); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.CommandContext(t.Context(), filepath.Join(tree, "vm/boot"), filepath.Join(tree, "payload"), filepath.Join(tree, "results"))
			cmd.Env = append(os.Environ(), "PATH="+filepath.Join(tree, "bin")+":"+os.Getenv("PATH"), "MODES="+modes, "VM_BOOT_LIMIT=1", "TMPDIR="+tree)
			out, err := cmd.CombinedOutput()
			code := 0
			if exit := new(exec.ExitError); errors.As(err, &exit) {
				code = exit.ExitCode()
			} else if err != nil {
				t.Fatal(err)
			}
			rest, err := os.ReadFile(modes)
			if left := strings.Count(string(rest), "\n"); err != nil || code != test.code || left != test.left || !strings.Contains(string(out), test.words) {
				t.Errorf("%v: got code %d, %d boots left over, want %d and %d, and %q said; %v\n%s", test.modes, code, left, test.code, test.left, test.words, err, out)
			}
		})
	}
}
