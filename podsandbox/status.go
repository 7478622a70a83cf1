package podsandbox

import (
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/podsandbox/spec"
	"github.com/podwright/podwright/runtime/wire"
)

// SandboxStatus answers from memory; verbose adds the "info" JSON that crictl shows.
func (m *core) SandboxStatus(id string, verbose bool) (*criv1.PodSandboxStatusResponse, error) {
	s, err := m.sandboxes.find("sandbox", id)
	if b, ok := m.unreadable.find(kindSandbox, id); err != nil && ok {
		return &criv1.PodSandboxStatusResponse{Status: badSandboxStatus(b), Timestamp: time.Now().UnixNano()}, nil
	}
	if err != nil {
		return nil, err
	}
	// The time first: what happens meanwhile may be missing in the statuses, and is then later than they claim to be.
	resp := &criv1.PodSandboxStatusResponse{Timestamp: time.Now().UnixNano()}
	rec := s.record()
	resp.Status, resp.ContainersStatuses = sandboxStatus(s, rec), statusesOf(m, s.id)
	if !verbose {
		return resp, nil
	}
	info, err := infoJSON(s.config, map[string]any{
		"pid": rec.ReaperPID, "netns": rec.NetPath, "ipcns": rec.IPCPath, "utsns": rec.UTSPath, "userns": rec.UserPath,
		"userMapping": spec.SandboxUser(s.config), "cgroupParent": rec.CgroupParent,
		"attachment": rec.Attachment, "reason": rec.Reason, "runSteps": rec.RunSteps,
		"overhead": json.RawMessage(rec.Overhead), "resources": json.RawMessage(rec.Resources),
	})
	if err != nil {
		return nil, fmt.Errorf("status of sandbox %s: %w", s.id, err)
	}
	resp.Info = map[string]string{"info": info}
	return resp, nil
}

func sandboxStatus(s *sandbox, rec *record.Sandbox) *criv1.PodSandboxStatus {
	return &criv1.PodSandboxStatus{
		Id: s.id, Metadata: s.config.GetMetadata(), State: sandboxState(rec), CreatedAt: rec.CreatedNanos,
		Labels: s.config.GetLabels(), Annotations: s.config.GetAnnotations(), RuntimeHandler: rec.Handler,
		Network: networkStatus(rec), Linux: &criv1.LinuxPodSandboxStatus{Namespaces: &criv1.Namespace{Options: namespaceOptions(s.config)}},
	}
}

func networkStatus(rec *record.Sandbox) *criv1.PodSandboxNetworkStatus {
	n := &criv1.PodSandboxNetworkStatus{}
	for i, ip := range rec.IPs {
		if i == 0 {
			n.Ip = ip
			continue
		}
		n.AdditionalIps = append(n.AdditionalIps, &criv1.PodIP{Ip: ip})
	}
	return n
}

// namespaceOptions gives back what was asked for: the kubelet makes a pod anew whose answer differs.
func namespaceOptions(config *criv1.PodSandboxConfig) *criv1.NamespaceOption {
	if options := config.GetLinux().GetSecurityContext().GetNamespaceOptions(); options != nil {
		return proto.Clone(options).(*criv1.NamespaceOption)
	}
	return &criv1.NamespaceOption{}
}

// ContainerStatus answers from memory; verbose adds pid, sandboxID, config, runtimeSpec, the plan, and
// for a running one what the kernel says holds (package isolation).
func (m *core) ContainerStatus(id string, verbose bool) (*criv1.ContainerStatusResponse, error) {
	c, err := m.containers.find("container", id)
	if b, ok := m.unreadable.find(kindContainer, id); err != nil && ok {
		return &criv1.ContainerStatusResponse{Status: badContainerStatus(b)}, nil
	}
	if err != nil {
		return nil, err
	}
	rec := c.record()
	resp := &criv1.ContainerStatusResponse{Status: containerStatus(c, rec)}
	if !verbose {
		return resp, nil
	}
	facts := map[string]any{
		"pid": rec.PID, "sandboxID": rec.SandboxID, "cgroupPath": rec.CgroupPath, "createSteps": rec.CreateSteps, "startSteps": rec.StartSteps,
	}
	if ociSpec, err := m.recordedSpec(c.id); err == nil {
		facts["runtimeSpec"] = ociSpec
		facts["notes"] = spec.Notes(ociSpec)
		if launchable, err := m.compile(c.id, ociSpec); err == nil {
			facts["plan"] = spec.Print(launchable)
		}
		if rec.Phase == record.ContainerRunning {
			if report, err := m.isolationReport(c, wire.Process{PID: rec.PID, StartTime: rec.StartTime}, ociSpec); err == nil {
				facts["isolation"] = report
			} else {
				facts["isolationError"] = err.Error()
			}
		}
	}
	info, err := infoJSON(c.config, facts)
	if err != nil {
		return nil, fmt.Errorf("status of container %s: %w", c.id, err)
	}
	resp.Info = map[string]string{"info": info}
	return resp, nil
}

func containerStatus(c *container, rec *record.Container) *criv1.ContainerStatus {
	status := &criv1.ContainerStatus{
		Id: c.id, Metadata: c.config.GetMetadata(), State: containerState(rec), CreatedAt: rec.CreatedNanos,
		StartedAt: rec.StartedNanos, FinishedAt: rec.FinishedNanos, ExitCode: rec.ExitCode, Image: statusImage(c.config.GetImage()),
		ImageRef: rec.ImageRef, ImageId: rec.ImageID, Reason: rec.Reason, Message: rec.Message,
		Labels: c.config.GetLabels(), Annotations: c.config.GetAnnotations(), Mounts: statusMounts(c, rec), LogPath: rec.LogPath,
		StopSignal: spec.SignalValue(rec.StopSignal),
	}
	if resources := resourcesOf(c, rec); resources != nil {
		status.Resources = &criv1.ContainerResources{Linux: resources}
	}
	if rec.Phase != record.ContainerCreating {
		status.User = &criv1.ContainerUser{Linux: &criv1.LinuxContainerUser{Uid: rec.UID, Gid: rec.GID, SupplementalGroups: rec.Groups}}
	}
	return status
}

// statusImage names the image as the user wrote it, where the kubelet says so.
func statusImage(image *criv1.ImageSpec) *criv1.ImageSpec {
	if image.GetUserSpecifiedImage() == "" {
		return image
	}
	out := proto.Clone(image).(*criv1.ImageSpec)
	out.Image = image.GetUserSpecifiedImage()
	return out
}

func infoJSON(config proto.Message, facts map[string]any) (string, error) {
	raw, err := protojson.Marshal(config)
	if err != nil {
		return "", err
	}
	facts["config"] = json.RawMessage(raw)
	text, err := json.Marshal(facts)
	return string(text), err
}
