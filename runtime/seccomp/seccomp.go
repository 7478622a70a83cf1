// Package seccomp turns seccomp profiles into finished BPF programs, once per
// profile, and keeps them. libseccomp builds the program; this package adds in
// front of it what libseccomp can't express: ENOSYS for system calls newer than
// the profile, and rules for system calls newer than the library.
// It loads nothing: init does, with seccomp(2). It reads no files and knows no
// containers. Only this package imports libseccomp.
// Sources: seccomp(2); the OCI runtime specification's config-linux.md (seccomp);
// Documentation/userspace-api/seccomp_filter.rst.
package seccomp

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/podwright/podwright/seccompprofiles"
)

// Filter is a program as seccomp(2) SECCOMP_SET_MODE_FILTER takes it. It is
// shared: nobody may change it.
type Filter struct {
	Program []byte // array of struct sock_filter, native byte order
	Flags   uint32 // SECCOMP_FILTER_FLAG_*
	Digest  string // of both, sha256:<hex>
}

// instructionBytes is sizeof(struct sock_filter).
const instructionBytes = 8

// Instructions is the program's length as struct sock_fprog counts it.
func (f *Filter) Instructions() int { return len(f.Program) / instructionBytes }

// Config says for which node to compile. The zero value is this one.
type Config struct {
	Arch         string                  // GOARCH; "" is the running one
	Kernel       seccompprofiles.Version // zero is the running kernel's
	CacheEntries int                     // filters kept, and resolved profiles kept; 0 is 128
}

const defaultCacheEntries = 128

// Compiler compiles profiles and remembers the results. It is safe for
// concurrent use; a profile that is asked for twice at once is compiled once.
type Compiler struct {
	arch     string
	kernel   seccompprofiles.Version
	noX32    bool // the kernel answers ENOSYS to every call of the x32 ABI
	filters  *cache[*Filter]
	profiles *cache[resolved]
}

type resolved struct {
	filter *Filter
	spec   *specs.LinuxSeccomp
}

// New prepares a compiler.
func New(config Config) (*Compiler, error) {
	if config.Arch == "" {
		config.Arch = runtime.GOARCH
	}
	if seccompprofiles.Personalities(config.Arch) == nil {
		return nil, fmt.Errorf("seccomp compiler: architecture %q is not supported", config.Arch)
	}
	if config.Kernel == (seccompprofiles.Version{}) {
		kernel, err := runningKernel()
		if err != nil {
			return nil, fmt.Errorf("seccomp compiler: %w", err)
		}
		config.Kernel = kernel
	}
	if config.CacheEntries < 0 {
		return nil, fmt.Errorf("seccomp compiler: %d cache entries", config.CacheEntries)
	}
	if config.CacheEntries == 0 {
		config.CacheEntries = defaultCacheEntries
	}
	return &Compiler{
		arch:     config.Arch,
		kernel:   config.Kernel,
		noX32:    config.Arch == runtime.GOARCH && !kernelHasX32(),
		filters:  newCache[*Filter](config.CacheEntries),
		profiles: newCache[resolved](config.CacheEntries),
	}, nil
}

func runningKernel() (seccompprofiles.Version, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return seccompprofiles.Version{}, fmt.Errorf("uname: %w", err)
	}
	return seccompprofiles.KernelVersion(unix.ByteSliceToString(name.Release[:]))
}

// CompileProfile is the whole way from a profile's text to a filter, for a
// container with the given bounding set (CAP_ names). Filter and spec are
// shared and must not be changed. A bad profile is a *seccompprofiles.Error.
func (c *Compiler) CompileProfile(raw []byte, caps []string) (*Filter, *specs.LinuxSeccomp, error) {
	r, err := c.profiles.get(profileKey(raw, caps), func() (resolved, error) {
		profile, err := seccompprofiles.Parse(raw)
		if err != nil {
			return resolved{}, err
		}
		spec, err := profile.Resolve(c.arch, c.kernel, caps)
		if err != nil {
			return resolved{}, err
		}
		filter, err := c.Compile(spec)
		return resolved{filter: filter, spec: spec}, err
	})
	return r.filter, r.spec, err
}

// Compile makes the filter of a resolved profile. The result is shared and must
// not be changed.
func (c *Compiler) Compile(spec *specs.LinuxSeccomp) (*Filter, error) {
	if spec == nil {
		return nil, errors.New("compile seccomp filter: no profile")
	}
	key, err := specKey(spec)
	if err != nil {
		return nil, fmt.Errorf("compile seccomp filter: %w", err)
	}
	return c.filters.get(key, func() (*Filter, error) {
		filter, err := compile(c.arch, c.noX32, spec)
		if err != nil {
			return nil, fmt.Errorf("compile seccomp filter: %w", err)
		}
		return filter, nil
	})
}

// kernelHasX32 asks by the cheapest call there is. Few kernels have the ABI, and
// a filter without it is a quarter shorter, which is 0.1 ms at every start of a
// process (Linux 6.18).
func kernelHasX32() bool {
	_, _, errno := unix.RawSyscall(x32Bit|unix.SYS_GETPID, 0, 0, 0)
	return runtime.GOARCH == "amd64" && errno == 0
}

func profileKey(raw []byte, caps []string) digest {
	sorted := slices.Clone(caps)
	slices.Sort(sorted)
	h := sha256.New()
	for _, c := range slices.Compact(sorted) {
		h.Write([]byte(c))
		h.Write([]byte{0})
	}
	h.Write([]byte{0}) // ends the list: no name is empty
	h.Write(raw)
	return digest(h.Sum(nil))
}

func specKey(spec *specs.LinuxSeccomp) (digest, error) {
	text, err := json.Marshal(spec)
	if err != nil {
		return digest{}, err
	}
	// JSON doesn't tell no flags from an empty list of them.
	if spec.Flags != nil {
		text = append(text, '+')
	}
	return sha256.Sum256(text), nil
}

func newFilter(program []byte, flags uint32) *Filter {
	h := sha256.New()
	h.Write([]byte{byte(flags), byte(flags >> 8), byte(flags >> 16), byte(flags >> 24)})
	h.Write(program)
	return &Filter{Program: program, Flags: flags, Digest: "sha256:" + hex.EncodeToString(h.Sum(nil))}
}
