package cgroup

import (
	"os"
	"testing"
	"time"
)

// What the kernel tells of a group on v2 without any controller: processor time, and pressure.
func TestPressureOfAGroupIsRead(t *testing.T) {
	m := unifiedManager(t)
	if _, err := os.Stat("/proc/pressure/cpu"); err != nil {
		t.Skip("a kernel without pressure: ", err)
	}
	ctx, path := testContext(t), groupName(t, m)
	if err := m.Create(ctx, path, nil); err != nil {
		t.Fatal(err)
	}
	if u, err := m.Usage(path); err != nil || u.CPU.Pressure == nil || u.IO == nil || u.CPU.Pressure.Some.Total != 0 || u.CPU.Time != 0 {
		t.Fatalf("a new group: got %+v, %v; want pressures of 0", u, err)
	}
	begin := time.Now()
	for range 4 { // more than most test machines have processors free
		join(t, m, path, `exec `+os.Args[0], childRole+"=spin")
	}
	var u *Usage
	waitFor(t, "processor time, and somebody who waited for a processor", func() bool {
		var err error
		if u, err = m.Usage(path); err != nil {
			t.Fatal(err)
		}
		return u.CPU.Time > 50*time.Millisecond && (u.CPU.Pressure.Some.Total > 0 || time.Since(begin) > 5*time.Second)
	})
	if p := u.CPU.Pressure.Some; p.Total > time.Since(begin)+time.Second || p.Avg10 > 100 {
		t.Errorf("pressure: got %+v after %v", p, time.Since(begin))
	}
	t.Logf("%v of processor time, %+v", u.CPU.Time, u.CPU.Pressure.Some)
}
