package cri

import (
	"context"
	"errors"
	"slices"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox"
)

// What changes sandboxes or containers is refused while their records are not recovered; a call that is new is refused
// until somebody says here what it does.
func TestOnlyChangesWaitForRecovery(t *testing.T) {
	changes := []string{
		"RunPodSandbox", "StopPodSandbox", "RemovePodSandbox", "CreateContainer", "StartContainer", "StopContainer", "RemoveContainer",
		"UpdateContainerResources", "UpdatePodSandboxResources", "ReopenContainerLog", "ExecSync", "Exec", "Attach", "PortForward",
		"CheckpointContainer", "CheckpointPod", "RestorePod",
	}
	recovered := error(&podsandbox.Error{Kind: podsandbox.ErrUnavailable, Err: errors.New("the keeper has not answered")})
	gate := Gate{Recovered: func() error { return recovered }}
	call := func(service, verb string) error {
		_, err := gate.Intercept(context.Background(), nil, &grpc.UnaryServerInfo{FullMethod: "/" + service + "/" + verb},
			func(context.Context, any) (any, error) { return nil, nil })
		return err
	}
	for _, method := range criv1.RuntimeService_ServiceDesc.Methods {
		verb, want := method.MethodName, codes.OK
		if slices.Contains(changes, verb) {
			want = codes.Unavailable
		} else if !reads[verb] {
			t.Errorf("%s is neither a read nor in this test", verb)
		}
		if got := status.Code(call("runtime.v1.RuntimeService", verb)); got != want {
			t.Errorf("%s before recovery: got %s, want %s", verb, got, want)
		}
	}
	for _, method := range criv1.ImageService_ServiceDesc.Methods {
		if err := call("runtime.v1.ImageService", method.MethodName); err != nil {
			t.Errorf("%s before recovery: got %v, want it passed", method.MethodName, err)
		}
	}
	recovered = nil
	for _, verb := range changes {
		if err := call("runtime.v1.RuntimeService", verb); err != nil {
			t.Errorf("%s after recovery: got %v, want it passed", verb, err)
		}
	}
}
