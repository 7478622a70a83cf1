package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// runLabel marks the sandboxes of one run.
const runLabel = "podwright.test/bench"

// callTimeout bounds every call: far above what any runtime needs, so reaching it is an error.
const callTimeout = 2 * time.Minute

// endpoint is one -endpoint flag.
type endpoint struct{ name, target, cgroup string }

type endpointFlags []endpoint

func (f *endpointFlags) String() string { return fmt.Sprint([]endpoint(*f)) }

// Set reads name=unix:///socket[,cgroup].
func (f *endpointFlags) Set(text string) error {
	name, rest, ok := strings.Cut(text, "=")
	target, cgroup, _ := strings.Cut(rest, ",")
	if !ok || name == "" || !strings.HasPrefix(target, "unix://") || cgroup != "" && !strings.HasPrefix(cgroup, "/") {
		return fmt.Errorf("%q is not name=unix:///socket[,/cgroup]", text)
	}
	for _, e := range *f {
		if e.name == name {
			return fmt.Errorf("two endpoints are called %q", name)
		}
	}
	*f = append(*f, endpoint{name, target, cgroup})
	return nil
}

// candidate is a CRI runtime that is measured.
type candidate struct {
	name    string
	version string
	cgroup  string // "" when unknown: no processor time and memory then
	image   string // reference as CreateContainer wants it
	conn    *grpc.ClientConn
	cri     criv1.RuntimeServiceClient
	images  criv1.ImageServiceClient
}

// connect dials and pulls the image.
func connect(ctx context.Context, e endpoint, image string) (*candidate, error) {
	conn, err := grpc.NewClient(e.target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.name, err)
	}
	r := &candidate{name: e.name, cgroup: e.cgroup, image: image, conn: conn, cri: criv1.NewRuntimeServiceClient(conn), images: criv1.NewImageServiceClient(conn)}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	version, err := r.cri.Version(ctx, &criv1.VersionRequest{})
	if err == nil {
		r.version = version.RuntimeName + " " + version.RuntimeVersion
		_, err = r.images.PullImage(ctx, &criv1.PullImageRequest{Image: &criv1.ImageSpec{Image: image}})
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("%s: %w", e.name, err)
	}
	return r, nil
}

// removeAll stops and removes every sandbox of a run.
func (r *candidate) removeAll(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*callTimeout)
	defer cancel()
	list, err := r.cri.ListPodSandbox(ctx, &criv1.ListPodSandboxRequest{Filter: &criv1.PodSandboxFilter{LabelSelector: map[string]string{runLabel: id}}})
	if err != nil {
		return err
	}
	var errs []error
	for _, sandbox := range list.Items {
		_, err := r.cri.StopPodSandbox(ctx, &criv1.StopPodSandboxRequest{PodSandboxId: sandbox.Id})
		if err == nil {
			_, err = r.cri.RemovePodSandbox(ctx, &criv1.RemovePodSandboxRequest{PodSandboxId: sandbox.Id})
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
