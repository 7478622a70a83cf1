package podsandbox

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protojson"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/podsandbox/spec"
	"github.com/podwright/podwright/runtime/cgroup"
	"github.com/podwright/podwright/runtime/mounts"
	"github.com/podwright/podwright/runtime/namespace"
)

// CreateContainer records a container and prepares its file system and spec; no process starts. Retries join as in RunSandbox.
func (m *containerManager) CreateContainer(ctx context.Context, sandboxID string, config *criv1.ContainerConfig, sandboxConfig *criv1.PodSandboxConfig) (string, error) {
	if err := m.Ready(); err != nil {
		return "", err
	}
	s, err := m.sandboxes.find("sandbox", sandboxID)
	if err != nil {
		return "", fmt.Errorf("create container: %w", err)
	}
	if sandboxConfig != nil && sandboxConfig.GetMetadata().GetUid() != s.config.GetMetadata().GetUid() {
		return "", kindf(ErrInvalid, "create container: sandbox_config.metadata.uid %q: sandbox %s has %q",
			sandboxConfig.GetMetadata().GetUid(), s.id, s.config.GetMetadata().GetUid())
	}
	if err := spec.ValidateContainer(config, s.config, m.cfg.Node); err != nil {
		return "", kindf(ErrInvalid, "create container: config.%w", err)
	}
	digest, err := digestOf(config)
	if err != nil {
		return "", err
	}
	key := containerKey(s.id, config.GetMetadata())
	finished := func() (string, [sha256.Size]byte, bool) {
		id, ok := m.containerKeys.Load(key)
		if !ok {
			return "", digest, false
		}
		c, err := m.containers.find("container", id.(string))
		if err != nil {
			return "", digest, false
		}
		return c.id, c.digest, true
	}
	want := create{kind: kindCreateContainer, name: podName(s.config) + "/" + config.GetMetadata().GetName(), key: key, digest: digest}
	return m.ops.do(ctx, want, createDeadline, finished, func(ctx context.Context, op *Operation) (string, error) {
		return m.makeContainer(ctx, op, s, config, digest)
	})
}

func (m *containerManager) makeContainer(ctx context.Context, op *Operation, s *sandbox, config *criv1.ContainerConfig, digest [sha256.Size]byte) (string, error) {
	if s.record().Phase != record.SandboxReady {
		return "", kindf(ErrPrecondition, "create container in sandbox %s: the sandbox is not ready", s.id)
	}
	image, err := m.cfg.Images.Image(config.GetImage().GetImage())
	if err != nil {
		return "", fmt.Errorf("create container in sandbox %s: image %q: %w", s.id, config.GetImage().GetImage(), err)
	}
	imageMounts, err := findImageMounts(m.cfg.Images, config)
	if err != nil {
		return "", fmt.Errorf("create container in sandbox %s: %w", s.id, err)
	}
	raw, err := protojson.Marshal(config)
	if err != nil {
		return "", kindf(ErrInvalid, "encode container config: %w", err)
	}
	rec := &record.Container{
		ID: record.NewID(), SandboxID: s.id, BootID: m.cfg.BootID, Phase: record.ContainerCreating, Config: raw,
		ImageID: image.ID, ImageRef: image.Ref, ImageMounts: imageMounts, CreatedNanos: m.clock.now(),
	}
	rec.CgroupPath = cgroupOf(s.record(), rec.ID)
	c := newContainer(rec, config, digest)
	op.is(c.id)
	op.at("record")
	if err := m.changeContainer(c, func(*record.Container) bool { return true }); err != nil {
		return "", errors.Join(err, m.deleteContainer(c))
	}
	if err := m.prepare(ctx, op, s, c, image); err != nil {
		op.at("take back")
		back, cancel := teardownContext(ctx)
		defer cancel()
		if tearErr := m.teardownContainer(back, c); tearErr != nil {
			klog.FromContext(ctx).Error(tearErr, "Left a container that could not be torn down", "containerID", c.id)
			showContainer(m.core, c) // listed as unknown: Remove is tried again
		}
		return "", fmt.Errorf("create container %s in sandbox %s: %w", c.id, s.id, err)
	}
	showContainer(m.core, c)
	m.containerKeys.Store(containerKey(s.id, config.GetMetadata()), c.id)
	if s.record().Phase != record.SandboxReady {
		// The sandbox was stopped meanwhile, and its Remove may have looked for containers already.
		return "", errors.Join(kindf(ErrPrecondition, "create container %s: sandbox %s was stopped meanwhile", c.id, s.id), m.RemoveContainer(ctx, c.id))
	}
	return c.id, nil
}

// prepare derives the spec, checks that it can be launched, and makes the writable layer.
func (m *containerManager) prepare(ctx context.Context, op *Operation, s *sandbox, c *container, image Image) error {
	op.at("hold images")
	if err := holdImages(m.cfg.Images, c.record()); err != nil {
		return err
	}
	layers, err := m.cfg.Images.Layers(ctx, image.ID)
	if err != nil {
		return fmt.Errorf("layers of image %s: %w", image.ID, err)
	}
	op.at("look at mounts and devices")
	if err := m.checkMounts(ctx, op, s, c); err != nil {
		return err
	}
	devices, err := hostDevices(ctx, m.cfg.Mounts, op, c.config, spec.SandboxUser(s.config) != nil)
	if err != nil {
		return err
	}
	op.at("derive spec")
	in, err := m.specInput(ctx, s, c, image, layers)
	if err != nil {
		return err
	}
	in.Devices = devices
	profile, weaker, err := apparmorOf(ctx, m.cfg, c.config)
	if err != nil {
		return err
	}
	in.AppArmor = profile
	ociSpec, err := spec.Container(in)
	if err != nil {
		return invalidSpec(err)
	}
	if weaker != "" {
		spec.AddNotes(ociSpec, weaker)
	}
	if err := checkLimits(m.cfg.Cgroups, ociSpec); err != nil {
		return err
	}
	if _, err := m.compile(c.id, ociSpec); err != nil {
		return invalidSpec(err)
	}
	if err := relabelVolumes(ctx, m.core, op, s, c, ociSpec); err != nil {
		return err
	}
	op.at("make writable layer")
	for _, dir := range []string{"upper", "work"} {
		if err := os.MkdirAll(filepath.Join(m.stateDir(c.id), dir), 0o755); err != nil {
			return fmt.Errorf("make writable layer: %w", err)
		}
	}
	if err := m.fillVolumes(ctx, in.Volumes, layers, in.MountLabel); err != nil {
		return err
	}
	op.at("record as created")
	return m.recordCreated(op, c, s, image, ociSpec)
}

func (m *containerManager) recordCreated(op *Operation, c *container, s *sandbox, image Image, ociSpec *specs.Spec) error {
	rawSpec, err := json.Marshal(ociSpec)
	if err != nil {
		return fmt.Errorf("encode spec: %w", err)
	}
	if err := m.cfg.Records.PutSpec(c.id, rawSpec); err != nil {
		return fmt.Errorf("record spec: %w", err)
	}
	signal, err := spec.StopSignal(c.config, image.Config)
	if err != nil {
		return kindf(ErrInvalid, "%w", err)
	}
	logPath, err := spec.LogPath(c.config, s.config)
	if err != nil {
		return kindf(ErrInvalid, "%w", err)
	}
	user := ociSpec.Process.User
	groups := make([]int64, 0, len(user.AdditionalGids))
	for _, gid := range user.AdditionalGids {
		groups = append(groups, int64(gid))
	}
	return m.changeContainer(c, func(r *record.Container) bool {
		r.Phase, r.StopSignal, r.LogPath = record.ContainerCreated, signal, logPath
		r.UID, r.GID, r.Groups, r.CreateSteps = int64(user.UID), int64(user.GID), groups, op.timings()
		return true
	})
}

// specInput gathers what the spec is derived from, but for the devices.
func (m *containerManager) specInput(ctx context.Context, s *sandbox, c *container, image Image, layers []string) (spec.ContainerInput, error) {
	names, err := m.imageAccounts(ctx, image.ID, layers)
	if err != nil {
		return spec.ContainerInput{}, err
	}
	profile, err := m.seccompSpec(c.config)
	if err != nil {
		return spec.ContainerInput{}, err
	}
	volumes, err := spec.ImageVolumes(image.Config, c.config)
	if err != nil {
		return spec.ContainerInput{}, kindf(ErrInvalid, "image %s: %w", image.ID, err)
	}
	labels, err := labelContainer(m.core, s, c.config)
	if err != nil {
		return spec.ContainerInput{}, err
	}
	own := spec.SandboxNamespaces(s.config)
	files := m.cfg.Files.Paths(s.id, !own.IPC)
	rec := s.record()
	in := spec.ContainerInput{
		ID: c.id, Config: c.config, Image: image.Config, Passwd: names.passwd, Group: names.group, Node: m.cfg.Node,
		Root: filepath.Join(m.stateDir(c.id), "rootfs"), CgroupsPath: c.record().CgroupPath, Seccomp: profile,
		ProcessLabel: labels.Process, MountLabel: labels.Mount,
		Sandbox: spec.SandboxInput{
			ID: s.id, Config: s.config, Hostname: hostnameOf(s.config, own), NetPath: rec.NetPath, IPCPath: rec.IPCPath, UTSPath: rec.UTSPath, UserPath: rec.UserPath,
			HostsFile: files.Hosts, HostnameFile: files.Hostname, ResolvConfFile: files.ResolvConf, ShmDir: files.Shm,
		},
		Volumes: map[string]string{}, ImageMounts: imageIDs(c.record()),
	}
	if rec.ReaperPID != 0 {
		in.Sandbox.PIDPath = pidPath(rec.ReaperPID)
	}
	if spec.TargetID(c.config) != "" {
		target, err := joinedBy(m.core, s, c.config)
		if err != nil {
			return spec.ContainerInput{}, err
		}
		in.TargetPath = pidPath(target.PID)
	}
	for i, volume := range volumes {
		in.Volumes[volume] = filepath.Join(m.stateDir(c.id), "volumes", strconv.Itoa(i))
	}
	return in, nil
}

// checkMounts refuses a container whose mount sources are missing now, or cannot be mapped as asked, when there is
// nobody to clean up after. A source that hangs ends with ctx and holds nothing but itself.
func (m *containerManager) checkMounts(ctx context.Context, op *Operation, s *sandbox, c *container) error {
	ids := imageIDs(c.record())
	for i, mount := range c.config.GetMounts() {
		if mount.GetImage() != nil {
			image := spec.ImageMount{ID: ids[path.Clean(mount.GetContainerPath())], SubPath: mount.GetImageSubPath()}
			tree, err := openImage(ctx, m.core, s, c.id, image, "")
			if err != nil {
				return fmt.Errorf("config.mounts[%d]: %w", i, err)
			}
			tree.File.Close()
			continue
		}
		op.on(Wait{For: WaitMount, Name: mount.GetHostPath()})
		if err := checkMount(ctx, m.cfg, s, mount); err != nil {
			return fmt.Errorf("config.mounts[%d].host_path %q: %w", i, mount.GetHostPath(), err)
		}
	}
	return nil
}

func checkMount(ctx context.Context, cfg Config, s *sandbox, mount *criv1.Mount) error {
	source := hostSource(mount.GetHostPath())
	uids, gids := idMaps(mount.GetUidMappings()), idMaps(mount.GetGidMappings())
	userNS, err := mappingOf(ctx, cfg.Namespaces, s, namespace.UserMap{UIDs: uids, GIDs: gids})
	if err != nil {
		return err
	}
	if userNS != nil {
		defer userNS.Close()
		source.UserNS = userNS
	}
	tree, err := cfg.Mounts.OpenBind(ctx, source)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, mounts.ErrNotSupported) {
		return kindf(ErrInvalid, "%w", err)
	}
	if err != nil {
		return err
	}
	return tree.File.Close()
}

// checkLimits refuses limits that this host cannot have before there is anything to take back, and notes those it
// accepts and does not enforce.
func checkLimits(cgroups *cgroup.Manager, ociSpec *specs.Spec) error {
	notes, err := cgroups.Notes(ociSpec.Linux.Resources)
	if err != nil {
		return limitError(fmt.Errorf("linux.resources: %w", err))
	}
	for _, note := range notes {
		spec.AddNotes(ociSpec, note.Field+" is not enforced: "+note.Reason)
	}
	return nil
}

// limitError gives what a control group refuses its kind.
func limitError(err error) error {
	if errors.Is(err, cgroup.ErrInvalid) || errors.Is(err, cgroup.ErrNotSupported) {
		return kindf(ErrInvalid, "%w", err)
	}
	return err
}

// invalidSpec gives the errors of the pure half their kind.
func invalidSpec(err error) error {
	if errors.Is(err, spec.ErrInvalid) {
		return kindf(ErrInvalid, "%w", err)
	}
	return err
}
