package cgroup

import (
	"fmt"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// The ranges of OCI's weights (those of v1) and of io.weight.
const (
	minBlockWeight, maxBlockWeight = 10, 1000
	minIOWeight, maxIOWeight       = 1, 10000
)

// blockIO compiles weights and limits of block devices, on v2 only: refuseUnsupported has seen to v1.
func (c *compiler) blockIO(res *specs.LinuxResources) error {
	b := res.BlockIO
	if b == nil {
		return nil
	}
	if b.Weight != nil && *b.Weight != 0 {
		if err := c.ioWeight("blockIO.weight", "default", *b.Weight); err != nil {
			return err
		}
	}
	for _, d := range b.WeightDevice {
		if d.Weight == nil || *d.Weight == 0 {
			continue
		}
		device, err := blockDevice("blockIO.weightDevice", d.Major, d.Minor)
		if err != nil {
			return err
		}
		if err := c.ioWeight("blockIO.weightDevice", device, *d.Weight); err != nil {
			return err
		}
	}
	for _, limits := range []struct {
		field, key string
		devices    []specs.LinuxThrottleDevice
	}{
		{"blockIO.throttleReadBpsDevice", "rbps", b.ThrottleReadBpsDevice}, {"blockIO.throttleWriteBpsDevice", "wbps", b.ThrottleWriteBpsDevice},
		{"blockIO.throttleReadIOPSDevice", "riops", b.ThrottleReadIOPSDevice}, {"blockIO.throttleWriteIOPSDevice", "wiops", b.ThrottleWriteIOPSDevice},
	} {
		for _, d := range limits.devices {
			device, err := blockDevice(limits.field, d.Major, d.Minor)
			if err != nil {
				return err
			}
			if err := c.need("io", limits.field); err != nil {
				return err
			}
			rate := "max" // 0 is no limit, as on v1
			if d.Rate != 0 {
				rate = strconv.FormatUint(d.Rate, 10)
			}
			c.set("io", "io.max", device+" "+limits.key+"="+rate)
		}
	}
	return nil
}

func (c *compiler) ioWeight(field, of string, weight uint16) error {
	if weight < minBlockWeight || weight > maxBlockWeight {
		return invalid(field, weight, "want %d to %d", minBlockWeight, maxBlockWeight)
	}
	if err := c.need("io", field); err != nil {
		return err
	}
	// The straight line that runc and crun draw between the ends of both ranges.
	converted := minIOWeight + (uint64(weight)-minBlockWeight)*(maxIOWeight-minIOWeight)/(maxBlockWeight-minBlockWeight)
	c.set("io", "io.weight", of+" "+strconv.FormatUint(converted, 10))
	return nil
}

func blockDevice(field string, major, minor int64) (string, error) {
	text := fmt.Sprintf("%d:%d", major, minor)
	if major < 0 || major > maxMajor || minor < 0 || minor > maxMinor {
		return "", invalid(field, text, "want a device's major number of at most %d and a minor of at most %d", maxMajor, maxMinor)
	}
	return text, nil
}
