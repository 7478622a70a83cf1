package podfiles

import (
	"strings"
	"testing"
)

// Whatever a client names: a value stays one word of its own line (the class of CVE-2022-4318).
func FuzzContents(f *testing.F) {
	f.Add("pod", "10.0.0.1", "svc.example", "ndots:5")
	f.Add("a b", "10.0.0.1\nnameserver 6.6.6.6", "x\toptions y", "\x00")
	f.Fuzz(func(t *testing.T, hostname, server, search, option string) {
		files := &Files{}
		texts, err := files.contents(Spec{Hostname: hostname, DNS: &DNS{Servers: []string{server}, Searches: []string{search}, Options: []string{option}}})
		if err != nil {
			return
		}
		if want := "search " + search + "\nnameserver " + server + "\noptions " + option + "\n"; texts["resolv.conf"] != want || strings.Count(want, "\n") != 3 {
			t.Fatalf("resolv.conf: got %q, want three lines %q", texts["resolv.conf"], want)
		}
		if texts["hostname"] != hostname+"\n" || len(strings.Fields(hostname)) != 1 {
			t.Fatalf("hostname: got %q", texts["hostname"])
		}
	})
}
