package kubelet

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

func TestLogsThroughTheKubelet(t *testing.T) {
	mustRun(t, "lines")
	mustEventually(t, 30*time.Second, "lines", func() error {
		got, err := logs("lines", "main", "tailLines=3", "timestamps=true")
		if err == nil && strings.Count(got, "Z line ") != 3 {
			err = fmt.Errorf("got %q, want three lines with their times", got)
		}
		return err
	})
	if got, err := logs("lines", "main", "limitBytes=20"); err != nil || len(got) != 20 {
		t.Errorf("the first 20 bytes: got %q, %v", got, err)
	}
	resp, err := client.Get("https://" + kubeletHost + "/containerLogs/default/lines-lab/main?follow=true&tailLines=1")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	followed := make([]byte, 2000) // some 200 lines, two seconds
	if _, err := io.ReadFull(resp.Body, followed); err != nil {
		t.Fatal(err)
	}
	if _, err := numbered(string(followed[:strings.LastIndexByte(string(followed), '\n')+1])); err != nil {
		t.Errorf("lines that are followed: %v", err)
	}
}
