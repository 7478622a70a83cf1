package wire

import (
	"bytes"
	"strings"
	"testing"
)

func TestJournalGetsPrioritiesAndNoTime(t *testing.T) {
	var out bytes.Buffer
	log := NewLog(&out, true).With("role", "keeper")
	log.Info("Started", "pid", 7)
	log.Error("Ended", "err", "a\nb")
	want := "<6>level=INFO msg=Started role=keeper pid=7\n<3>level=ERROR msg=Ended role=keeper err=\"a\\nb\"\n"
	if out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
	out.Reset()
	NewLog(&out, false).Info("Started")
	if !strings.HasPrefix(out.String(), "time=") || !strings.Contains(out.String(), "level=INFO") {
		t.Errorf("elsewhere: got %q, want time and level", out.String())
	}
}
