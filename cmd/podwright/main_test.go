package main

import (
	"io"
	"strings"
	"testing"
)

// A mistyped verb must fail: a script would take the help page for success.
func TestUnknownVerbIsAnError(t *testing.T) {
	for _, args := range [][]string{{"frob"}, {"image", "frob"}, {"config", "frob"}, {"keeper", "frob"}} {
		cmd := root()
		cmd.SetArgs(args)
		cmd.SetOut(io.Discard)
		if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), `unknown command "frob"`) {
			t.Errorf("podwright %s: got %v, want an error that names frob", strings.Join(args, " "), err)
		}
	}
	cmd := root()
	cmd.SetArgs([]string{"image"})
	var out strings.Builder
	cmd.SetOut(&out)
	if err := cmd.Execute(); err != nil || !strings.Contains(out.String(), "load") {
		t.Errorf("podwright image: got %q, %v, want its verbs", out.String(), err)
	}
}
