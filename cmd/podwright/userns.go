package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"k8s.io/klog/v2"

	"github.com/podwright/podwright/cmd/podwright/internal/config"
	"github.com/podwright/podwright/runtime/mounts"
	"github.com/podwright/podwright/runtime/namespace"
)

// openPins opens the pinned namespaces. Those with a user namespace are made around init, which waits for its input's end.
func openPins(cfg config.Config) (*namespace.Pins, error) {
	holder, err := binary(cfg.Runtime.InitBinary, "podwright-init")
	if err != nil {
		return nil, err
	}
	return namespace.New(namespace.Config{
		NetnsDir: cfg.Network.NetnsDir, RunDir: filepath.Join(cfg.RunDir, "ns"), Holder: []string{holder},
	})
}

// probeDeadline bounds a look at the kernel; a file system that hangs must not keep the daemon from serving.
const probeDeadline = 20 * time.Second

// probeUserNamespaces makes a user namespace and a root file system that is mapped to it, as a sandbox would have them. What
// this kernel, or the state directory's file system, cannot is not announced, and refused where it is asked for.
func probeUserNamespaces(stateDir string, pins *namespace.Pins, opener *mounts.Opener) bool {
	err := tryMappedRoot(stateDir, pins, opener)
	if err != nil {
		klog.InfoS("Pods cannot have user namespaces on this node", "err", fmt.Sprint(err))
	}
	return err == nil
}

func tryMappedRoot(stateDir string, pins *namespace.Pins, opener *mounts.Opener) error {
	const anyID, anyLength = 1 << 16, 1 << 16 // the range that the kubelet gives its first pod
	ctx, cancel := context.WithTimeout(context.Background(), probeDeadline)
	defer cancel()
	ids := []namespace.IDMap{{Outside: anyID, Length: anyLength}}
	userNS, err := pins.UserNamespace(ctx, namespace.UserMap{UIDs: ids, GIDs: ids})
	if err != nil {
		return err
	}
	defer userNS.Close()
	return opener.ProbeIDMap(ctx, filepath.Clean(stateDir), mounts.IDMap{UserNS: userNS, RootUID: anyID, RootGID: anyID})
}
