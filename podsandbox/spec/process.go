package spec

import (
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	imagev1 "github.com/opencontainers/image-spec/specs-go/v1"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	defaultTerm = "TERM=xterm"

	// What an image may bring at most. Real ones have dozens; execve(2) itself refuses a single string of 128 KiB.
	imageEntries = 4096
	imageBytes   = 1 << 20
)

// argsOf combines as Kubernetes defines: command replaces ENTRYPOINT and drops CMD, args replaces CMD.
func argsOf(config *criv1.ContainerConfig, image imagev1.ImageConfig) ([]string, error) {
	command, args := config.GetCommand(), config.GetArgs()
	if len(command) == 0 {
		command = image.Entrypoint
		if len(args) == 0 {
			args = image.Cmd
		}
	}
	out := slices.Concat(command, args)
	if len(out) == 0 || out[0] == "" {
		return nil, invalid("command", "", "missing: neither the request nor the image names a program")
	}
	return out, nil
}

// cwdOf is the working directory. An image may name it relative to the root.
func cwdOf(config *criv1.ContainerConfig, image imagev1.ImageConfig) string {
	if dir := config.GetWorkingDir(); dir != "" {
		return path.Clean(dir)
	}
	return path.Join("/", image.WorkingDir)
}

// environment is built in the order in which later ones win: defaults, the image's, the request's.
type environment struct {
	list  []string
	index map[string]int // name -> place in list
}

func (e *environment) set(entry string) {
	name, _, _ := strings.Cut(entry, "=")
	if at, ok := e.index[name]; ok {
		e.list[at] = entry
		return
	}
	if e.index == nil {
		e.index = map[string]int{}
	}
	e.index[name] = len(e.list)
	e.list = append(e.list, entry)
}

func (e *environment) has(name string) bool { _, ok := e.index[name]; return ok }

func envOf(in *ContainerInput, home string) []string {
	var env environment
	env.set(defaultPath)
	if in.Sandbox.Hostname != "" {
		env.set("HOSTNAME=" + in.Sandbox.Hostname)
	}
	if in.Config.GetTty() {
		env.set(defaultTerm)
	}
	for _, entry := range in.Image.Env {
		env.set(entry)
	}
	for _, kv := range in.Config.GetEnvs() {
		env.set(kv.GetKey() + "=" + string(kv.GetValue()))
	}
	if !env.has("HOME") {
		if home == "" {
			home = "/"
		}
		env.set("HOME=" + home)
	}
	return env.list
}

func goodEnvName(name string) bool {
	return name != "" && !strings.Contains(name, "=") && !hasControl(name)
}

// checkImage bounds what an image's configuration brings into a process: it is as hostile as the image (B49).
func checkImage(image imagev1.ImageConfig) error {
	size := 0
	for _, f := range []struct {
		field string
		list  []string
	}{{"image.config.Env", image.Env}, {"image.config.Entrypoint", image.Entrypoint}, {"image.config.Cmd", image.Cmd}} {
		if len(f.list) > imageEntries {
			return invalid(f.field, "", "more than %d entries", imageEntries)
		}
		for _, s := range f.list {
			if strings.ContainsRune(s, 0) {
				return invalid(f.field, s, "holds a NUL byte")
			}
			if size += len(s); size > imageBytes {
				return invalid(f.field, "", "more than %d bytes", imageBytes)
			}
		}
	}
	for _, entry := range image.Env {
		if name, _, ok := strings.Cut(entry, "="); !ok || !goodEnvName(name) {
			return invalid("image.config.Env", entry, "want NAME=value")
		}
	}
	if dir := image.WorkingDir; len(dir) >= pathBytes || hasControl(dir) {
		return invalid("image.config.WorkingDir", dir, "no path")
	}
	if len(image.Volumes) > imageEntries {
		return invalid("image.config.Volumes", "", "more than %d", imageEntries)
	}
	return nil
}

// StopSignal is the signal that asks the container to end: the request's, else the image's, else SIGTERM (B23).
func StopSignal(config *criv1.ContainerConfig, image imagev1.ImageConfig) (int, error) {
	if asked := config.GetStopSignal(); asked != criv1.Signal_SIGNAL_RUNTIME_DEFAULT {
		if n := stopSignals().numbers[asked]; n != 0 {
			return n, nil
		}
		return 0, invalid("stop_signal", asked.String(), "unknown signal")
	}
	text := image.StopSignal
	if text == "" {
		return signalNumbers["TERM"], nil
	}
	if n, err := strconv.Atoi(text); err == nil && n >= 1 && n <= sigRTMax {
		return n, nil
	}
	if n := signalNumber(strings.TrimPrefix(strings.ToUpper(text), "SIG")); n != 0 {
		return n, nil
	}
	return 0, invalid("image.config.StopSignal", text, "unknown signal")
}

const (
	sigRTMin = 34 // the C library's first free real-time signal, which is what the names count from (signal(7))
	sigRTMax = 64
)

// signalNumbers of the architectures podwright runs on, amd64 and arm64 (signal(7)).
var signalNumbers = map[string]int{
	"HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "IOT": 6, "BUS": 7, "FPE": 8, "KILL": 9, "USR1": 10, "SEGV": 11,
	"USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15, "STKFLT": 16, "CHLD": 17, "CLD": 17, "CONT": 18, "STOP": 19, "TSTP": 20,
	"TTIN": 21, "TTOU": 22, "URG": 23, "XCPU": 24, "XFSZ": 25, "VTALRM": 26, "PROF": 27, "WINCH": 28, "IO": 29, "POLL": 29,
	"PWR": 30, "SYS": 31, "RTMIN": sigRTMin, "RTMAX": sigRTMax,
}

// signalNumber parses a name without SIG, real-time ones as RTMIN+n and RTMAX-n; 0 is unknown.
func signalNumber(name string) int {
	if n := signalNumbers[name]; n != 0 {
		return n
	}
	if more, ok := strings.CutPrefix(name, "RTMIN+"); ok {
		if n, err := strconv.ParseUint(more, 10, 8); err == nil && sigRTMin+int(n) <= sigRTMax {
			return sigRTMin + int(n)
		}
	}
	if less, ok := strings.CutPrefix(name, "RTMAX-"); ok {
		if n, err := strconv.ParseUint(less, 10, 8); err == nil && sigRTMax-int(n) >= sigRTMin {
			return sigRTMax - int(n)
		}
	}
	return 0
}

// SignalValue is the CRI's name of a signal's number, for what a status reports; one without a name is RUNTIME_DEFAULT.
func SignalValue(number int) criv1.Signal { return stopSignals().values[number] }

type signalTable struct {
	numbers map[criv1.Signal]int
	values  map[int]criv1.Signal
}

// stopSignals maps the CRI's signals, by the names of their constants. Of two names for one number (SIGABRT, SIGIOT)
// the status gives the first.
var stopSignals = sync.OnceValue(func() signalTable {
	table := signalTable{numbers: map[criv1.Signal]int{}, values: map[int]criv1.Signal{}}
	for value, name := range criv1.Signal_name {
		name, _ = strings.CutPrefix(name, "SIGNAL_SIG")
		name = strings.Replace(strings.Replace(name, "PLUS", "+", 1), "MINUS", "-", 1)
		n := signalNumber(name)
		if n == 0 {
			continue
		}
		table.numbers[criv1.Signal(value)] = n
		if first, ok := table.values[n]; !ok || criv1.Signal(value) < first {
			table.values[n] = criv1.Signal(value)
		}
	}
	return table
})
