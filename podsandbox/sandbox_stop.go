package podsandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/podwright/podwright/cni"
	"github.com/podwright/podwright/podsandbox/record"
	"github.com/podwright/podwright/podsandbox/spec"
)

// StopSandbox kills what runs in the sandbox and gives its network and namespaces back; it may be repeated, and
// an unknown id is success. What fails is tried again by the next Stop.
func (m *sandboxManager) StopSandbox(ctx context.Context, id string) error {
	s, err := m.sandboxes.find("sandbox", id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return m.ops.during(ctx, kindStopSandbox, podName(s.config), s.id, func(op *Operation) error {
		if err := s.op.lock(ctx, op); err != nil {
			return err
		}
		defer s.op.unlock()
		back, cancel := teardownContext(ctx)
		defer cancel()
		if err := m.stopSandbox(back, op, s); err != nil {
			return fmt.Errorf("stop sandbox %s: %w", s.id, err)
		}
		return nil
	})
}

// RemoveSandbox stops the sandbox and removes it with all its containers; an unknown id is success.
func (m *sandboxManager) RemoveSandbox(ctx context.Context, id string) error {
	s, err := m.sandboxes.find("sandbox", id)
	if errors.Is(err, ErrNotFound) {
		return m.removeBadSandbox(ctx, id)
	}
	if err != nil {
		return err
	}
	return m.ops.during(ctx, kindRemoveSandbox, podName(s.config), s.id, func(op *Operation) error {
		if err := s.op.lock(ctx, op); err != nil {
			return err
		}
		defer s.op.unlock()
		back, cancel := teardownContext(ctx)
		defer cancel()
		if err := m.removeSandbox(back, op, s); err != nil {
			return fmt.Errorf("remove sandbox %s: %w", s.id, err)
		}
		return nil
	})
}

func (m *sandboxManager) removeSandbox(ctx context.Context, op *Operation, s *sandbox) error {
	err := m.stopSandbox(ctx, op, s)
	op.at("remove containers")
	for _, c := range m.containersOf(s.id) {
		err = errors.Join(err, m.containerVerbs.RemoveContainer(ctx, c.id))
	}
	if err != nil {
		return err
	}
	op.at("take away")
	return m.teardownSandbox(ctx, s)
}

// stopSandbox leaves the sandbox not ready, with nothing running and no network.
func (m *sandboxManager) stopSandbox(ctx context.Context, op *Operation, s *sandbox) error {
	op.at("kill containers")
	if s.record().Phase != record.SandboxNotReady {
		// From here on no container starts in it (B15).
		m.endSandbox(ctx, s, func(r *record.Sandbox) { r.Phase = record.SandboxNotReady })
	}
	if err := m.killContainers(ctx, s); err != nil {
		return err
	}
	op.at("release network and namespaces")
	op.on(Wait{For: WaitPlugin})
	return m.release(ctx, s)
}

func (m *sandboxManager) killContainers(ctx context.Context, s *sandbox) error {
	list := m.containersOf(s.id)
	errs := make([]error, len(list))
	var wait sync.WaitGroup
	for i, c := range list {
		wait.Add(1)
		// Owner: this call, which waits; each ends by killDeadline.
		go func() {
			defer wait.Done()
			errs[i] = m.containerVerbs.StopContainer(ctx, c.id, 0)
		}()
	}
	wait.Wait()
	return errors.Join(errs...)
}

// release gives back what acquire took, in reverse order. Every step may have been done before.
func (m *sandboxManager) release(ctx context.Context, s *sandbox) error {
	var errs []error
	if err := m.stopReaper(ctx, s); err != nil {
		errs = append(errs, fmt.Errorf("end the sandbox's PID 1: %w", err))
	}
	if err := m.cfg.Cgroups.RemovePod(ctx, s.record().CgroupScope); err != nil {
		errs = append(errs, err)
	}
	if err := m.detach(ctx, s); err != nil {
		// The namespace stays pinned: the plugins need it when DEL is tried again.
		return errors.Join(append(errs, err)...)
	}
	if err := m.cfg.Namespaces.Remove(ctx, s.id); err != nil {
		errs = append(errs, fmt.Errorf("remove namespaces: %w", err))
	}
	if err := m.cfg.Files.Remove(ctx, s.id); err != nil {
		errs = append(errs, fmt.Errorf("remove files: %w", err))
	}
	return errors.Join(errs...)
}

// detach runs CNI DEL from the stored attachment. After a reboot the namespace is gone and DEL still owed (B10).
func (m *sandboxManager) detach(ctx context.Context, s *sandbox) error {
	rec := s.record()
	if len(rec.Attachment) == 0 {
		return nil
	}
	var attachment cni.Attachment
	if err := json.Unmarshal(rec.Attachment, &attachment); err != nil {
		return fmt.Errorf("read the network attachment: %w", err)
	}
	if err := m.cfg.Network.Detach(ctx, m.cniPod(s), &attachment); err != nil {
		return fmt.Errorf("detach network: %w", err)
	}
	m.endSandbox(ctx, s, func(r *record.Sandbox) { r.Attachment = nil })
	return nil
}

func (m *sandboxManager) stopReaper(ctx context.Context, s *sandbox) error {
	if spec.SandboxNamespaces(s.config).PID != spec.PIDShared {
		return nil
	}
	var errs []error
	if s.record().ReaperPID != 0 {
		errs = append(errs, m.killProcess(ctx, s.id))
	}
	group := m.reaperCgroup(s)
	if err := m.cfg.Cgroups.Kill(ctx, group); err != nil {
		errs = append(errs, err)
	}
	if err := m.cfg.Cgroups.Remove(ctx, group); err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	m.endSandbox(ctx, s, func(r *record.Sandbox) { r.ReaperPID, r.ReaperStartTime = 0, 0 })
	return nil
}

// teardownSandbox is the one way back of a failed create, of Remove and of recovery. The record goes last, and
// stays if anything failed.
func (m *sandboxManager) teardownSandbox(ctx context.Context, s *sandbox) error {
	if err := m.release(ctx, s); err != nil {
		return err
	}
	if s.config.GetLinux().GetCgroupParent() == "" {
		// podwright's own parent group goes with its last pod; a busy one is still needed.
		m.cfg.Cgroups.RemoveEmpty(m.cfg.CgroupParent)
	}
	if err := m.deleteSandbox(s); err != nil {
		return fmt.Errorf("delete record: %w", err)
	}
	unlabelSandbox(m.core, s.id)
	was := m.sandboxes.delete(s.id)
	m.sandboxKeys.CompareAndDelete(sandboxKey(s.config.GetMetadata()), s.id)
	if was {
		m.events.tell(eventDeleted, s.id, lastOf(sandboxStatus(s, s.record())))
	}
	return nil
}
