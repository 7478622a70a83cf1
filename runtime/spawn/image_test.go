package spawn

import (
	"bytes"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/podwright/podwright/runtime/launch"
)

// TestEntryHasTheNumbersOfImages: the assembler can't share them.
func TestEntryHasTheNumbersOfImages(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("there is no entry point of its own on " + runtime.GOARCH)
	}
	source, err := os.ReadFile("entry_amd64.s")
	if err != nil {
		t.Fatal(err)
	}
	for _, number := range []uint64{imageBase, imageMagic} {
		text := "$0x" + strconv.FormatUint(number, 16)
		if padded := "$0x0" + strconv.FormatUint(number, 16); !strings.Contains(string(source), text) && !strings.Contains(string(source), padded) {
			t.Errorf("entry_amd64.s has no %s", text)
		}
	}
	if !strings.Contains(string(source), "$"+strconv.Itoa(launch.PlanFd)+", DI") || !strings.Contains(string(source), "$"+strconv.Itoa(int(imageHeaderSize))+" ") {
		t.Error("entry_amd64.s: other plan descriptor or header size")
	}
}

func TestImageHoldsWhatTheProgramPointsTo(t *testing.T) {
	p := NewImage(4)
	p.Step("say", "path")
	text := p.Text("hello")
	first := p.Call(syscall.SYS_WRITE, 1, text, 5)
	second := p.Call(syscall.SYS_EXIT_GROUP, 0)
	p.Feed(first, second, 0)
	file := append(p.Image(), "plan"...)

	header := (*imageHeader)(unsafe.Pointer(&file[0]))
	if got := string(AfterImage(file)); got != "plan" {
		t.Errorf("after the image comes %q", got)
	}
	at := func(address uintptr) []byte { return file[address-imageBase:] }
	if !bytes.HasPrefix(at(text), []byte("hello\x00")) {
		t.Errorf("text is %q", at(text)[:8])
	}
	calls := unsafe.Slice((*rawCall)(unsafe.Pointer(&at(header.program.calls)[0])), header.program.count)
	if len(calls) != 2 || calls[0].nr != syscall.SYS_WRITE || calls[0].args[1] != text || header.program.status != 4 {
		t.Fatalf("got %+v in %+v", calls, header)
	}
	if got := calls[0].store - header.program.calls; got != unsafe.Sizeof(rawCall{})+unsafe.Offsetof(rawCall{}.args) {
		t.Errorf("the result goes to %d of the calls", got)
	}
	failure := (*rawFailure)(unsafe.Pointer(&at(calls[1].failure)[0]))
	message, err := launch.DecodeStatus(at(failure.message)[:failure.length])
	if err != nil || message.Step != "say" || message.Path != "path" || failure.errno <= failure.message {
		t.Errorf("got %+v, %v", message, err)
	}
}

func FuzzAfterImage(f *testing.F) {
	p := NewImage(4)
	p.Call(syscall.SYS_GETPID)
	f.Add(append(p.Image(), "plan"...))
	f.Add([]byte("short"))
	f.Fuzz(func(t *testing.T, file []byte) {
		if rest := AfterImage(bytes.Clone(file)); !bytes.HasSuffix(file, rest) {
			t.Errorf("%q is no end of %q", rest, file)
		}
	})
}
