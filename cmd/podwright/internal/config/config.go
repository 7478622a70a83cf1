// Package config owns podwright's configuration: one stable TOML schema, its defaults, drop-ins and checks.
// It reads files and judges values; it opens, mounts and starts nothing. Unknown keys are errors that
// name key, file and line, so that a typing mistake cannot silently leave a default in force.
// Source: docs/configuration.md.
package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// DefaultPath is read where no other file is named; drop-ins lie beside it in conf.d/*.toml.
const DefaultPath = "/etc/podwright/config.toml"

// Config is the whole schema. Every field has a default, see Default.
type Config struct {
	Socket   string `toml:"socket" comment:"The CRI socket, mode 0660."`
	StateDir string `toml:"state_dir" comment:"What outlives a reboot: records, images, writable layers."`
	RunDir   string `toml:"run_dir" comment:"What dies with the boot: sockets, FIFOs, exit files, namespace pins."`
	LogLevel int    `toml:"log_level" comment:"klog verbosity: 0 operator, 2 life cycle, 4 steps, 6 payloads."`

	Runtime Runtime `toml:"runtime"`
	Cgroup  Cgroup  `toml:"cgroup"`
	Network Network `toml:"network"`
	Image   Image   `toml:"image"`
	SELinux SELinux `toml:"selinux"`
	Metrics Metrics `toml:"metrics"`
	Tracing Tracing `toml:"tracing"`

	Streaming Streaming `toml:"streaming"`
}

// Runtime configures how processes are started.
type Runtime struct {
	KeeperBinary   string            `toml:"keeper_binary" comment:"Empty: podwright-keeper beside the podwright executable."`
	InitBinary     string            `toml:"init_binary" comment:"Empty: podwright-init beside the podwright executable."`
	SeccompDefault string            `toml:"seccomp_default_profile" comment:"A file that replaces the built-in RuntimeDefault profile. Empty: built in."`
	UnsetSeccomp   string            `toml:"seccomp_when_unset" comment:"What a container without a seccomp field gets: RuntimeDefault or Unconfined."`
	AppArmor       string            `toml:"apparmor_default_profile" comment:"The AppArmor profile that RuntimeDefault means: podwright-default is loaded by podwright, any other by the node. Empty: none."`
	UnsetAppArmor  string            `toml:"apparmor_when_unset" comment:"What a container without an AppArmor field gets: RuntimeDefault or Unconfined."`
	RefuseWeak     bool              `toml:"refuse_weak_isolation" comment:"End a container at its start if the kernel enforces less than was asked for it."`
	ShutdownGrace  Duration          `toml:"shutdown_grace" comment:"What containers have between their stop signal and SIGKILL when the node goes down, under systemd."`
	PidsLimit      int64             `toml:"pids_limit" comment:"Tasks of one container; 0 is no limit of its own."`
	Rlimits        map[string]Rlimit `toml:"rlimits" comment:"Resource limits of every workload, by name as in getrlimit(2) without RLIMIT_, lower case."`
}

// Rlimit is a pair of limits; the soft one is not above the hard one.
type Rlimit struct {
	Soft uint64 `toml:"soft"`
	Hard uint64 `toml:"hard"`
}

// Cgroup configures where control groups are made.
type Cgroup struct {
	Root         string `toml:"root" comment:"Where the control group file systems are mounted."`
	Driver       string `toml:"driver" comment:"systemd: pods are slices, of scopes that systemd makes; cgroupfs: podwright makes all groups; auto: systemd where it runs the node and control groups are of version 2, else cgroupfs."`
	Parent       string `toml:"parent" comment:"The parent of containers whose pod names none: a path or, with the systemd driver, a slice. Empty: /podwright or podwright-pods.slice. A path makes auto choose cgroupfs, a slice systemd."`
	KeeperParent string `toml:"keeper" comment:"The group of the keeper and its anchor, outside every pod's."`

	AllowWritable bool `toml:"allow_writable" comment:"Obey pods that ask to make groups below their own (annotation io.kubernetes.cri-o.cgroup2-mount-hierarchy-rw)."`
}

// Network configures CNI.
type Network struct {
	ConfDir       string   `toml:"conf_dir" comment:"CNI configurations; the first by name counts."`
	BinDirs       []string `toml:"bin_dirs" comment:"CNI plugin executables."`
	PluginTimeout Duration `toml:"plugin_timeout" comment:"The longest one plugin call may take."`
	NetnsDir      string   `toml:"netns_dir" comment:"Where sandboxes' network namespaces are pinned."`
}

// Image configures the image store.
type Image struct {
	CertsDirs       []string `toml:"certs_dirs" comment:"hosts.toml directories, in the order they are searched."`
	ProgressTimeout Duration `toml:"progress_timeout" comment:"A pull that receives nothing for so long is given up."`
	Downloads       int      `toml:"max_concurrent_downloads" comment:"Layers of one image fetched at a time."`
	Pinned          []string `toml:"pinned" comment:"References reported as pinned: the kubelet's image collection spares them."`
}

// SELinux configures the labels of containers.
type SELinux struct {
	Mode          string `toml:"mode" comment:"auto: containers are labelled where the kernel has SELinux. on: and podwright doesn't start elsewhere. off: never."`
	CategoryRange int    `toml:"category_range" comment:"Pods' pairs of categories are made of so many, from c0 on. The policy has 1024."`
}

// Metrics configures what Prometheus reads.
type Metrics struct {
	Address           string   `toml:"address" comment:"host:port at which /metrics is served over HTTP, e.g. 127.0.0.1:9417. Empty: nowhere."`
	IsolationInterval Duration `toml:"isolation_interval" comment:"How often each running container's isolation is looked at again; only with an address."`
}

// Tracing configures the export of spans, as the kubelet's section of that name does.
type Tracing struct {
	Endpoint     string `toml:"endpoint" comment:"host:port of an OpenTelemetry collector (OTLP over gRPC, no TLS), e.g. localhost:4317. Empty: none."`
	SamplingRate int    `toml:"sampling_rate_per_million" comment:"Of calls whose caller did not decide, how many in a million are traced."`
}

// Streaming configures the server that exec, attach and port-forward sessions go through.
type Streaming struct {
	Address     string   `toml:"address" comment:"An IP address of this node that kubelet and crictl reach. Loopback: nobody else does."`
	Port        int      `toml:"port" comment:"0: any that is free at start."`
	CertFile    string   `toml:"tls_cert_file" comment:"With tls_key_file: sessions go over TLS. PEM; read again when it changes."`
	KeyFile     string   `toml:"tls_key_file"`
	IdleTimeout Duration `toml:"idle_timeout" comment:"A session on which nothing moves for so long is ended."`
}

// Duration is a time.Duration written as text, e.g. "30s".
type Duration time.Duration

// UnmarshalText reads "90s", "5m".
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is no duration such as 30s or 5m", b)
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes it the same way.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Default is the configuration in force where no file says otherwise.
func Default() Config {
	return Config{
		Socket: "/run/podwright/podwright.sock", StateDir: "/var/lib/podwright", RunDir: "/run/podwright", LogLevel: 2,
		Runtime: Runtime{
			UnsetSeccomp: "Unconfined", AppArmor: "podwright-default", UnsetAppArmor: "RuntimeDefault", ShutdownGrace: Duration(30 * time.Second),
			Rlimits: map[string]Rlimit{"nofile": {Soft: 1048576, Hard: 1048576}},
		},
		Cgroup: Cgroup{Root: "/sys/fs/cgroup", Driver: "auto", KeeperParent: "/podwright-keeper"},
		Network: Network{
			ConfDir: "/etc/cni/net.d", BinDirs: []string{"/opt/cni/bin", "/usr/lib/cni"},
			PluginTimeout: Duration(60 * time.Second), NetnsDir: "/run/netns",
		},
		Image: Image{
			CertsDirs:       []string{"/etc/podwright/certs.d", "/etc/containerd/certs.d"},
			ProgressTimeout: Duration(5 * time.Minute), Downloads: 3,
		},
		SELinux:   SELinux{Mode: "auto", CategoryRange: 1024},
		Metrics:   Metrics{IsolationInterval: Duration(time.Hour)},
		Streaming: Streaming{Address: "127.0.0.1", IdleTimeout: Duration(4 * time.Hour)},
	}
}

// Load gives the defaults, overlaid by path and then by its conf.d/*.toml in name order. A missing file
// at DefaultPath is no error; one that was asked for is.
func Load(path string) (Config, error) {
	asked := path != ""
	if !asked {
		path = DefaultPath
	}
	cfg := Default()
	err := overlay(&cfg, path)
	if err != nil && (asked || !errors.Is(err, os.ErrNotExist)) {
		return cfg, err
	}
	dropIns, err := filepath.Glob(filepath.Join(filepath.Dir(path), "conf.d", "*.toml"))
	if err != nil {
		return cfg, fmt.Errorf("list drop-ins of %s: %w", path, err)
	}
	sort.Strings(dropIns)
	for _, dropIn := range dropIns {
		if err := overlay(&cfg, dropIn); err != nil {
			return cfg, err
		}
	}
	return cfg, cfg.check()
}

func overlay(cfg *Config, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	err = toml.NewDecoder(f).DisallowUnknownFields().Decode(cfg)
	var unknown *toml.StrictMissingError
	var bad *toml.DecodeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &unknown):
		var errs []error
		for _, e := range unknown.Errors {
			row, _ := e.Position()
			errs = append(errs, fmt.Errorf("%s:%d: unknown key %q", path, row, strings.Join(e.Key(), ".")))
		}
		return errors.Join(errs...)
	case errors.As(err, &bad):
		row, column := bad.Position()
		if len(bad.Key()) == 0 { // no TOML at all
			return fmt.Errorf("%s:%d:%d: %w", path, row, column, err)
		}
		return fmt.Errorf("%s:%d:%d: %s: %w", path, row, column, strings.Join(bad.Key(), "."), err)
	}
	return fmt.Errorf("%s: %w", path, err)
}

// Marshal writes cfg as a file that Load reads back, with a comment for every key.
func (cfg Config) Marshal() ([]byte, error) { return toml.Marshal(cfg) }
