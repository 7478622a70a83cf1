// Package podfiles makes the files a sandbox gives its containers: hosts, hostname, resolv.conf and /dev/shm.
// It owns one small tmpfs per sandbox, below a directory whose mounts no volume carries along. It may not touch any
// container's file system; containers get clones of what is here.
// Source: CRI DNSConfig, resolv.conf(5), hosts(5), tmpfs(5); DESIGN decision 5.
package podfiles

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrInvalid reports values that would not stay one line of a file, or no id.
var ErrInvalid = errors.New("invalid sandbox file value")

// Config says where the files live.
type Config struct {
	Root           string // a directory of /run/podwright, made with mode 0700
	HostResolvConf string // copied where a sandbox has no DNS configuration; "" is /etc/resolv.conf
	HostHosts      string // copied for sandboxes on the host's network; "" is /etc/hosts
}

// DNS is a sandbox's resolver configuration.
type DNS struct {
	Servers, Searches, Options []string
}

// Spec is what one sandbox wants.
type Spec struct {
	Hostname    string
	HostNetwork bool   // hosts is then a copy of the host's
	DNS         *DNS   // nil, or nothing in it, copies the host's resolv.conf, as the field does
	HostIPC     bool   // Paths.Shm is the host's /dev/shm
	ShmBytes    int64  // 0 is DefaultShmBytes
	UID, GID    uint32 // whom the files belong to: the sandbox's root
	MountLabel  string // the SELinux label of all files, or empty
}

// Paths are a sandbox's files on the host.
type Paths struct {
	Hosts, Hostname, ResolvConf string
	Shm                         string
}

const (
	// DefaultShmBytes is the size of /dev/shm where nothing else is asked for.
	DefaultShmBytes = 64 << 20
	// slackBytes is room for the generated files beside /dev/shm: they share its tmpfs, so that a container that may
	// write them fills that and not the host's /run.
	slackBytes = 64 << 10

	hostShm = "/dev/shm"
	shmName = "shm"
)

// Files makes and removes sandboxes' files. Calls for one id are serialised by the caller (the sandbox's op lock);
// otherwise its methods may be called concurrently. What is made is kept by the kernel, not by this struct: it outlives
// the daemon, not the boot.
//
//	Create ──> made ──Remove──> absent
//	   └─ failure ──Remove──> absent
type Files struct{ config Config }

// New makes the root directory an unbindable mount, so that a recursive bind of /run, which is what a hostPath volume
// of it is, does not carry along every sandbox's tmpfs and keep it (mount_namespaces(7)). It may be called again at any time.
func New(config Config) (*Files, error) {
	if !filepath.IsAbs(config.Root) || filepath.Clean(config.Root) == "/" {
		return nil, fmt.Errorf("sandbox files in %q: %w", config.Root, ErrInvalid)
	}
	config.Root = filepath.Clean(config.Root)
	if config.HostResolvConf == "" {
		config.HostResolvConf = "/etc/resolv.conf"
	}
	if config.HostHosts == "" {
		config.HostHosts = "/etc/hosts"
	}
	if err := os.MkdirAll(config.Root, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of sandbox files: %w", err)
	}
	if err := makeUnbindable(config.Root); err != nil {
		return nil, err
	}
	return &Files{config: config}, nil
}

func makeUnbindable(dir string) error {
	err := unix.Mount("", dir, "", unix.MS_UNBINDABLE, "")
	if errors.Is(err, unix.EINVAL) { // no mount point yet
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", dir, err)
		}
		err = unix.Mount("", dir, "", unix.MS_UNBINDABLE, "")
	}
	if err != nil {
		return fmt.Errorf("set propagation of %s: %w", dir, err)
	}
	return nil
}

// Paths says where sandbox id's files are, made or not.
func (f *Files) Paths(id string, hostIPC bool) Paths {
	dir := filepath.Join(f.config.Root, id)
	p := Paths{
		Hosts: filepath.Join(dir, "hosts"), Hostname: filepath.Join(dir, "hostname"), ResolvConf: filepath.Join(dir, "resolv.conf"),
		Shm: filepath.Join(dir, shmName),
	}
	if hostIPC {
		p.Shm = hostShm
	}
	return p
}

// Create makes the files of sandbox id; what an earlier attempt left is replaced. On an error nothing is left.
func (f *Files) Create(ctx context.Context, id string, spec Spec) (Paths, error) {
	if !goodID(id) || spec.ShmBytes < 0 || strings.ContainsAny(spec.MountLabel, "\"\x00\n") {
		return Paths{}, fmt.Errorf("make sandbox files of %q: %w", id, ErrInvalid)
	}
	contents, err := f.contents(spec)
	if err != nil {
		return Paths{}, fmt.Errorf("make sandbox files: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return Paths{}, fmt.Errorf("make sandbox files: %w", err)
	}
	if err := f.remove(id); err != nil {
		return Paths{}, fmt.Errorf("make sandbox files: remove those of an earlier attempt: %w", err)
	}
	if err := f.fill(id, spec, contents); err != nil {
		return Paths{}, fmt.Errorf("make sandbox files: %w", errors.Join(err, f.remove(id)))
	}
	return f.Paths(id, spec.HostIPC), nil
}

func (f *Files) fill(id string, spec Spec, contents map[string]string) error {
	dir := filepath.Join(f.config.Root, id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	size := spec.ShmBytes
	switch {
	case spec.HostIPC:
		size = 0
	case size == 0:
		size = DefaultShmBytes
	}
	size += slackBytes
	for _, content := range contents {
		size += int64(len(content))
	}
	options := fmt.Sprintf("mode=0700,size=%d", size)
	if spec.MountLabel != "" {
		options += `,context="` + spec.MountLabel + `"` // quoted for its commas
	}
	// The source is what a container reads in its mount table for /dev/shm.
	if err := unix.Mount(shmName, dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", dir, err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for name, content := range contents {
		if err := writeNew(root, name, content, spec); err != nil {
			return err
		}
	}
	if spec.HostIPC {
		return nil
	}
	if err := root.Mkdir(shmName, 0o700); err != nil {
		return err
	}
	// The mode not by Mkdir, which the umask would cut.
	return errors.Join(root.Lchown(shmName, int(spec.UID), int(spec.GID)), root.Chmod(shmName, os.ModeSticky|0o777))
}

func writeNew(root *os.Root, name, content string, spec Spec) error {
	file, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = file.WriteString(content)
	return errors.Join(err, file.Chown(int(spec.UID), int(spec.GID)), file.Chmod(0o644), file.Close())
}

// Remove takes everything of sandbox id away; what is absent counts as removed. Containers that still run keep the
// clones they have.
func (f *Files) Remove(_ context.Context, id string) error {
	if !goodID(id) {
		return fmt.Errorf("remove sandbox files of %q: %w", id, ErrInvalid)
	}
	if err := f.remove(id); err != nil {
		return fmt.Errorf("remove sandbox files: %w", err)
	}
	return nil
}

func (f *Files) remove(id string) error {
	dir := filepath.Join(f.config.Root, id)
	for {
		// MNT_DETACH: a copy of a mount table elsewhere may keep the mount busy, and a removal must finish.
		err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // nothing mounted there, or not even a directory
			break
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	// Not RemoveAll: the directory under the mount is empty, and if it were not, something else would be wrong.
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// List names the sandboxes that have files, for recovery to compare with its records.
func (f *Files) List() ([]string, error) {
	entries, err := os.ReadDir(f.config.Root)
	if err != nil {
		return nil, fmt.Errorf("list sandbox files: %w", err)
	}
	var ids []string
	for _, entry := range entries {
		if goodID(entry.Name()) {
			ids = append(ids, entry.Name())
		}
	}
	return ids, nil
}

// goodID keeps ids one plain path element.
func goodID(id string) bool {
	for i := range len(id) {
		c := id[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' && c != '_' {
			return false
		}
	}
	return id != "" && len(id) <= 128
}
