package cri

import (
	"errors"
	"reflect"
	"sort"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// calls are the RPCs that are done; all others answer Unimplemented.
var calls = []string{
	"RuntimeService.Version", "RuntimeService.Status", "RuntimeService.RuntimeConfig", "RuntimeService.UpdateRuntimeConfig",
	"RuntimeService.RunPodSandbox", "RuntimeService.StopPodSandbox", "RuntimeService.RemovePodSandbox", "RuntimeService.PodSandboxStatus",
	"RuntimeService.ListPodSandbox", "RuntimeService.CreateContainer", "RuntimeService.StartContainer", "RuntimeService.StopContainer",
	"RuntimeService.RemoveContainer", "RuntimeService.ListContainers", "RuntimeService.ContainerStatus", "RuntimeService.ExecSync",
	"RuntimeService.UpdateContainerResources", "RuntimeService.UpdatePodSandboxResources",
	"RuntimeService.ContainerStats", "RuntimeService.ListContainerStats", "RuntimeService.StreamContainerStats",
	"RuntimeService.PodSandboxStats", "RuntimeService.ListPodSandboxStats", "RuntimeService.StreamPodSandboxStats",
	"RuntimeService.ListMetricDescriptors", "RuntimeService.ListPodSandboxMetrics", "RuntimeService.StreamPodSandboxMetrics",
	"RuntimeService.ReopenContainerLog", "RuntimeService.Exec", "RuntimeService.Attach", "RuntimeService.PortForward",
	"RuntimeService.GetContainerEvents", "RuntimeService.StreamPodSandboxes", "RuntimeService.StreamContainers", "ImageService.StreamImages",
	"ImageService.PullImage", "ImageService.ImageStatus", "ImageService.ListImages", "ImageService.RemoveImage", "ImageService.ImageFsInfo",
}

// requestFields says of every field of every request message what happens when it is set. The two configuration messages
// have a table of their own in podsandbox/spec, walked by the test there.
var requestFields = map[string]string{
	"VersionRequest.version": "inert: the kubelet sends the version it hopes for; the answer decides",
	"StatusRequest.verbose":  "handled",
	"UpdateRuntimeConfigRequest.runtime_config.network_config.pod_cidr": "handled",
	"RunPodSandboxRequest.config":                                       "spec",
	"RunPodSandboxRequest.runtime_handler":                              "refused",
	"StopPodSandboxRequest.pod_sandbox_id":                              "handled",
	"RemovePodSandboxRequest.pod_sandbox_id":                            "handled",
	"PodSandboxStatusRequest.pod_sandbox_id":                            "handled",
	"PodSandboxStatusRequest.verbose":                                   "handled",
	"ListPodSandboxRequest.filter.id":                                   "handled",
	"ListPodSandboxRequest.filter.state.state":                          "handled",
	"ListPodSandboxRequest.filter.label_selector":                       "handled",
	"CreateContainerRequest.pod_sandbox_id":                             "handled",
	"CreateContainerRequest.config":                                     "spec",
	"CreateContainerRequest.sandbox_config":                             "spec",
	"StartContainerRequest.container_id":                                "handled",
	"StopContainerRequest.container_id":                                 "handled",
	"StopContainerRequest.timeout":                                      "handled",
	"RemoveContainerRequest.container_id":                               "handled",
	"ListContainersRequest.filter.id":                                   "handled",
	"ListContainersRequest.filter.state.state":                          "handled",
	"ListContainersRequest.filter.pod_sandbox_id":                       "handled",
	"ListContainersRequest.filter.label_selector":                       "handled",
	"ContainerStatusRequest.container_id":                               "handled",
	"ContainerStatusRequest.verbose":                                    "handled",
	"UpdateContainerResourcesRequest.container_id":                      "handled",
	"UpdateContainerResourcesRequest.linux":                             "spec",
	"UpdateContainerResourcesRequest.windows":                           "refused",
	"UpdateContainerResourcesRequest.annotations":                       "refused",
	"UpdatePodSandboxResourcesRequest.pod_sandbox_id":                   "handled",
	"UpdatePodSandboxResourcesRequest.overhead":                         "inert: recorded and shown by verbose status; the kubelet enforces it on the pod's cgroup, which it owns",
	"UpdatePodSandboxResourcesRequest.resources":                        "inert: recorded and shown by verbose status; the kubelet enforces it on the pod's cgroup, which it owns",
	"StreamPodSandboxesRequest.filter.id":                               "handled",
	"StreamPodSandboxesRequest.filter.state.state":                      "handled",
	"StreamPodSandboxesRequest.filter.label_selector":                   "handled",
	"StreamContainersRequest.filter.id":                                 "handled",
	"StreamContainersRequest.filter.state.state":                        "handled",
	"StreamContainersRequest.filter.pod_sandbox_id":                     "handled",
	"StreamContainersRequest.filter.label_selector":                     "handled",
	"StreamImagesRequest.filter.image":                                  "image",
	"ContainerStatsRequest.container_id":                                "handled",
	"ListContainerStatsRequest.filter.id":                               "handled",
	"ListContainerStatsRequest.filter.pod_sandbox_id":                   "handled",
	"ListContainerStatsRequest.filter.label_selector":                   "handled",
	"StreamContainerStatsRequest.filter.id":                             "handled",
	"StreamContainerStatsRequest.filter.pod_sandbox_id":                 "handled",
	"StreamContainerStatsRequest.filter.label_selector":                 "handled",
	"PodSandboxStatsRequest.pod_sandbox_id":                             "handled",
	"ListPodSandboxStatsRequest.filter.id":                              "handled",
	"ListPodSandboxStatsRequest.filter.label_selector":                  "handled",
	"StreamPodSandboxStatsRequest.filter.id":                            "handled",
	"StreamPodSandboxStatsRequest.filter.label_selector":                "handled",
	"ExecSyncRequest.container_id":                                      "handled",
	"ExecSyncRequest.cmd":                                               "handled",
	"ExecSyncRequest.timeout":                                           "handled",
	"ReopenContainerLogRequest.container_id":                            "handled",
	"ExecRequest.container_id":                                          "handled", "ExecRequest.cmd": "handled", "ExecRequest.tty": "handled",
	"ExecRequest.stdin": "handled", "ExecRequest.stdout": "handled", "ExecRequest.stderr": "handled",
	"AttachRequest.container_id": "handled", "AttachRequest.tty": "handled",
	"AttachRequest.stdin": "handled", "AttachRequest.stdout": "handled", "AttachRequest.stderr": "handled",
	"PortForwardRequest.pod_sandbox_id": "handled", "PortForwardRequest.port": "handled",
	"PullImageRequest.image":               "image",
	"PullImageRequest.auth.username":       "handled",
	"PullImageRequest.auth.password":       "handled",
	"PullImageRequest.auth.auth":           "handled",
	"PullImageRequest.auth.server_address": "handled",
	"PullImageRequest.auth.identity_token": "handled",
	"PullImageRequest.auth.registry_token": "handled",
	"PullImageRequest.sandbox_config":      "inert: a pull needs nothing of the sandbox it is for",
	"ImageStatusRequest.image":             "image",
	"ImageStatusRequest.verbose":           "handled",
	"ListImagesRequest.filter.image":       "image",
	"RemoveImageRequest.image":             "image",
	"ImageSpec.image":                      "handled",
	"ImageSpec.annotations":                "inert: notes of the kubelet about its own choice",
	"ImageSpec.user_specified_image":       "handled",
	"ImageSpec.runtime_handler":            "refused",
	"ImageSpec.image_ref":                  "inert: the kubelet echoes what an earlier pull answered; image says which is meant",
}

func TestEveryRequestFieldHasATreatment(t *testing.T) {
	found := map[string]bool{}
	for _, call := range calls {
		service, method, _ := strings.Cut(call, ".")
		m := criv1.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto.Services().ByName(protoreflect.Name(service)).Methods().ByName(protoreflect.Name(method))
		if m == nil {
			t.Fatalf("the API has no %s", call)
		}
		walk(m.Input(), string(m.Input().Name()), found)
	}
	walk((&criv1.ImageSpec{}).ProtoReflect().Descriptor(), "ImageSpec", found)
	for path := range found {
		if requestFields[path] == "" {
			t.Errorf("field %s is neither handled, refused nor inert with a reason", path)
		}
	}
	for path, treatment := range requestFields {
		if !found[path] {
			t.Errorf("the API has no field %s", path)
		}
		if name, reason, _ := strings.Cut(treatment, ":"); name == "inert" && reason == "" {
			t.Errorf("field %s is inert without a reason", path)
		}
	}
}

// walk collects the fields below a message, ending at those with a treatment.
func walk(m protoreflect.MessageDescriptor, path string, found map[string]bool) {
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		at := path + "." + string(f.Name())
		if f.Message() != nil && !f.IsMap() && requestFields[at] == "" {
			walk(f.Message(), at, found)
			continue
		}
		found[at] = true
	}
}

func TestOtherCallsAnswerUnimplemented(t *testing.T) {
	done := map[string]bool{}
	for _, call := range calls {
		done[call] = true
	}
	var rest []string
	services := criv1.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto.Services()
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for j := range methods.Len() {
			if name := string(services.Get(i).Name()) + "." + string(methods.Get(j).Name()); !done[name] {
				rest = append(rest, name)
			}
		}
	}
	sort.Strings(rest)
	if len(rest)+len(calls) != 43 {
		t.Errorf("the API has %d calls, want the 43 of cri-api v0.37: look at what is new", len(rest)+len(calls))
	}
	server := reflect.ValueOf(&Server{})
	for _, call := range rest {
		_, name, _ := strings.Cut(call, ".")
		method := server.MethodByName(name)
		if !method.IsValid() {
			t.Errorf("the server has no %s", call)
			continue
		}
		// A unary call takes a context and a request, a streaming one a request and a stream, which it must not touch.
		args := []reflect.Value{reflect.ValueOf(t.Context()), reflect.Value{}}
		for i := range args {
			if in := method.Type().In(i); in.Kind() == reflect.Pointer {
				args[i] = reflect.New(in.Elem())
			} else if i == 1 {
				args[0], args[1] = reflect.New(method.Type().In(0).Elem()), reflect.Zero(in)
			}
		}
		out := method.Call(args)
		if err, _ := out[len(out)-1].Interface().(error); status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: got %v, want Unimplemented", call, err)
		}
	}
}

func TestImageSpecRefusesRuntimeHandler(t *testing.T) {
	err := plainImageSpec(&criv1.ImageSpec{Image: "x", RuntimeHandler: "kata"})
	if err == nil || !strings.Contains(err.Error(), "runtime_handler \"kata\"") || status.Code(toStatus(err)) != codes.InvalidArgument {
		t.Errorf("got %v, want InvalidArgument that names runtime_handler and kata", err)
	}
}

func TestEverySentinelHasItsCode(t *testing.T) {
	for _, k := range kinds {
		wrapped := errors.Join(errors.New("run sandbox 3f2a91"), k.kind)
		if got := status.Code(toStatus(wrapped)); got != k.code {
			t.Errorf("%v: got %s, want %s", k.kind, got, k.code)
		}
	}
	if got := status.Code(toStatus(errors.New("RegistryUnavailable: x"))); got != codes.Unknown {
		t.Errorf("an error without a kind: got %s, want Unknown", got)
	}
}
