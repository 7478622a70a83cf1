package spec

import criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

// Capabilities names the bounding set a container will have (CAP_ names): what seccomp profiles decide by.
func Capabilities(config *criv1.ContainerConfig, node Node) ([]string, error) {
	set, err := capabilitiesOf(config.GetLinux().GetSecurityContext(), node)
	if err != nil {
		return nil, err
	}
	return capabilityList(set.held), nil
}
