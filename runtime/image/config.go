package image

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Bounds of what an image config may hold. It is the image author's text and
// stays in the daemon's memory as long as the image is there
// (CVE-2026-47262: unbounded reads of image JSON).
const (
	maxConfigBytes  = 4 << 20
	maxConfigItems  = 4096
	maxConfigString = 128 << 10 // MAX_ARG_STRLEN: execve(2) takes no longer one
)

// imageConfig is the part of an OCI image config that podwright acts on.
type imageConfig struct {
	Created json.RawMessage     `json:"created"`
	Config  ocispec.ImageConfig `json:"config"`
	RootFS  ocispec.RootFS      `json:"rootfs"`
	ocispec.Platform
}

// parseConfig decodes and bounds an image config. Every entry is checked here
// once, so that nobody who reads an Image has to.
func parseConfig(data []byte) (imageConfig, error) {
	var config imageConfig
	if len(data) > maxConfigBytes {
		return config, fmt.Errorf("%w: config of %d bytes, at most %d", ErrInvalidImage, len(data), maxConfigBytes)
	}
	if err := json.Unmarshal(data, &config); err != nil {
		return config, fmt.Errorf("%w: config: %w", ErrInvalidImage, err)
	}
	if err := checkConfig(&config.Config); err != nil {
		return config, fmt.Errorf("%w: config: %w", ErrInvalidImage, err)
	}
	if kind := config.RootFS.Type; kind != "" && kind != "layers" {
		return config, fmt.Errorf("%w: config: rootfs type %.80q", ErrInvalidImage, kind)
	}
	if n := len(config.RootFS.DiffIDs); n > maxLayers {
		return config, fmt.Errorf("%w: config: %d layers, at most %d", ErrInvalidImage, n, maxLayers)
	}
	for _, diffID := range config.RootFS.DiffIDs {
		if err := checkDigest(diffID); err != nil {
			return config, fmt.Errorf("%w: config: diff id: %w", ErrInvalidImage, err)
		}
	}
	return config, nil
}

func checkConfig(c *ocispec.ImageConfig) error {
	lists := []struct {
		name  string
		items []string
	}{
		{"Env", c.Env}, {"Entrypoint", c.Entrypoint}, {"Cmd", c.Cmd},
		{"User", []string{c.User}}, {"WorkingDir", []string{c.WorkingDir}}, {"StopSignal", []string{c.StopSignal}},
		{"Volumes", slices.Collect(maps.Keys(c.Volumes))},
		{"ExposedPorts", slices.Collect(maps.Keys(c.ExposedPorts))},
		{"Labels", slices.Collect(maps.Keys(c.Labels))}, {"Labels", slices.Collect(maps.Values(c.Labels))},
	}
	for _, list := range lists {
		if len(list.items) > maxConfigItems {
			return fmt.Errorf("%s has %d entries, at most %d", list.name, len(list.items), maxConfigItems)
		}
		for _, item := range list.items {
			if len(item) > maxConfigString {
				return fmt.Errorf("%s has an entry of %d bytes, at most %d", list.name, len(item), maxConfigString)
			}
			// A NUL would end the string early for the kernel, so that what
			// was checked is not what is used.
			if strings.ContainsRune(item, 0) {
				return fmt.Errorf("%s entry %.80q has a NUL byte", list.name, item)
			}
		}
	}
	return nil
}

// createdAt is lenient: the time is shown, never acted on, and builders write
// odd ones.
func (c *imageConfig) createdAt() time.Time {
	var created time.Time
	if json.Unmarshal(c.Created, &created) != nil {
		return time.Time{}
	}
	return created
}

// cloneConfig copies every map and slice: callers edit what they get, and
// images are shared by all containers (CVE-2021-21334).
func cloneConfig(c ocispec.ImageConfig) ocispec.ImageConfig {
	c.ExposedPorts = maps.Clone(c.ExposedPorts)
	c.Env = slices.Clone(c.Env)
	c.Entrypoint = slices.Clone(c.Entrypoint)
	c.Cmd = slices.Clone(c.Cmd)
	c.Volumes = maps.Clone(c.Volumes)
	c.Labels = maps.Clone(c.Labels)
	return c
}

// ParseUser splits an image's USER: a number is a uid, anything else a name to
// look up in the image. The group part is left to whoever resolves names. Both
// results empty means root. A number that is no uid is an error and never a
// name (B48, CVE-2024-40635, CVE-2026-46680).
func ParseUser(user string) (uid *int64, name string, err error) {
	user, _, _ = strings.Cut(user, ":")
	if user == "" {
		return nil, "", nil
	}
	digits := strings.TrimLeft(user, "+-")
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return nil, user, nil
	}
	value, err := strconv.ParseInt(user, 10, 64)
	if err != nil || value < 0 || value > math.MaxInt32 {
		return nil, "", fmt.Errorf("%w: user %.80q is no uid: 0 to %d", ErrInvalidImage, user, math.MaxInt32)
	}
	return &value, "", nil
}
