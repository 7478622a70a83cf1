package kubelet

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestSettingsOfAPodReachItsContainer(t *testing.T) {
	mustRun(t, "settings")
	got, err := logs("settings", "main")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"id 1234 2345 2345 3456 4567\n",
		"hostname chosen\n",
		"alias 192.0.2.1\n",
		"dns search lab.example nameserver 192.0.2.53 options ndots:3\n",
		"sysctl 77\n",
		"environment lab 67108864\n",
		"label green\n",
		"root touch: /file: Read-only file system\n",
		"memory tmpfs file\n",
		"sub file\n",
		"image /image/bin/stay touch: /image/file: Read-only file system\n",
		"CapEff:\t0000000000000000\n",
		"NoNewPrivs:\t1\n",
		"Seccomp:\t2\n", // by the kubelet's seccompDefault
	} {
		if !strings.Contains(got, want) {
			t.Errorf("got %q, want %q in it", got, want)
		}
	}
}

func TestWhatGoesWrongIsSaid(t *testing.T) {
	inLab(t)
	wrong := func(name string, is func(containerStatus) bool) {
		t.Helper()
		mustEventually(t, time.Minute, name, func() error {
			c, err := container("wrong", name)
			if err == nil && !is(c) {
				err = fmt.Errorf("container %s", c)
			}
			return err
		})
	}
	wrong("noimage", func(c containerStatus) bool {
		w := c.State.Waiting
		return w != nil && (w.Reason == "ErrImagePull" || w.Reason == "ImagePullBackOff") && strings.Contains(w.Message, "lab/absent:1")
	})
	wrong("noprogram", func(c containerStatus) bool {
		end := c.State.Terminated
		return end != nil && end.ExitCode == 128 && end.Reason == "StartError" && strings.Contains(end.Message, "/no/such/program")
	})
	wrong("lastwords", func(c containerStatus) bool {
		end := c.State.Terminated
		return end != nil && end.ExitCode == 9 && end.Message == "enough of this\n"
	})
}
