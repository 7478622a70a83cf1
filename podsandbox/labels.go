package podsandbox

import (
	"errors"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/runtime/selinux"
)

// labelSandbox gives a new sandbox its labels. Its record is written next, and keeps its categories from others over a
// restart; who fails to write it gives them back with unlabelSandbox.
func labelSandbox(m *core, rec *record.Sandbox, config *criv1.PodSandboxConfig) error {
	if m.cfg.Labels == nil {
		return nil
	}
	labels, err := m.cfg.Labels.Sandbox(rec.ID, labelOptions(config.GetLinux().GetSecurityContext().GetSelinuxOptions()))
	rec.ProcessLabel, rec.MountLabel = labels.Process, labels.Mount
	return labelError(err)
}

// unlabelSandbox frees the sandbox's categories, and those its containers asked for, once it is gone.
func unlabelSandbox(m *core, id string) {
	if m.cfg.Labels != nil {
		m.cfg.Labels.Release(id)
	}
}

// labelContainer gives a container the sandbox's labels, with what it asks for itself. A level it asks for is its
// sandbox's to keep from others.
func labelContainer(m *core, s *sandbox, config *criv1.ContainerConfig) (selinux.Pair, error) {
	if m.cfg.Labels == nil {
		return selinux.Pair{}, nil
	}
	rec := s.record()
	if rec.ProcessLabel == "" { // never without a label by accident
		return selinux.Pair{}, kindf(ErrPrecondition, "sandbox %s was made when podwright set no SELinux labels; its pod has to be made anew", s.id)
	}
	security := config.GetLinux().GetSecurityContext()
	options := labelOptions(security.GetSelinuxOptions())
	labels, err := m.cfg.Labels.Container(selinux.Pair{Process: rec.ProcessLabel, Mount: rec.MountLabel}, options, security.GetPrivileged())
	if err != nil {
		return selinux.Pair{}, labelError(err)
	}
	m.cfg.Labels.Hold(s.id, options.Level)
	return labels, nil
}

// holdSandboxLabel and holdContainerLabel note at recovery what is recorded, before anybody is given categories.
func holdSandboxLabel(m *core, rec *record.Sandbox) {
	if m.cfg.Labels != nil {
		m.cfg.Labels.HoldLabel(rec.ID, rec.ProcessLabel)
	}
}

func holdContainerLabel(m *core, rec *record.Container, config *criv1.ContainerConfig) {
	if m.cfg.Labels != nil {
		m.cfg.Labels.Hold(rec.SandboxID, config.GetLinux().GetSecurityContext().GetSelinuxOptions().GetLevel())
	}
}

func labelOptions(o *criv1.SELinuxOption) selinux.Options {
	return selinux.Options{User: o.GetUser(), Role: o.GetRole(), Type: o.GetType(), Level: o.GetLevel()}
}

// labelError names the field whose value the policy doesn't know.
func labelError(err error) error {
	const field = "config.linux.security_context.selinux_options"
	var option *selinux.OptionError
	switch {
	case errors.As(err, &option) && option.Option != "":
		return kindf(ErrInvalid, "%s.%w", field, err)
	case errors.Is(err, selinux.ErrLabel):
		return kindf(ErrInvalid, "%s: %w", field, err)
	case errors.Is(err, selinux.ErrExhausted):
		return kindf(ErrUnavailable, "%w", err)
	}
	return err
}
