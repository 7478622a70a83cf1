package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/podwright/podwright/runtime/cgroup"
)

// rlimitNames are the limits setrlimit(2) knows, with their numbers on Linux (asm-generic/resource.h).
var rlimitNames = map[string]int{
	"cpu": 0, "fsize": 1, "data": 2, "stack": 3, "core": 4, "rss": 5, "nproc": 6, "nofile": 7, "memlock": 8,
	"as": 9, "locks": 10, "sigpending": 11, "msgqueue": 12, "nice": 13, "rtprio": 14, "rttime": 15,
}

// RlimitNumber is the kernel's number of a limit's name in the configuration.
func RlimitNumber(name string) (int, bool) {
	number, ok := rlimitNames[name]
	return number, ok
}

// check judges the values one by one and reports every bad one.
func (cfg Config) check() error {
	var errs []error
	absolute := func(key, path string) {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path {
			errs = append(errs, fmt.Errorf("%s: %q is no clean absolute path", key, path))
		}
	}
	absolute("socket", cfg.Socket)
	absolute("state_dir", cfg.StateDir)
	absolute("run_dir", cfg.RunDir)
	absolute("cgroup.root", cfg.Cgroup.Root)
	absolute("cgroup.keeper", cfg.Cgroup.KeeperParent)
	absolute("network.conf_dir", cfg.Network.ConfDir)
	absolute("network.netns_dir", cfg.Network.NetnsDir)
	for _, dir := range append(append([]string{}, cfg.Network.BinDirs...), cfg.Image.CertsDirs...) {
		absolute("network.bin_dirs, image.certs_dirs", dir)
	}
	errs = append(errs, cfg.Cgroup.check(absolute)...)
	errs = append(errs, cfg.Runtime.check()...)
	if cfg.Network.PluginTimeout <= 0 {
		errs = append(errs, errors.New("network.plugin_timeout: must be above 0"))
	}
	if cfg.Image.ProgressTimeout <= 0 {
		errs = append(errs, errors.New("image.progress_timeout: must be above 0"))
	}
	if cfg.Metrics.IsolationInterval <= 0 {
		errs = append(errs, errors.New("metrics.isolation_interval: must be above 0"))
	}
	if cfg.Image.Downloads < 1 {
		errs = append(errs, fmt.Errorf("image.max_concurrent_downloads: %d is below 1", cfg.Image.Downloads))
	}
	hostPort := func(key, address string, lowest uint64) {
		if err := checkHostPort(address, lowest); address != "" && err != nil {
			errs = append(errs, fmt.Errorf("%s: %q %w", key, address, err))
		}
	}
	hostPort("metrics.address", cfg.Metrics.Address, 0)
	hostPort("tracing.endpoint", cfg.Tracing.Endpoint, 1)
	if rate := cfg.Tracing.SamplingRate; rate < 0 || rate > 1_000_000 {
		errs = append(errs, fmt.Errorf("tracing.sampling_rate_per_million: %d is not from 0 to 1000000", rate))
	}
	streamErrs := cfg.Streaming.check(absolute) // which adds to errs, too
	return errors.Join(append(append(errs, streamErrs...), cfg.SELinux.check())...)
}

func (s SELinux) check() error {
	var errs []error
	if s.Mode != "auto" && s.Mode != "on" && s.Mode != "off" {
		errs = append(errs, fmt.Errorf("selinux.mode: %q is none of auto, on, off", s.Mode))
	}
	if s.CategoryRange < 2 || s.CategoryRange > 1024 {
		errs = append(errs, fmt.Errorf("selinux.category_range: %d is not within 2-1024", s.CategoryRange))
	}
	return errors.Join(errs...)
}

func (r Runtime) check() (errs []error) {
	for key, v := range map[string]string{"seccomp_when_unset": r.UnsetSeccomp, "apparmor_when_unset": r.UnsetAppArmor} {
		if v != "RuntimeDefault" && v != "Unconfined" {
			errs = append(errs, fmt.Errorf("runtime.%s: %q is neither RuntimeDefault nor Unconfined", key, v))
		}
	}
	if v := r.AppArmor; v == "unconfined" || strings.TrimSpace(v) != v || strings.ContainsFunc(v, unicode.IsControl) {
		errs = append(errs, fmt.Errorf("runtime.apparmor_default_profile: %q is no name of a profile; empty is none", v))
	}
	if r.PidsLimit < 0 {
		errs = append(errs, fmt.Errorf("runtime.pids_limit: %d is below 0", r.PidsLimit))
	}
	for name, limit := range r.Rlimits {
		if _, ok := rlimitNames[name]; !ok {
			errs = append(errs, fmt.Errorf("runtime.rlimits.%s: no such limit; known are %s", name, strings.Join(limitNames(), ", ")))
		} else if limit.Soft > limit.Hard {
			errs = append(errs, fmt.Errorf("runtime.rlimits.%s: soft %d is above hard %d", name, limit.Soft, limit.Hard))
		}
	}
	if r.ShutdownGrace < 0 {
		errs = append(errs, fmt.Errorf("runtime.shutdown_grace: %v is below 0", time.Duration(r.ShutdownGrace)))
	}
	return errs
}

func (c Cgroup) check(absolute func(key, path string)) (errs []error) {
	isSlice := strings.HasSuffix(c.Parent, ".slice") && !strings.Contains(c.Parent, "/")
	parent := c.Parent
	if parent == "" {
		parent = cgroup.DefaultParent
	}
	if !isSlice {
		absolute("cgroup.parent", parent)
		if strings.HasPrefix(c.KeeperParent+"/", parent+"/") {
			errs = append(errs, fmt.Errorf("cgroup.keeper: %q lies below cgroup.parent %q: the keeper would share the pods' limits", c.KeeperParent, parent))
		}
	}
	switch c.Driver {
	case "auto", "systemd":
	case "cgroupfs":
		if isSlice {
			errs = append(errs, fmt.Errorf("cgroup.parent: %q is a slice, and cgroup.driver is cgroupfs: want an absolute path", c.Parent))
		}
	default:
		errs = append(errs, fmt.Errorf("cgroup.driver: %q is none of auto, systemd, cgroupfs", c.Driver))
	}
	return errs
}

func (s Streaming) check(absolute func(key, path string)) (errs []error) {
	if _, err := netip.ParseAddr(s.Address); err != nil {
		errs = append(errs, fmt.Errorf("streaming.address: %q is no IP address", s.Address))
	}
	if s.Port < 0 || s.Port > 65535 {
		errs = append(errs, fmt.Errorf("streaming.port: %d is not within 0-65535", s.Port))
	}
	if (s.CertFile == "") != (s.KeyFile == "") {
		errs = append(errs, fmt.Errorf("streaming.tls_cert_file %q, streaming.tls_key_file %q: one without the other", s.CertFile, s.KeyFile))
	} else if s.CertFile != "" {
		absolute("streaming.tls_cert_file", s.CertFile)
		absolute("streaming.tls_key_file", s.KeyFile)
	}
	if s.IdleTimeout <= 0 {
		errs = append(errs, errors.New("streaming.idle_timeout: must be above 0"))
	}
	return errs
}

// checkHostPort takes what net.Dial does of TCP, with a port in figures. Port 0 lets the kernel choose one.
func checkHostPort(address string, lowest uint64) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil || strings.ContainsAny(host, "/@ ") {
		return errors.New("is no host:port, such as 127.0.0.1:9417")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n < lowest {
		return fmt.Errorf("has the port %q, which is no number up to 65535", port)
	}
	return nil
}

func limitNames() []string {
	names := make([]string, 0, len(rlimitNames))
	for name := range rlimitNames {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}
