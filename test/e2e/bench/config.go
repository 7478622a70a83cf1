package main

import criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

// Paths as the kubelet sends them for a container with the default proc mount.
var (
	maskedPaths = []string{"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

func namespaces(kind podKind) *criv1.NamespaceOption {
	options := &criv1.NamespaceOption{Pid: kind.pid}
	if kind.network == hostNetwork {
		options.Network = criv1.NamespaceMode_NODE
	}
	return options
}

func runtimeDefault() *criv1.SecurityProfile {
	return &criv1.SecurityProfile{ProfileType: criv1.SecurityProfile_RuntimeDefault}
}

// sandboxConfig is what the kubelet sends for a burstable pod.
func sandboxConfig(kind podKind, name, run, logDirectory string) *criv1.PodSandboxConfig {
	config := &criv1.PodSandboxConfig{
		Metadata:     &criv1.PodSandboxMetadata{Name: name, Namespace: "bench", Uid: run + "-" + name},
		LogDirectory: logDirectory,
		DnsConfig:    &criv1.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"bench.svc.cluster.local", "svc.cluster.local"}, Options: []string{"ndots:5"}},
		Labels:       map[string]string{runLabel: run, "io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "bench"},
		Annotations:  map[string]string{"kubernetes.io/config.source": "api"},
		Linux: &criv1.LinuxPodSandboxConfig{
			SecurityContext: &criv1.LinuxSandboxSecurityContext{NamespaceOptions: namespaces(kind), Seccomp: runtimeDefault()},
		},
	}
	if kind.network != hostNetwork {
		config.Hostname = name
	}
	return config
}

func containerConfig(kind podKind, image string) *criv1.ContainerConfig {
	return &criv1.ContainerConfig{
		Metadata: &criv1.ContainerMetadata{Name: "main"},
		Image:    &criv1.ImageSpec{Image: image},
		Command:  kind.command,
		Envs:     []*criv1.KeyValue{{Key: "KUBERNETES_SERVICE_HOST", Value: []byte("10.96.0.1")}, {Key: "KUBERNETES_SERVICE_PORT", Value: []byte("443")}},
		Labels:   map[string]string{"io.kubernetes.container.name": "main"},
		LogPath:  logName,
		Linux: &criv1.LinuxContainerConfig{
			Resources: &criv1.LinuxContainerResources{CpuPeriod: 100000, CpuShares: 102, MemoryLimitInBytes: 256 << 20, OomScoreAdj: 999},
			SecurityContext: &criv1.LinuxContainerSecurityContext{
				NamespaceOptions: namespaces(kind), Seccomp: runtimeDefault(), NoNewPrivs: true,
				MaskedPaths: maskedPaths, ReadonlyPaths: readonlyPaths,
			},
		},
	}
}
