// Package podfiles makes the files a sandbox gives its containers: hosts, hostname, resolv.conf and /dev/shm.
// It owns one directory per sandbox below its root, and the private mount that keeps each sandbox's shm out of the
// host's mount propagation. It may not touch any container's file system.
// Source: CRI DNSConfig, resolv.conf(5), hosts(5), tmpfs(5); DESIGN decision 5.
package podfiles

import (
	"context"
	"errors"
)

// ErrInvalid reports values that would not stay one line of a file.
var ErrInvalid = errors.New("invalid sandbox file value")

// Config says where the files live.
type Config struct {
	Root           string // a directory of /run/podwright, made with mode 0711
	HostResolvConf string // copied where a sandbox has no DNS configuration; "" is /etc/resolv.conf
}

// DNS is a sandbox's resolver configuration.
type DNS struct {
	Servers, Searches, Options []string
}

// Spec is what one sandbox wants.
type Spec struct {
	Hostname    string
	HostNetwork bool // hosts is then a copy of the host's
	DNS         *DNS // nil copies the host's resolv.conf; present and empty gives an empty file
	HostIPC     bool // no shm is made: Shm is the host's /dev/shm
	ShmBytes    int64
}

// Paths are a sandbox's files on the host.
type Paths struct {
	Hosts, Hostname, ResolvConf string
	Shm                         string
}

// DefaultShmBytes is the size of /dev/shm where nothing else is asked for.
const DefaultShmBytes = 64 << 20

// Files makes and removes sandboxes' files.
type Files struct{ config Config }

// New prepares the root directory as a private mount of its own.
func New(config Config) (*Files, error) { return nil, ErrInvalid }

// Paths says where sandbox id's files are, made or not.
func (f *Files) Paths(id string, hostIPC bool) Paths { return Paths{} }

// Create makes the files of sandbox id; files of an earlier attempt are replaced.
func (f *Files) Create(ctx context.Context, id string, spec Spec) (Paths, error) {
	return Paths{}, ErrInvalid
}

// Remove takes everything of sandbox id away; what is absent counts as removed.
func (f *Files) Remove(ctx context.Context, id string) error { return nil }
