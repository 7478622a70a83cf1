package seccompprofiles

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func mustParse(t testing.TB, text string) *Profile {
	t.Helper()
	p, err := Parse([]byte(text))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return p
}

// TestParseNamesThePlace: a bad profile is refused with the place in the JSON.
func TestParseNamesThePlace(t *testing.T) {
	rule := func(s string) string {
		return "{\"defaultAction\": \"SCMP_ACT_ERRNO\",\n \"syscalls\": [{\"names\": [\"read\"], \"action\": \"SCMP_ACT_ALLOW\"},\n  {" + s + "}]}"
	}
	arg := func(s string) string {
		return rule(`"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{` + s + `}]`)
	}
	cases := []struct {
		name, text, path string
		line, column     int
		reason           string
	}{
		{"empty", ``, "", 1, 1, "unexpected end"},
		{"cut short", "{\n\"defaultAction\": \"SCMP", "", 2, 23, "unexpected end"},
		{"not JSON", "{\n  \"defaultAction\": nope}", "", 2, 21, "not JSON"},
		{"comma at the end", "{\"defaultAction\": \"SCMP_ACT_ALLOW\",\n}", "", 2, 1, "not JSON"},
		{"not an object", ` [1]`, "", 1, 2, "want an object, got an array"},
		{"two documents", "{\"defaultAction\": \"SCMP_ACT_ALLOW\"}\n{}", "", 2, 1, "after top-level"},
		{"no default action", `{"syscalls": []}`, "defaultAction", 1, 1, "missing"},
		{"null default action", `{"defaultAction": null}`, "defaultAction", 1, 1, "missing"},
		{"unknown default action", `{"defaultAction": "SCMP_ACT_DENY"}`, "defaultAction", 1, 19, `unknown action "SCMP_ACT_DENY"`},
		{"wrong case of a key", `{"DefaultAction": "SCMP_ACT_ALLOW"}`, "DefaultAction", 1, 2, "unknown key"},
		{"unknown key", "{\"defaultAction\": \"SCMP_ACT_ALLOW\",\n\t\"sycalls\": []}", "sycalls", 2, 2, "unknown key"},
		{"key given twice", "{\"defaultAction\": \"SCMP_ACT_ERRNO\",\n\"defaultAction\": \"SCMP_ACT_ALLOW\"}", "defaultAction", 2, 1, "twice"},
		{"default errno without ERRNO", `{"defaultAction": "SCMP_ACT_KILL", "defaultErrnoRet": 1}`, "defaultErrnoRet", 1, 55, "only SCMP_ACT_ERRNO"},
		{"both forms of architectures", `{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"], "archMap": [{"architecture": "SCMP_ARCH_X86_64"}]}`, "architectures", 1, 54, "archMap"},
		{"unknown architecture", `{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["x86"]}`, "architectures[0]", 1, 55, "unknown architecture"},
		{"archMap without architecture", `{"defaultAction": "SCMP_ACT_ALLOW", "archMap": [{}]}`, "archMap[0].architecture", 1, 49, "missing"},
		{"unknown flag", `{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["LOG"]}`, "flags[0]", 1, 47, "flag"},
		{"flag for listeners", `{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}`, "flags[0]", 1, 47, "unsupported"},
		{"listener", `{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x"}`, "listenerPath", 1, 53, "not supported"},
		{"misspelt call", rule(`"names": ["write", "raed"], "action": "SCMP_ACT_ALLOW"`), "syscalls[1].names[1]", 3, 23, `unknown system call "raed"`},
		{"empty name", rule(`"names": [""], "action": "SCMP_ACT_ALLOW"`), "syscalls[1].names[0]", 3, 14, "unknown system call"},
		{"no names", rule(`"names": [], "action": "SCMP_ACT_ALLOW"`), "syscalls[1].names", 3, 3, "no system call"},
		{"names and name", rule(`"names": ["read"], "name": "write", "action": "SCMP_ACT_ALLOW"`), "syscalls[1].name", 3, 31, "names is given"},
		{"no action", rule(`"names": ["read"]`), "syscalls[1].action", 3, 3, "missing"},
		{"notify", rule(`"names": ["read"], "action": "SCMP_ACT_NOTIFY"`), "syscalls[1].action", 3, 33, "SCMP_ACT_NOTIFY is not supported"},
		{"trace", rule(`"names": ["read"], "action": "SCMP_ACT_TRACE"`), "syscalls[1].action", 3, 33, "SCMP_ACT_TRACE is not supported"},
		{"errno of ALLOW", rule(`"names": ["read"], "action": "SCMP_ACT_ALLOW", "errnoRet": 1`), "syscalls[1].errnoRet", 3, 63, "only SCMP_ACT_ERRNO"},
		{"errno too great", rule(`"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4096`), "syscalls[1].errnoRet", 3, 63, "0 to 4095"},
		{"errno by a wrong name", rule(`"names": ["read"], "action": "SCMP_ACT_ERRNO", "errno": "EPREM"`), "syscalls[1].errno", 3, 60, `unknown errno "EPREM"`},
		{"two errnos", rule(`"names": ["read"], "action": "SCMP_ACT_ERRNO", "errno": "ENOSYS", "errnoRet": 1`), "syscalls[1].errno", 3, 60, "another errno than errnoRet's"},
		{"errno name of ALLOW", rule(`"names": ["read"], "action": "SCMP_ACT_ALLOW", "errno": "1"`), "syscalls[1].errno", 3, 60, "only SCMP_ACT_ERRNO"},
		{"too many rules", `{"syscalls": [` + strings.Repeat("{},", maxRules) + `{}]}`, "syscalls", 1, 14, "4096"},
		{"too many keys", "{" + manyKeys() + "}", "", 1, 642, "too many keys"},
		{"names as a string", rule(`"names": "read", "action": "SCMP_ACT_ALLOW"`), "syscalls[1].names", 3, 13, "want an array, got a string"},
		{"null rule", "{\"defaultAction\": \"SCMP_ACT_ALLOW\", \"syscalls\": [null]}", "syscalls[0]", 1, 50, "want an object, got null"},
		{"unknown operator", arg(`"index": 0, "value": 1, "op": "SCMP_CMP_EQUAL"`), "syscalls[1].args[0].op", 3, 91, "unknown operator"},
		{"no operator", arg(`"index": 0, "value": 1`), "syscalls[1].args[0].op", 3, 60, "missing"},
		{"no value", arg(`"index": 0, "op": "SCMP_CMP_EQ"`), "syscalls[1].args[0].value", 3, 60, "missing"},
		{"index 6", arg(`"index": 6, "value": 1, "op": "SCMP_CMP_EQ"`), "syscalls[1].args[0].index", 3, 70, "0 to 5"},
		{"negative value", arg(`"index": 0, "value": -1, "op": "SCMP_CMP_EQ"`), "syscalls[1].args[0].value", 3, 82, "got -1"},
		{"value with a fraction", arg(`"index": 0, "value": 1.0, "op": "SCMP_CMP_EQ"`), "syscalls[1].args[0].value", 3, 82, "whole number"},
		{"second value without mask", arg(`"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_EQ"`), "syscalls[1].args[0].valueTwo", 3, 97, "MASKED_EQ"},
		{"one argument twice", arg(`"index": 0, "value": 1, "op": "SCMP_CMP_GT"}, {"index": 0, "value": 9, "op": "SCMP_CMP_LT"`), "syscalls[1].args[1].index", 3, 117, "only once"},
		{"unknown capability", rule(`"names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["SYS_ADMIN"]}`), "syscalls[1].includes.caps[0]", 3, 73, "unknown capability"},
		{"unknown arch condition", rule(`"names": ["read"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["x64"]}`), "syscalls[1].excludes.arches[0]", 3, 75, "unknown architecture"},
		{"kernel version", rule(`"names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4"}`), "syscalls[1].includes.minKernel", 3, 77, "such as 4.8"},
		{"unknown condition", rule(`"names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {"maxKernel": "4.8"}`), "syscalls[1].includes.maxKernel", 3, 64, "unknown key"},
		{"place after wide characters", "{\"defaultAction\": \"SCMP_ACT_ALLOW\", \"syscalls\": [{\"comment\": \"äöü\", \"nmae\": 1}]}", "syscalls[0].nmae", 1, 69, "unknown key"},
		{"nested too deeply", `{"x": ` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`, "x" + strings.Repeat("[0]", maxDepth-1), 1, 22, "deeply"},
		{"too large", strings.Repeat(" ", maxProfileBytes+1), "", 1, 1, "1 MiB"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse([]byte(c.text))
			var got *Error
			if !errors.As(err, &got) {
				t.Fatalf("got %v, want an *Error", err)
			}
			if got.Path != c.path || got.Line != c.line || got.Column != c.column || !strings.Contains(got.Reason, c.reason) {
				t.Errorf("got %+v\nwant %d:%d %s ...%s...", *got, c.line, c.column, c.path, c.reason)
			}
		})
	}
}

func manyKeys() string {
	var list []string
	for i := range maxKeys + 1 {
		list = append(list, fmt.Sprintf(`"key%02d":0`, i))
	}
	return strings.Join(list, ",")
}

func TestParseTakesWhatTheFieldWrites(t *testing.T) {
	for name, text := range map[string]string{
		"critest's":             `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO"}]}`,
		"audit only":            `{"defaultAction": "SCMP_ACT_LOG"}`,
		"OCI form":              `{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_S390X"], "flags": [], "listenerPath": "", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_LOG"}]}`,
		"nulls":                 `{"defaultAction": "SCMP_ACT_ERRNO", "archMap": [{"architecture": "SCMP_ARCH_RISCV64", "subArchitectures": null}], "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": "", "includes": {}, "excludes": null, "errnoRet": null}]}`,
		"one name":              `{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"name": "clone", "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 2080505856, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]}]}`,
		"empty name beside":     `{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["clone"], "name": "", "action": "SCMP_ACT_ALLOW"}]}`,
		"other machines' calls": `{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["s390_pci_mmio_read", "riscv_flush_icache", "swapcontext"], "action": "SCMP_ACT_ALLOW"}]}`,
		"containers/common's":   `{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "defaultErrno": "ENOSYS", "syscalls": [{"names": ["keyctl"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "errno": "EPERM"}, {"names": ["bpf"], "action": "SCMP_ACT_ERRNO", "errno": "22"}, {"names": ["read"], "action": "SCMP_ACT_ALLOW", "errno": ""}]}`,
		"largest value":         `{"defaultAction": "SCMP_ACT_TRAP", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_KILL_PROCESS", "args": [{"index": 5, "value": 18446744073709551615, "op": "SCMP_CMP_NE"}]}]}`,
	} {
		p, err := Parse([]byte(text))
		if err == nil {
			_, err = p.Resolve("amd64", Version{6, 1}, nil)
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestResolveAppliesConditions(t *testing.T) {
	p := mustParse(t, `{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
		{"names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_BPF", "CAP_PERFMON"]}},
		{"names": ["write"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_BPF", "CAP_PERFMON"]}},
		{"names": ["open"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64", "s390x"]}},
		{"names": ["close"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["amd64"]}},
		{"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
		{"names": ["kcmp"], "action": "SCMP_ACT_ALLOW", "excludes": {"minKernel": "5.10"}}]}`)
	for _, c := range []struct {
		arch   string
		kernel Version
		caps   []string
		want   string
	}{
		{"amd64", Version{6, 1}, nil, "write open ptrace"},
		{"amd64", Version{6, 1}, []string{"CAP_BPF"}, "open ptrace"},
		{"amd64", Version{6, 1}, []string{"CAP_PERFMON", "CAP_BPF"}, "read open ptrace"},
		{"arm64", Version{5, 9}, nil, "write close ptrace kcmp"},
		{"arm64", Version{4, 7}, nil, "write close kcmp"},
		{"arm64", Version{3, 10}, nil, "write close kcmp"},
	} {
		spec, err := p.Resolve(c.arch, c.kernel, c.caps)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, r := range spec.Syscalls {
			names = append(names, r.Names...)
		}
		if got := strings.Join(names, " "); got != c.want {
			t.Errorf("%s, %v, %v: got %q, want %q", c.arch, c.kernel, c.caps, got, c.want)
		}
	}
	if _, err := p.Resolve("riscv64", Version{6, 1}, nil); err == nil {
		t.Error("an architecture without filters was resolved")
	}
	if _, err := p.Resolve("amd64", Version{6, 1}, []string{"BPF"}); err == nil {
		t.Error("an unknown capability was taken")
	}
}

func TestResolveArchitectures(t *testing.T) {
	for _, c := range []struct {
		text, arch string
		want       []specs.Arch
	}{
		{`{"defaultAction": "SCMP_ACT_ALLOW"}`, "amd64", []specs.Arch{specs.ArchX86_64}},
		{`{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"]}`, "amd64", []specs.Arch{specs.ArchX86_64, specs.ArchX86}},
		{`{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_ARM", "SCMP_ARCH_X86_64"]}`, "arm64", []specs.Arch{specs.ArchAARCH64, specs.ArchARM}},
		{defaultProfile, "amd64", []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}},
		{defaultProfile, "arm64", []specs.Arch{specs.ArchAARCH64, specs.ArchARM}},
	} {
		spec, err := mustParse(t, c.text).Resolve(c.arch, Version{6, 1}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(spec.Architectures, c.want) {
			t.Errorf("%.80s on %s: got %v, want %v", c.text, c.arch, spec.Architectures, c.want)
		}
	}
}

// TestConflicts: rules that contradict each other are refused, not settled by
// whatever the compiler happens to do.
func TestConflicts(t *testing.T) {
	allow := `{"names": ["socket"], "action": "SCMP_ACT_ALLOW"%s}`
	deny := `{"names": ["bind", "socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 22%s}`
	arg := func(index, op, value string) string {
		return `{"index": ` + index + `, "value": ` + value + `, "op": "SCMP_CMP_` + op + `"}`
	}
	args := func(list ...string) string {
		if len(list) == 0 {
			return ""
		}
		return `, "args": [` + strings.Join(list, ", ") + `]`
	}
	masked := func(mask, want string) string {
		return `{"index": 0, "value": ` + mask + `, "valueTwo": ` + want + `, "op": "SCMP_CMP_MASKED_EQ"}`
	}
	cases := []struct {
		name, allow, deny string
		conflict          bool
	}{
		{"both without tests", args(), args(), true},
		{"an exception behind a general rule", args(), args(arg("0", "EQ", "40")), true},
		{"equal and not equal", args(arg("0", "NE", "40")), args(arg("0", "EQ", "40")), false},
		{"equal and another not equal", args(arg("0", "NE", "40")), args(arg("0", "EQ", "41")), true},
		{"different arguments", args(arg("0", "EQ", "1")), args(arg("1", "EQ", "2")), true},
		{"apart in one of two", args(arg("0", "EQ", "1"), arg("2", "EQ", "9")), args(arg("2", "NE", "9")), false},
		{"ranges apart", args(arg("0", "LT", "38")), args(arg("0", "GE", "38")), false},
		{"ranges that touch", args(arg("0", "LE", "38")), args(arg("0", "GE", "38")), true},
		{"impossible range", args(arg("0", "LT", "0")), args(arg("0", "GE", "0")), false},
		{"above everything", args(arg("0", "GT", "18446744073709551615")), args(arg("0", "GE", "0")), false},
		{"masks apart", args(masked("3", "1")), args(masked("2", "2")), false},
		{"masks that meet", args(masked("3", "1")), args(masked("4", "4")), true},
		{"mask and value apart", args(masked("1", "1")), args(arg("0", "EQ", "2")), false},
		{"mask and value that meet", args(masked("1", "1")), args(arg("0", "EQ", "3")), true},
	}
	for _, c := range cases {
		text := `{"defaultAction": "SCMP_ACT_TRAP", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_BPF"]}},` +
			"\n" + strings.Replace(allow, "%s", c.allow, 1) + ",\n" + strings.Replace(deny, "%s", c.deny, 1) + `]}`
		_, err := mustParse(t, text).Resolve("amd64", Version{6, 1}, nil)
		var got *Error
		if errors.As(err, &got) != c.conflict {
			t.Errorf("%s: got %v, conflict wanted: %v", c.name, err, c.conflict)
		} else if c.conflict && (got.Line != 3 || got.Path != "syscalls[2]" || !strings.Contains(got.Reason, "syscalls[1] about socket")) {
			t.Errorf("%s: got %+v", c.name, *got)
		}
	}
	same := `{"defaultAction": "SCMP_ACT_TRAP", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_KILL"}, {"names": ["read"], "action": "SCMP_ACT_KILL_THREAD"}]}`
	if _, err := mustParse(t, same).Resolve("amd64", Version{6, 1}, nil); err != nil {
		t.Errorf("the same outcome under two names: %v", err)
	}
}

func TestKernelVersion(t *testing.T) {
	for release, want := range map[string]Version{
		"6.18.44-fc-v657": {6, 18}, "6.1.0-13-amd64": {6, 1}, "5.15-rc1": {5, 15}, "4.8": {4, 8}, "6.18+": {6, 18},
	} {
		if got, err := KernelVersion(release); err != nil || got != want {
			t.Errorf("%s: got %v, %v, want %v", release, got, err, want)
		}
	}
	for _, release := range []string{"", "six", "6", "6.", "6.x", ".1"} {
		if got, err := KernelVersion(release); err == nil {
			t.Errorf("%q: got %v, want an error", release, got)
		}
	}
	if !(Version{4, 8}).Before(Version{4, 10}) || (Version{5, 0}).Before(Version{4, 8}) || (Version{4, 8}).Before(Version{4, 8}) {
		t.Error("versions are compared wrongly")
	}
}

// TestDefaultProfileIsStandard: the default profile holds what the format's
// strictest reader, ours, wants for both architectures and every capability,
// and it is handed out as a copy.
func TestDefaultProfileIsStandard(t *testing.T) {
	p := mustParse(t, defaultProfile)
	for _, arch := range []string{"amd64", "arm64"} {
		for _, caps := range [][]string{nil, capabilities, {"CAP_SYS_ADMIN"}} {
			spec, err := p.Resolve(arch, Version{5, 15}, caps)
			if err != nil {
				t.Fatalf("%s %v: %v", arch, caps, err)
			}
			for _, never := range []string{"keyctl", "add_key", "request_key", "io_uring_setup", "io_uring_enter", "userfaultfd", "kexec_load", "swapon", "pivot_root"} {
				if slices.ContainsFunc(spec.Syscalls, func(r specs.LinuxSyscall) bool { return slices.Contains(r.Names, never) }) {
					t.Errorf("%s %v: a rule about %s", arch, caps, never)
				}
			}
		}
	}
	changed := Default()
	changed[0] = 'x'
	if Default()[0] != '{' {
		t.Error("the caller can change the default profile")
	}
}

func TestNamesAreSortedAndUnique(t *testing.T) {
	var names []string
	for line := range strings.Lines(syscallNames) {
		if !strings.HasPrefix(line, "#") {
			names = append(names, strings.TrimSuffix(line, "\n"))
		}
	}
	if !slices.IsSorted(names) || len(slices.Compact(slices.Clone(names))) != len(names) || len(names) < 500 {
		t.Errorf("%d names, sorted %v", len(names), slices.IsSorted(names))
	}
}

// FuzzParse: hostile profiles give a profile or an *Error whose place is in the
// text; what is accepted resolves or says why not.
func FuzzParse(f *testing.F) {
	f.Add([]byte(defaultProfile))
	f.Add([]byte(`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"name": "chmod", "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": [{"index": 1, "value": 1, "op": "SCMP_CMP_EQ"}]}]}`))
	f.Add([]byte(`{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86"], "flags": ["SECCOMP_FILTER_FLAG_LOG"], "listenerPath": ""}`))
	f.Add([]byte("{\"a\":[[[{}]]],\"\xff\":1e400}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse(data)
		if err != nil {
			var place *Error
			if !errors.As(err, &place) || place.Line < 1 || place.Column < 1 || place.Line > 1+strings.Count(string(data), "\n") || place.Reason == "" {
				t.Fatalf("error without a place: %#v", err)
			}
			return
		}
		if !json.Valid(data) {
			t.Fatal("accepted what is not JSON")
		}
		spec, err := p.Resolve("amd64", Version{6, 1}, []string{"CAP_SYS_ADMIN"})
		if err == nil && (len(spec.Architectures) == 0 || CheckAction(spec.DefaultAction) != "") {
			t.Fatalf("resolved to %+v", spec)
		}
	})
}
