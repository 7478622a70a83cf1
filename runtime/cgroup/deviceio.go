package cgroup

import (
	"slices"
	"strconv"
	"strings"
)

// DeviceIO is what a group read from and wrote to one block device since it was made.
type DeviceIO struct {
	Major, Minor          uint32
	ReadBytes, WriteBytes uint64
	Reads, Writes         uint64
}

// parseBlkio reads the two files of v1: lines of "8:0 Read 4096" in bytes, and in operations.
func parseBlkio(bytes, operations string) []DeviceIO {
	var list []DeviceIO
	add := func(text string, read, write func(*DeviceIO) *uint64) {
		for line := range strings.Lines(text) {
			fields := strings.Fields(line)
			if len(fields) != 3 {
				continue // the total of all devices
			}
			major, minor, ok := parseDevice(fields[0])
			n, err := strconv.ParseUint(fields[2], 10, 64)
			if !ok || err != nil {
				continue
			}
			switch fields[1] {
			case "Read":
				*read(deviceOf(&list, major, minor)) = n
			case "Write":
				*write(deviceOf(&list, major, minor)) = n
			}
		}
	}
	add(bytes, func(d *DeviceIO) *uint64 { return &d.ReadBytes }, func(d *DeviceIO) *uint64 { return &d.WriteBytes })
	add(operations, func(d *DeviceIO) *uint64 { return &d.Reads }, func(d *DeviceIO) *uint64 { return &d.Writes })
	return list
}

// parseIOStat reads v2's lines of "8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0".
func parseIOStat(text string) []DeviceIO {
	var list []DeviceIO
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		major, minor, ok := parseDevice(fields[0])
		if !ok {
			continue
		}
		d := deviceOf(&list, major, minor)
		for _, field := range fields[1:] {
			key, value, _ := strings.Cut(field, "=")
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				continue
			}
			switch key {
			case "rbytes":
				d.ReadBytes = n
			case "wbytes":
				d.WriteBytes = n
			case "rios":
				d.Reads = n
			case "wios":
				d.Writes = n
			}
		}
	}
	return list
}

// deviceOf finds or adds one: no device is listed twice, whatever the kernel writes.
func deviceOf(list *[]DeviceIO, major, minor uint32) *DeviceIO {
	i := slices.IndexFunc(*list, func(d DeviceIO) bool { return d.Major == major && d.Minor == minor })
	if i < 0 {
		*list = append(*list, DeviceIO{Major: major, Minor: minor})
		i = len(*list) - 1
	}
	return &(*list)[i]
}

func parseDevice(text string) (major, minor uint32, ok bool) {
	before, after, found := strings.Cut(text, ":")
	a, errA := strconv.ParseUint(before, 10, 32)
	b, errB := strconv.ParseUint(after, 10, 32)
	return uint32(a), uint32(b), found && errA == nil && errB == nil
}
