package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/podwright/podwright/cmd/podwright/internal/config"
	"github.com/podwright/podwright/podsandbox/spec"
	"github.com/podwright/podwright/runtime/apparmor"
	"github.com/podwright/podwright/runtime/cgroup"
	"github.com/podwright/podwright/runtime/mounts"
)

// nodeFacts are what decides about a request besides the request: this machine and the operator's configuration.
func nodeFacts(cfg config.Config, groups *cgroup.Manager) (spec.Node, error) {
	caps, err := heldCapabilities()
	if err != nil {
		return spec.Node{}, err
	}
	node := spec.Node{
		CgroupVersion: groups.Version(), Controllers: groups.Controllers(), HugepageSizes: hugepageSizes(),
		SwapLimit: swapLimit(groups), Capabilities: caps, AppArmor: apparmor.Enabled(), PidsLimit: cfg.Runtime.PidsLimit,
		AllowWritableCgroups: cfg.Cgroup.AllowWritable, CgroupDelegation: cgroup.Delegates(groups),
	}
	for _, h := range groups.V1Hierarchies() {
		entry := spec.Hierarchy{Dir: filepath.Base(h.MountPoint), Options: h.Controllers}
		if h.Name != "" {
			entry.Options = []string{"none", "name=" + h.Name}
		}
		node.Hierarchies = append(node.Hierarchies, entry)
	}
	privileged := caps&(1<<unix.CAP_SYS_RESOURCE) != 0
	if node.MinOOMScoreAdj, err = minOOMScore(privileged); err != nil {
		return spec.Node{}, err
	}
	node.Rlimits, err = rlimits(cfg.Runtime.Rlimits, privileged)
	return node, err
}

// heldCapabilities is what "all" means here: the permitted set of podwright itself.
func heldCapabilities() (uint64, error) {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return 0, fmt.Errorf("read own capabilities: %w", err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "CapPrm:"); ok {
			return strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		}
	}
	return 0, fmt.Errorf("read own capabilities: /proc/self/status has no CapPrm line")
}

// minOOMScore is the lowest oom_score_adj a workload can get: without CAP_SYS_RESOURCE nobody goes below what it has (proc(5)).
func minOOMScore(privileged bool) (int, error) {
	if privileged {
		return -1000, nil
	}
	raw, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0, fmt.Errorf("read own OOM score: %w", err)
	}
	return strconv.Atoi(strings.TrimSpace(string(raw)))
}

// rlimits gives the configured limits in the spec's form. A hard limit above podwright's own needs CAP_SYS_RESOURCE; without
// it the limit is lowered to what can be set, and said so, rather than every start refused.
func rlimits(configured map[string]config.Rlimit, privileged bool) ([]specs.POSIXRlimit, error) {
	var list []specs.POSIXRlimit
	for name, limit := range configured {
		number, ok := config.RlimitNumber(name)
		if !ok {
			return nil, fmt.Errorf("runtime.rlimits.%s: no such limit", name)
		}
		var own unix.Rlimit
		if err := unix.Getrlimit(number, &own); err != nil {
			return nil, fmt.Errorf("read own limit %s: %w", name, err)
		}
		if !privileged && limit.Hard > own.Max {
			klog.InfoS("Lowered a configured limit: raising it needs CAP_SYS_RESOURCE", "limit", name, "configured", limit.Hard, "effective", own.Max)
			limit.Hard, limit.Soft = own.Max, min(limit.Soft, own.Max)
		}
		list = append(list, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(name), Soft: limit.Soft, Hard: limit.Hard})
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Type < list[j].Type })
	return list, nil
}

// hugepageSizes names the sizes as the limit files do: hugepages-2048kB is 2MB.
func hugepageSizes() []string {
	dirs, err := filepath.Glob("/sys/kernel/mm/hugepages/hugepages-*kB")
	if err != nil {
		return nil
	}
	var sizes []string
	for _, dir := range dirs {
		kb, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(dir), "hugepages-"), "kB"), 10, 64)
		switch {
		case err != nil:
		case kb >= 1<<20:
			sizes = append(sizes, fmt.Sprintf("%dGB", kb>>20))
		case kb >= 1<<10:
			sizes = append(sizes, fmt.Sprintf("%dMB", kb>>10))
		default:
			sizes = append(sizes, fmt.Sprintf("%dKB", kb))
		}
	}
	return sizes
}

// swapLimit: v1 has memory.memsw files only where swap accounting is on; v2 has memory.swap.max in every group but the root.
func swapLimit(groups *cgroup.Manager) bool {
	if groups.Version() == 2 {
		raw, err := os.ReadFile("/proc/swaps")
		return err == nil && len(raw) > 0
	}
	for _, h := range groups.V1Hierarchies() {
		for _, controller := range h.Controllers {
			if controller == "memory" {
				_, err := os.Stat(filepath.Join(h.MountPoint, "memory.memsw.limit_in_bytes"))
				return err == nil
			}
		}
	}
	return false
}

// probeRecursiveReadOnly: what a kernel, or what stands in for one, only seems to do is not announced, and refused where it is
// asked for.
func probeRecursiveReadOnly() bool {
	err := mounts.ProbeReadOnlyBelow()
	if err != nil {
		klog.InfoS("Mounts cannot be recursively read-only on this node", "err", fmt.Sprint(err))
	}
	return err == nil
}

// binary finds a program of podwright's: the configured path, else beside this executable or in ../libexec/podwright.
func binary(configured, name string) (string, error) {
	if configured != "" {
		return configured, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find %s: %w", name, err)
	}
	dir := filepath.Dir(self)
	candidates := []string{filepath.Join(dir, name), filepath.Join(filepath.Dir(dir), "libexec", "podwright", name)}
	for _, path := range candidates {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("find %s: it is at none of %s; name it in the configuration", name, strings.Join(candidates, ", "))
}
