// Package cni attaches sandboxes to the node's networks through libcni.
//
// Owns: the node's CNI configuration as it is now (watched, so that NetworkReady
// follows it), the execution of plugins with a deadline and a bounded ear, and
// libcni's cache of results. It says yes or no to readiness from memory alone.
//
// May not: make network namespaces (they arrive as a path), keep sandbox records
// (an Attachment is given to the caller to store and comes back for DEL), bring
// lo up, or know CRI types.
//
// Source: the CNI specification 1.1.0 and its CONVENTIONS.md (K8S_POD_* arguments
// and capabilities), github.com/containernetworking/cni/libcni.
package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sync/semaphore"
)

// ErrNotReady is what Status and Attach wrap while no network can be had.
var ErrNotReady = errors.New("network is not ready")

// Config says where the node's network configuration is. All paths are absolute.
type Config struct {
	ConfDir  string   // "/etc/cni/net.d"
	BinDirs  []string // "/opt/cni/bin", "/usr/lib/cni"; the first that has a plugin counts
	CacheDir string   // of ours alone; must survive a reboot, as the plugins' own state does

	// A plugin that takes longer is killed with its process group. 0 is a minute.
	PluginTimeout time.Duration

	// How many networks a sandbox is attached to: the first so many configurations
	// in the order of their file names, as eth0, eth1, ... 0 is 1.
	MaxConfNum int
}

const (
	defaultPluginTimeout = time.Minute
	// Probing decides NetworkReady, which has to follow within seconds.
	maxProbeTimeout = 5 * time.Second
	maxNetworks     = 16

	allOps = 1 << 20
)

// Network is the node's network as its configuration describes it. All methods
// may be called concurrently; those for one sandbox are serialised by the caller.
type Network struct {
	cfg    Config
	runner *runner
	lib    *libcni.CNIConfig
	probe  *prober // used by the watcher only

	state   atomic.Pointer[state]
	podCIDR atomic.Pointer[[]netip.Prefix]

	// ops counts ADDs and DELs; GC takes all of it, as the specification wants GC
	// to run alone. A waiting caller can leave, which a lock would not allow.
	ops *semaphore.Weighted

	// podCIDRMu serialises writers of the file that holds podCIDR.
	podCIDRMu sync.Mutex

	stop context.CancelFunc // set by Start
	done chan struct{}      // closed when the watcher has ended
}

// state is replaced as a whole, never changed.
type state struct {
	networks []*network
	err      error // why not ready; nil is ready
}

// New reads what an earlier daemon stored; it touches no configuration yet.
func New(cfg Config) (*Network, error) {
	for _, dir := range append([]string{cfg.ConfDir, cfg.CacheDir}, cfg.BinDirs...) {
		if !filepath.IsAbs(dir) {
			return nil, fmt.Errorf("cni directory %q: not an absolute path", dir)
		}
		if strings.ContainsRune(dir, os.PathListSeparator) {
			return nil, fmt.Errorf("cni directory %q: a colon separates directories in CNI_PATH", dir)
		}
	}
	if len(cfg.BinDirs) == 0 {
		return nil, errors.New("cni: no directory of plugins")
	}
	if cfg.PluginTimeout <= 0 {
		cfg.PluginTimeout = defaultPluginTimeout
	}
	if cfg.MaxConfNum == 0 {
		cfg.MaxConfNum = 1
	}
	if cfg.MaxConfNum < 1 || cfg.MaxConfNum > maxNetworks {
		return nil, fmt.Errorf("cni: %d networks for a sandbox: want 1 to %d", cfg.MaxConfNum, maxNetworks)
	}
	if err := os.MkdirAll(cfg.CacheDir, 0o700); err != nil {
		return nil, fmt.Errorf("make cni cache: %w", err)
	}
	n := &Network{cfg: cfg, runner: &runner{timeout: cfg.PluginTimeout}, done: make(chan struct{}), ops: semaphore.NewWeighted(allOps)}
	n.lib = libcni.NewCNIConfigWithCacheDir(cfg.BinDirs, cfg.CacheDir, n.runner)
	n.probe = newProber(cfg)
	n.state.Store(&state{err: fmt.Errorf("%w: the configuration in %s has not been read yet", ErrNotReady, cfg.ConfDir)})
	if err := n.loadPodCIDR(); err != nil {
		return nil, err
	}
	return n, nil
}

// Start reads the configuration once before it returns and watches it from then
// on, until ctx is done or Close is called. It is called once.
func (n *Network) Start(ctx context.Context) error {
	ctx, n.stop = context.WithCancel(ctx)
	if networks, err := n.load(); err != nil {
		n.state.Store(&state{err: err})
	} else {
		n.state.Store(&state{networks: networks, err: fmt.Errorf("%w: the plugins of network %q are being asked", ErrNotReady, networks[0].name)})
	}
	// Owner: this Network; it stops when ctx is done, and Close waits for it.
	go n.watch(ctx)
	return nil
}

// Close stops the watcher and waits for it. What is attached stays attached.
func (n *Network) Close() error {
	if n.stop == nil {
		return nil
	}
	n.stop()
	<-n.done
	return nil
}

// Status is nil when sandboxes can be attached, else it says what is missing. It
// reads memory only and takes no lock.
func (n *Network) Status() error { return n.state.Load().err }

// podCIDRFile is kept because the kubelet sends the range once, to whichever
// daemon runs then.
func (n *Network) podCIDRFile() string { return filepath.Join(n.cfg.CacheDir, "podcidr") }

// SetPodCIDR sets the node's address ranges, one or several separated by commas,
// which plugins with the ipRanges capability get from the next ADD on (B56). An
// empty string says nothing about them and changes nothing.
func (n *Network) SetPodCIDR(cidrs string) error {
	prefixes, err := parseCIDRs(cidrs)
	if err != nil || len(prefixes) == 0 {
		return err
	}
	n.podCIDRMu.Lock()
	defer n.podCIDRMu.Unlock()
	if err := replaceFile(n.podCIDRFile(), []byte(joinPrefixes(prefixes))); err != nil {
		return fmt.Errorf("store pod CIDR: %w", err)
	}
	n.podCIDR.Store(&prefixes)
	return nil
}

func (n *Network) loadPodCIDR() error {
	data, err := readBounded(n.podCIDRFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read pod CIDR: %w", err)
	}
	prefixes, err := parseCIDRs(string(data))
	if err != nil {
		return fmt.Errorf("read %s: %w", n.podCIDRFile(), err)
	}
	n.podCIDR.Store(&prefixes)
	return nil
}

func parseCIDRs(cidrs string) ([]netip.Prefix, error) {
	var prefixes []netip.Prefix
	for _, cidr := range strings.Split(cidrs, ",") {
		cidr = strings.TrimSpace(cidr)
		if cidr == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(cidr)
		if err != nil {
			return nil, fmt.Errorf("pod CIDR %.100q: not an address range", cidr)
		}
		if prefix != prefix.Masked() {
			return nil, fmt.Errorf("pod CIDR %q: has bits beyond its prefix; the range would be %s", cidr, prefix.Masked())
		}
		prefixes = append(prefixes, prefix)
	}
	return prefixes, nil
}

func joinPrefixes(prefixes []netip.Prefix) string {
	words := make([]string, len(prefixes))
	for i, prefix := range prefixes {
		words[i] = prefix.String()
	}
	return strings.Join(words, ",")
}

// replaceFile is atomic for readers and for a crash of the daemon.
func replaceFile(path string, data []byte) error {
	temp, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = temp.Write(data)
	if err = errors.Join(err, temp.Close()); err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(temp.Name())
	}
	return err
}
