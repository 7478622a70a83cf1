package cni

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/fsnotify/fsnotify"
	"k8s.io/klog/v2"
)

const (
	// Whoever writes a file writes it in pieces: it is read once it has been quiet,
	// but not put off for ever.
	settleQuiet = 100 * time.Millisecond
	settleMax   = time.Second
	// Looking again without an event: for STATUS, which has none, and for what
	// inotify doesn't see. Shorter while not ready, since then somebody waits.
	pollReady    = 5 * time.Second
	pollNotReady = 2 * time.Second
)

// watch keeps state as the files and plugins say (B50).
func (n *Network) watch(ctx context.Context) {
	defer close(n.done)
	log := klog.FromContext(ctx)
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		// Out of inotify instances, as a rule; polling is slower and as right.
		log.Error(err, "Cannot watch the CNI configuration, looking at it every few seconds")
	} else {
		defer watcher.Close()
	}
	for ctx.Err() == nil {
		// Before the look, so that nothing changes unseen between look and watch.
		if watcher != nil {
			n.follow(watcher)
		}
		n.look(ctx)
		n.await(ctx, watcher)
	}
}

// look loads the configuration, asks its plugins and replaces the state.
func (n *Network) look(ctx context.Context) {
	before := n.state.Load()
	networks, err := n.load()
	next := &state{networks: networks, err: err}
	if err == nil {
		if sameNetworks(before.networks, networks) {
			next.networks = before.networks
		}
		next.err = n.probe.ask(ctx, networks)
	}
	if ctx.Err() != nil {
		return // its end is no news about the network
	}
	n.state.Store(next)
	n.logChange(ctx, before, next)
}

func (n *Network) logChange(ctx context.Context, before, next *state) {
	log := klog.FromContext(ctx)
	switch {
	case next.err != nil && (before.err == nil || before.err.Error() != next.err.Error()):
		log.Info("Network is not ready", "err", next.err)
	case next.err == nil && (before.err != nil || !sameNetworks(before.networks, next.networks)):
		for _, net := range next.networks {
			log.Info("Network is ready", "network", net.name, "path", net.file)
		}
	}
}

// await returns when it is time for another look.
func (n *Network) await(ctx context.Context, watcher *fsnotify.Watcher) {
	var events <-chan fsnotify.Event
	var failures <-chan error
	if watcher != nil {
		events, failures = watcher.Events, watcher.Errors
	}
	poll := pollReady
	if n.Status() != nil {
		poll = pollNotReady
	}
	pollTimer := time.NewTimer(poll)
	defer pollTimer.Stop()
	select {
	case <-ctx.Done():
		return
	case <-pollTimer.C:
		return
	case <-failures: // lost events: look
		return
	case <-events:
	}
	latest := time.NewTimer(settleMax)
	defer latest.Stop()
	for {
		quiet := time.NewTimer(settleQuiet)
		select {
		case <-ctx.Done():
		case <-latest.C:
		case <-quiet.C:
		case <-failures:
		case <-events:
			quiet.Stop()
			continue
		}
		quiet.Stop()
		return
	}
}

// follow watches the directories that matter, or for one that isn't there its
// nearest ancestor, where it will appear. A directory that was replaced has to be
// watched anew; adding what is watched already changes nothing.
func (n *Network) follow(watcher *fsnotify.Watcher) {
	dirs := append([]string{n.cfg.ConfDir}, n.cfg.BinDirs...)
	for _, net := range n.state.Load().networks {
		dirs = append(dirs, filepath.Join(n.cfg.ConfDir, net.name)) // plugins of other files
	}
	var wanted []string
	for _, dir := range dirs {
		for dir = filepath.Clean(dir); ; dir = filepath.Dir(dir) {
			if info, err := os.Stat(dir); err == nil && info.IsDir() || dir == "/" {
				break
			}
		}
		wanted = append(wanted, dir)
	}
	for _, dir := range watcher.WatchList() {
		if !slices.Contains(wanted, dir) {
			_ = watcher.Remove(dir)
		}
	}
	for _, dir := range wanted {
		_ = watcher.Add(dir) // it may have gone just now: the poll finds out
	}
}

// prober asks plugins whether they can serve. It is used by one goroutine.
type prober struct {
	binDirs []string
	lib     *libcni.CNIConfig
	runner  *runner
	// versions is what an executable said it supports, for as long as it is the
	// same file: it isn't executed again every few seconds.
	versions map[string]supported
}

type supported struct {
	file     os.FileInfo
	versions []string
}

func newProber(cfg Config) *prober {
	run := &runner{timeout: min(cfg.PluginTimeout, maxProbeTimeout)}
	return &prober{
		binDirs:  cfg.BinDirs,
		lib:      libcni.NewCNIConfigWithCacheDir(cfg.BinDirs, cfg.CacheDir, run),
		runner:   run,
		versions: map[string]supported{},
	}
}

// ask is nil if every plugin is installed, speaks the configuration's version and,
// from CNI 1.1.0 on, answers STATUS with yes.
func (p *prober) ask(ctx context.Context, networks []*network) error {
	for _, net := range networks {
		for _, plugin := range net.plugins() {
			if err := p.askVersion(ctx, plugin, net.list.CNIVersion); err != nil {
				return fmt.Errorf("%w: network %q: %w", ErrNotReady, net.name, err)
			}
		}
		if err := p.lib.GetStatusNetworkList(ctx, net.list); err != nil {
			return fmt.Errorf("%w: network %q: %w", ErrNotReady, net.name, inPlugin(err))
		}
	}
	return nil
}

func (p *prober) askVersion(ctx context.Context, plugin, version string) error {
	path, err := p.runner.FindInPath(plugin, p.binDirs)
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("plugin %s: %w", plugin, err)
	}
	if err != nil {
		return err
	}
	known, ok := p.versions[path]
	if !ok || !sameFile(known.file, info) {
		delete(p.versions, path)
		answer, err := p.lib.GetVersionInfo(ctx, plugin)
		if err != nil {
			return inPlugin(err)
		}
		known = supported{file: info, versions: answer.SupportedVersions()}
		p.versions[path] = known
	}
	if version == "" {
		version = "0.1.0" // what the specification has a missing one mean
	}
	if !slices.Contains(known.versions, version) {
		return fmt.Errorf("plugin %s: does not support cniVersion %s of the configuration, only %.200v", plugin, version, known.versions)
	}
	return nil
}

func sameFile(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}
