package isolation

import "testing"

func TestUnderProfile(t *testing.T) {
	for _, c := range []struct {
		label, profile string
		want           bool
	}{
		{"podwright-default (enforce)", "podwright-default", true},
		{"podwright-default (kill)", "podwright-default", true},
		{"podwright-default (complain)", "podwright-default", false},
		{"podwright-default (unconfined)", "podwright-default", false},
		{"podwright-default", "podwright-default", false},
		{"podwright-default (mixed)", "podwright-default", false},
		{"unconfined", "podwright-default", false},
		{"none", "podwright-default", false},
		{"", "podwright-default", false},
		{"podwright-default-2 (enforce)", "podwright-default", false},
		{"unconfined//&podwright-default (enforce)", "podwright-default", true},
		{"podwright-default//&other (enforce)", "podwright-default", true},
		{"podwright-default//hat (enforce)", "podwright-default", true},
		{"with (parentheses) (enforce)", "with (parentheses)", true},
		{"other (enforce)", "unconfined", true},
		{"unconfined", "unconfined", true},
	} {
		if got := underProfile(c.label, c.profile); got != c.want {
			t.Errorf("%q under %q: got %v, want %v", c.label, c.profile, got, c.want)
		}
	}
}
