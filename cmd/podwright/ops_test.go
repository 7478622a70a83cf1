package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	adminv1 "github.com/podwright/podwright/cri/admin/v1"
)

// What people read has everything in words and nothing that draws on their terminal: a program chooses its own name.
func TestOpsTableSaysWhatIsWaitedFor(t *testing.T) {
	now := time.Unix(1000, 0)
	at := func(ago time.Duration) int64 { return now.Add(-ago).UnixNano() }
	resp := &adminv1.ListOperationsResponse{Operations: []*adminv1.Operation{
		{Kind: "run sandbox", Name: "ns/pod", Id: strings.Repeat("ab", 32), Step: "attach network", StartedAt: at(12 * time.Second), StepStartedAt: at(11500 * time.Millisecond),
			WaitsFor: []*adminv1.Wait{{Kind: "CNI plugin", Name: "bridge ADD", Pid: 4242, Detail: "stopped by a signal", Until: at(-48 * time.Second)}}},
		{Kind: "stop container", Name: "ns/pod/c", Id: "c0ffee", Step: "wait for its end", StartedAt: at(1500 * time.Millisecond), StepStartedAt: at(1500 * time.Millisecond),
			WaitsFor: []*adminv1.Wait{{Kind: "end", Name: "\x1b[2Jsh\n", Pid: 7, Until: at(time.Second)}}},
		{Kind: "pull image", Name: "example.org/app:1", Step: "resolving", StartedAt: at(-time.Second), StepStartedAt: at(-time.Second)}, // its clock is ahead
	}}
	var out bytes.Buffer
	if err := writeOpsTable(&out, operations(resp, now)); err != nil {
		t.Fatal(err)
	}
	want := `OPERATION       NAME               ID            AGE   STEP              FOR   WAITS FOR
run sandbox     ns/pod             abababababab  12s   attach network    12s   CNI plugin bridge ADD (pid 4242, stopped by a signal, at most 48s)
stop container  ns/pod/c           c0ffee        1.5s  wait for its end  1.5s  end ?[2Jsh? (pid 7, at most 0s)
pull image      example.org/app:1                0s    resolving         0s    
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}
