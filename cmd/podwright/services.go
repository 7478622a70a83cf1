package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"k8s.io/klog/v2"

	"github.com/podwright/podwright/cmd/podwright/internal/config"
	"github.com/podwright/podwright/cni"
	"github.com/podwright/podwright/cri"
	"github.com/podwright/podwright/cri/admin"
	"github.com/podwright/podwright/cri/streaming"
	"github.com/podwright/podwright/cri/telemetry"
	"github.com/podwright/podwright/podsandbox"
	"github.com/podwright/podwright/podsandbox/podfiles"
	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/podsandbox/spec"
	"github.com/podwright/podwright/runtime/apparmor"
	"github.com/podwright/podwright/runtime/cgroup"
	"github.com/podwright/podwright/runtime/image"
	"github.com/podwright/podwright/runtime/keeper"
	"github.com/podwright/podwright/runtime/mounts"
	"github.com/podwright/podwright/runtime/seccomp"
	"github.com/podwright/podwright/runtime/systemd"
	"github.com/podwright/podwright/seccompprofiles"
)

// services is everything behind the socket, in the order it is closed.
type services struct {
	cfg      config.Config
	manager  *podsandbox.Manager
	images   *image.Store
	network  *cni.Network
	records  *record.Store
	systemd  *systemd.Conn // nil where it does not run
	cgroups  *cgroup.Manager
	keeper   *keeper.Client
	apparmor *apparmor.Policy // nil where the kernel has none
	watch    *telemetry.Telemetry
	sessions *streaming.Server
	closers  []func() error
}

func (s *services) close() {
	for i := len(s.closers) - 1; i >= 0; i-- {
		if err := s.closers[i](); err != nil {
			klog.ErrorS(err, "Could not close a service")
		}
	}
}

// openServices builds the services from the configuration and recovers what earlier daemons left.
func openServices(ctx context.Context, cfg config.Config, watch *telemetry.Telemetry) (*services, error) {
	s := &services{cfg: cfg, watch: watch}
	if err := s.open(ctx); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *services) open(ctx context.Context) error {
	for dir, mode := range map[string]os.FileMode{s.cfg.StateDir: 0o711, s.cfg.RunDir: 0o711} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	if err := s.openStores(ctx); err != nil {
		return err
	}
	var err error
	if s.apparmor, err = openAppArmor(ctx, s.cfg); err != nil {
		return err
	}
	manager, err := s.openManager()
	if err != nil {
		return err
	}
	s.manager = manager
	if s.keeper, err = s.connectKeeper(ctx, manager); err != nil {
		return err
	}
	if err := manager.Start(ctx, s.keeper); err != nil {
		return err
	}
	if err := s.openSessions(); err != nil {
		return err
	}
	s.images.StartGC(ctx)
	// Owner: the daemon; ends by the plugins' deadlines. Nothing waits: what it frees is nobody's.
	go func() {
		if err := s.network.GC(ctx, manager.SandboxIDs); err != nil {
			klog.FromContext(ctx).Error(err, "CNI GC failed; addresses of vanished pods may stay taken")
		}
	}()
	return nil
}

func (s *services) openStores(ctx context.Context) error {
	var err error
	if s.records, err = record.Open(record.Config{Root: filepath.Join(s.cfg.StateDir, "records")}); err != nil {
		return err
	}
	s.closers = append(s.closers, s.records.Close)
	s.images, err = image.Open(ctx, image.Config{
		Root: filepath.Join(s.cfg.StateDir, "images"), Unpacker: unpacker, CertsDirs: s.cfg.Image.CertsDirs, ProgressTimeout: time.Duration(s.cfg.Image.ProgressTimeout),
		MaxConcurrentDownloads: s.cfg.Image.Downloads, Pinned: s.cfg.Image.Pinned, Observe: s.watch.Pulled,
	})
	if err != nil {
		return err
	}
	s.closers = append(s.closers, s.images.Close)
	s.network, err = cni.New(cni.Config{
		ConfDir: s.cfg.Network.ConfDir, BinDirs: s.cfg.Network.BinDirs, CacheDir: filepath.Join(s.cfg.StateDir, "cni"),
		PluginTimeout: time.Duration(s.cfg.Network.PluginTimeout),
	})
	if err != nil {
		return err
	}
	if err := s.network.Start(ctx); err != nil {
		return err
	}
	s.closers = append(s.closers, s.network.Close)
	return nil
}

func (s *services) openManager() (*podsandbox.Manager, error) {
	var err error
	if systemd.Booted() {
		s.systemd = systemd.New()
		s.closers = append(s.closers, s.systemd.Close)
	}
	var parent string
	if s.cgroups, parent, err = openCgroups(s.cfg, s.systemd); err != nil {
		return nil, err
	}
	pins, err := openPins(s.cfg)
	if err != nil {
		return nil, err
	}
	s.closers = append(s.closers, pins.Close)
	files, err := podfiles.New(podfiles.Config{Root: filepath.Join(s.cfg.RunDir, "sandboxes")})
	if err != nil {
		return nil, err
	}
	opener, err := mounts.New()
	if err != nil {
		return nil, err
	}
	compiler, err := seccomp.New(seccomp.Config{})
	if err != nil {
		return nil, err
	}
	profile := seccompprofiles.Default()
	if path := s.cfg.Runtime.SeccompDefault; path != "" {
		if profile, err = seccompprofiles.Localhost(filepath.Dir(path), path); err != nil {
			return nil, fmt.Errorf("runtime.seccomp_default_profile: %w", err)
		}
	}
	node, err := nodeFacts(s.cfg, s.cgroups)
	if err != nil {
		return nil, err
	}
	labels, idle, err := openLabels(s.cfg.SELinux)
	if err != nil {
		return nil, err
	}
	node.SELinux, node.SELinuxIdle = labels != nil, idle
	node.RecursiveReadOnly = probeRecursiveReadOnly()
	node.UserNamespaces = probeUserNamespaces(s.cfg.StateDir, pins, opener)
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	unset := spec.SeccompUnconfined
	if s.cfg.Runtime.UnsetSeccomp == "RuntimeDefault" {
		unset = spec.SeccompRuntimeDefault
	}
	watch := time.Duration(0) // what nobody can read, nobody needs to look for
	if s.cfg.Metrics.Address != "" {
		watch = time.Duration(s.cfg.Metrics.IsolationInterval)
	}
	return podsandbox.New(podsandbox.Config{
		StateDir: s.cfg.StateDir, RunDir: s.cfg.RunDir, Node: node, CgroupParent: parent, SeccompDefault: profile,
		UnsetSeccomp: unset, AppArmor: s.apparmor, UnsetAppArmor: unsetAppArmor(s.cfg), RefuseWeakIsolation: s.cfg.Runtime.RefuseWeak, IsolationInterval: watch,
		BootID: boot, Records: s.records, Files: files, Namespaces: pins,
		Cgroups: s.cgroups, Mounts: opener, Seccomp: compiler, Network: s.network, Images: imageSource{s.images},
		Labels: labels, Observe: s.watch.Operation,
	})
}

// openSessions takes the port; serve answers on it.
func (s *services) openSessions() error {
	cfg := s.cfg.Streaming
	var err error
	s.sessions, err = streaming.New(streaming.Config{
		Runtime: s.manager, Objects: s.manager, Address: net.JoinHostPort(cfg.Address, strconv.Itoa(cfg.Port)),
		CertFile: cfg.CertFile, KeyFile: cfg.KeyFile, IdleTimeout: time.Duration(cfg.IdleTimeout),
	})
	if err != nil {
		return err
	}
	s.closers = append(s.closers, func() error { return s.sessions.Close(context.Background()) }) // where serve was not reached
	return nil
}

func (s *services) register(server *grpc.Server) error {
	edge, err := cri.New(cri.Config{
		Manager: s.manager, Images: s.images, Network: s.network, Sessions: s.sessions, Version: version, Driver: announcedDriver(s.cgroups),
		Info: func() any {
			return statusInfo{
				StateDir: filepath.Join(s.cfg.StateDir, "containers"), Config: s.cfg, Cgroup: s.cgroups.Version(),
				AppArmor: describeAppArmor(s.apparmor, s.cfg),
			}
		},
	})
	if err != nil {
		return err
	}
	edge.Register(server)
	own, err := admin.New(admin.Config{Manager: s.manager, Images: s.images})
	if err != nil {
		return err
	}
	own.Register(server)
	return nil
}

// sources are what telemetry looks at.
func (s *services) sources() telemetry.Sources {
	return telemetry.Sources{Operations: s.manager.Operations, Objects: s.manager.Counts, Images: s.images, Keeper: s.keeper}
}

// statusInfo is verbose Status's "config"; kubeadm reads sandboxImage there, and podwright has none.
type statusInfo struct {
	SandboxImage string        `json:"sandboxImage"`
	StateDir     string        `json:"stateDir"` // of writable layers; critest looks there whether the file system maps ids
	Cgroup       int           `json:"cgroupVersion"`
	AppArmor     string        `json:"apparmor"` // what RuntimeDefault is, or why there is none
	Config       config.Config `json:"config"`
}

func bootID() (string, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}

// imageSource shows the image store to podsandbox, which stands on the same floor.
type imageSource struct{ *image.Store }

func (s imageSource) Image(ref string) (podsandbox.Image, error) {
	img, err := s.Store.Get(ref)
	if errors.Is(err, image.ErrNotFound) {
		return podsandbox.Image{}, &podsandbox.Error{Kind: podsandbox.ErrNotFound, Err: err}
	}
	if err != nil {
		return podsandbox.Image{}, &podsandbox.Error{Kind: podsandbox.ErrInvalid, Err: err}
	}
	out := podsandbox.Image{ID: img.ID, Ref: img.ID, Config: img.Config}
	if len(img.RepoDigests) > 0 {
		out.Ref = img.RepoDigests[0]
	}
	return out, nil
}
