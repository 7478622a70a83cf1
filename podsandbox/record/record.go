// Package record keeps one durable JSON file per sandbox and container: what recovery needs after the daemon or the
// machine was restarted. It owns the files' layout, version and replacement; it knows no kernel object and
// decides nothing. A record that cannot be read is reported by Load, never fatal.
// Source: DESIGN decision 9.
package record

import (
	"encoding/json"
	"errors"
	"time"
)

// ErrInvalid reports a record or id that cannot be stored or was not written by this version.
var ErrInvalid = errors.New("invalid record")

// SandboxPhase is where a sandbox is in its life.
//
//	Creating ──> Ready ──> NotReady ──> (removed)
//	    └──────────────────────^
type SandboxPhase string

// The phases of a sandbox.
const (
	SandboxCreating SandboxPhase = "creating"
	SandboxReady    SandboxPhase = "ready"
	SandboxNotReady SandboxPhase = "not-ready"
)

// ContainerPhase is where a container is in its life.
//
//	Creating ──> Created ──> Running ──> Exited ──> (removed)
//	                └───────────────────────^
type ContainerPhase string

// The phases of a container.
const (
	ContainerCreating ContainerPhase = "creating"
	ContainerCreated  ContainerPhase = "created"
	ContainerRunning  ContainerPhase = "running"
	ContainerExited   ContainerPhase = "exited"
)

// Sandbox is what is kept of a sandbox.
type Sandbox struct {
	ID     string       `json:"id"`
	BootID string       `json:"bootID"`
	Phase  SandboxPhase `json:"phase"`
	Config []byte       `json:"config"` // PodSandboxConfig as the caller encodes it

	Handler      string `json:"handler,omitempty"`
	CreatedNanos int64  `json:"created"` // Unix time

	NetPath      string `json:"netPath,omitempty"` // "" is the host's, or gone
	IPCPath      string `json:"ipcPath,omitempty"`
	UTSPath      string `json:"utsPath,omitempty"`
	UserPath     string `json:"userPath,omitempty"`
	CgroupParent string `json:"cgroupParent,omitempty"` // has the pod's limits
	CgroupScope  string `json:"cgroupScope,omitempty"`  // in it, of podwright's own; "" without the systemd driver

	// SELinux labels: its processes', whose categories are its own until it is removed, and its files'.
	ProcessLabel string `json:"processLabel,omitempty"`
	MountLabel   string `json:"mountLabel,omitempty"`

	Attachment json.RawMessage `json:"attachment,omitempty"` // the CNI attachment; present means DEL is owed
	IPs        []string        `json:"ips,omitempty"`

	ReaperPID       int    `json:"reaperPID,omitempty"`
	ReaperStartTime uint64 `json:"reaperStartTime,omitempty"` // clock ticks after boot, field 22 of /proc/pid/stat
	Reason          string `json:"reason,omitempty"`          // why it is NotReady or its teardown did not finish

	Overhead  []byte `json:"overhead,omitempty"` // LinuxContainerResources that updates gave, as the caller encodes them
	Resources []byte `json:"resources,omitempty"`

	RunSteps []Step `json:"runSteps,omitempty"` // how long each step of making it took
}

// Container is what is kept of a container.
type Container struct {
	ID        string         `json:"id"`
	SandboxID string         `json:"sandboxID"`
	BootID    string         `json:"bootID"`
	Phase     ContainerPhase `json:"phase"`
	Config    []byte         `json:"config"` // ContainerConfig as the caller encodes it

	ImageID     string       `json:"imageID"`            // config digest
	ImageRef    string       `json:"imageRef,omitempty"` // repository digest, reported even once the image is gone
	ImageMounts []ImageMount `json:"imageMounts,omitempty"`
	LogPath     string       `json:"logPath,omitempty"` // absolute
	CgroupPath  string       `json:"cgroupPath,omitempty"`
	StopSignal  int          `json:"stopSignal,omitempty"`

	CreatedNanos  int64 `json:"created"` // Unix time; 0 is not yet
	StartedNanos  int64 `json:"started,omitempty"`
	FinishedNanos int64 `json:"finished,omitempty"`

	PID       int    `json:"pid,omitempty"`
	StartTime uint64 `json:"startTime,omitempty"` // clock ticks after boot, field 22 of /proc/pid/stat
	ExitCode  int32  `json:"exitCode,omitempty"`
	Reason    string `json:"reason,omitempty"`
	Message   string `json:"message,omitempty"`

	Signalled bool `json:"signalled,omitempty"` // it was sent its stop signal
	Killed    bool `json:"killed,omitempty"`    // podwright killed it; noted only where the kernel had killed processes of it before

	PodLimitHits    uint64 `json:"podLimitHits,omitempty"`    // how often the pod's memory limit had been reached at the start
	CommandOOMKills uint64 `json:"commandOOMKills,omitempty"` // processes of commands in it that the kernel killed for want of memory

	UID    int64   `json:"uid,omitempty"` // the first process's, as ContainerStatus.user reports it
	GID    int64   `json:"gid,omitempty"`
	Groups []int64 `json:"groups,omitempty"`

	// Both are LinuxContainerResources as the caller encodes them.
	Resources []byte `json:"resources,omitempty"` // as updates left them; absent is as in Config
	Updating  []byte `json:"updating,omitempty"`  // an update that is being written to the group of a running container

	CreateSteps []Step `json:"createSteps,omitempty"` // how long each step took
	StartSteps  []Step `json:"startSteps,omitempty"`
}

// ImageMount is an image that is mounted beside the container's own.
type ImageMount struct {
	Path    string `json:"path"` // in the container, cleaned
	ImageID string `json:"imageID"`
}

// Step is how long one part of a create or start took.
type Step struct {
	Name   string `json:"step"`
	Micros int64  `json:"micros"`
}

// Bad is a record that is there and cannot be used.
type Bad struct {
	ID   string // from its directory's name
	Kind string // "sandbox" or "container"
	Path string // its directory
	Err  error
}

// Loaded is everything a store holds.
type Loaded struct {
	Sandboxes  []Sandbox
	Containers []Container
	Bad        []Bad
}

// Config says where records live.
type Config struct {
	Root      string        // a directory on a durable file system, 0700
	SyncEvery time.Duration // how long a change may wait for the background sync; 0 is 2 s
}
