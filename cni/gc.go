package cni

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

// GC is run at start (B54). known names all sandboxes that are or may be attached,
// those whose record can't be read included, since of everything else the networks
// are told to let go. It is called once no ADD is under way, and none begins before
// GC has ended: a sandbox whose record is written before its ADD is never missed.
//
// First, cached attachments of unknown sandboxes get the DEL they are owed, with
// their own configuration. Then plugins that have the GC command (CNI 1.1.0) hear
// which attachments are valid.
func (n *Network) GC(ctx context.Context, known func() []string) error {
	if err := n.ops.Acquire(ctx, allOps); err != nil {
		return fmt.Errorf("collect attachments: wait for others to end: %w", err)
	}
	defer n.ops.Release(allOps)
	valid := known()
	cached, err := n.lib.GetCachedAttachments("")
	if err != nil {
		return fmt.Errorf("collect attachments: %w", err)
	}
	var errs []error
	for _, stale := range cached {
		if slices.Contains(valid, stale.ContainerID) {
			continue
		}
		if err := n.delStale(ctx, stale); err != nil {
			errs = append(errs, fmt.Errorf("collect attachment of %s: %w", stale.ContainerID, err))
		}
	}
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
	for _, id := range valid {
		for i := range n.cfg.MaxConfNum {
			args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: interfaceName(i)})
		}
	}
	for _, net := range n.state.Load().networks {
		if err := n.lib.GCNetworkList(ctx, net.list, args); err != nil {
			errs = append(errs, fmt.Errorf("collect attachments to network %q: %w", net.name, inPlugin(err)))
		}
	}
	return errors.Join(errs...)
}

// delStale is DEL for an attachment that only libcni's cache knows.
func (n *Network) delStale(ctx context.Context, stale *libcni.NetworkAttachment) error {
	list, err := libcni.NetworkConfFromBytes(stale.Config)
	if err != nil {
		return bounded(err)
	}
	if err := checkList(list); err != nil {
		return err
	}
	return inPlugin(n.lib.DelNetworkList(ctx, list, &libcni.RuntimeConf{
		ContainerID:    stale.ContainerID,
		NetNS:          existingNetns(stale.NetNS),
		IfName:         stale.IfName,
		Args:           stale.CniArgs,
		CapabilityArgs: stale.CapabilityArgs,
	}))
}
