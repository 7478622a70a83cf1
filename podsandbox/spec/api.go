package spec

import (
	imagev1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ValidateSandbox refuses what a sandbox's configuration asks for and podwright does not do. The error is a *FieldError.
func ValidateSandbox(config *criv1.PodSandboxConfig, node Node) error { return ErrInvalid }

// ValidateContainer refuses what a container's configuration asks for and podwright does not do, alone or with its sandbox's.
func ValidateContainer(config *criv1.ContainerConfig, sandbox *criv1.PodSandboxConfig, node Node) error {
	return ErrInvalid
}

// Container derives the OCI spec. It validates Config first.
func Container(in ContainerInput) (*specs.Spec, error) { return nil, ErrInvalid }

// Compile turns a spec, of Container or edited since, into a plan.
func Compile(s *specs.Spec, in CompileInput) (*Launchable, error) { return nil, ErrInvalid }

// Exec plans a process inside a running container, with the container's own privileges (B28).
func Exec(in ExecInput) (*Launchable, error) { return nil, ErrInvalid }

// Reaper plans PID 1 of a sandbox whose containers share a PID namespace.
func Reaper(in ReaperInput) (*Launchable, error) { return nil, ErrInvalid }

// Notes gives what Container wrote down as weaker than asked.
func Notes(s *specs.Spec) []string { return nil }

// Print shows a launchable, one line per need and step.
func Print(l *Launchable) string { return "" }

// ImageVolumes lists the VOLUMEs of the image that no mount of the request covers, cleaned and sorted: each needs a
// host directory in ContainerInput.Volumes.
func ImageVolumes(image imagev1.ImageConfig, config *criv1.ContainerConfig) ([]string, error) {
	return nil, ErrInvalid
}

// ImageUser splits the user of an image's USER as ImageStatus reports it: a uid or a name (B48).
func ImageUser(user string) (uid *int64, name string, err error) { return nil, "", ErrInvalid }

// StopSignal is the signal that asks the container to end: the request's, else the image's, else SIGTERM (B23).
func StopSignal(config *criv1.ContainerConfig, image imagev1.ImageConfig) (int, error) {
	return 0, ErrInvalid
}

// LogPath is the absolute path of the container's log, or "" where it has none.
func LogPath(config *criv1.ContainerConfig, sandbox *criv1.PodSandboxConfig) (string, error) {
	return "", ErrInvalid
}

// SeccompKind says which profile is asked for.
type SeccompKind int

// The three profile types of the CRI.
const (
	SeccompUnconfined SeccompKind = iota
	SeccompRuntimeDefault
	SeccompLocalhost // with a path
)

// SeccompProfile reads the profile a container asks for; privileged is unconfined.
func SeccompProfile(config *criv1.ContainerConfig) (kind SeccompKind, path string, err error) {
	return 0, "", ErrInvalid
}

// Sysctls gives the sandbox's sysctls by their dotted names, checked: only namespaced ones of namespaces the sandbox owns.
func Sysctls(config *criv1.PodSandboxConfig) (map[string]string, error) { return nil, ErrInvalid }

// Resources derives the cgroup limits of a container, without device rules: for UpdateContainerResources and stats.
func Resources(resources *criv1.LinuxContainerResources, node Node) (*specs.LinuxResources, error) {
	return nil, ErrInvalid
}

// Treatment says what happens to a field that is set.
type Treatment int

// Every field of the two configurations has one of these.
const (
	_       Treatment = iota
	Handled           // obeyed, or refused where this node cannot
	Refused           // always an error
	Inert             // accepted without effect, for the reason given
)

// Field is one row of the table of fields. A row for a message covers all below it that have no row of their own.
type Field struct {
	Path      string // e.g. "ContainerConfig.mounts.image"
	Treatment Treatment
	Reason    string
}

// Fields lists how every field of PodSandboxConfig and ContainerConfig is treated.
func Fields() []Field { return nil }
