package podsandbox

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox/record"
)

func listedCore(pods int) (*core, []*sandbox) {
	m := &core{}
	var all []*sandbox
	for i := range pods {
		config := &criv1.PodSandboxConfig{
			Metadata:    &criv1.PodSandboxMetadata{Name: fmt.Sprint("pod-", i), Namespace: "kube-system", Uid: fmt.Sprint("uid-", i)},
			Labels:      map[string]string{"io.kubernetes.pod.name": "x", "io.kubernetes.pod.namespace": "kube-system", "io.kubernetes.pod.uid": "x"},
			Annotations: map[string]string{"kubernetes.io/config.source": "api"},
		}
		rec := &record.Sandbox{ID: record.NewID(), Phase: record.SandboxReady, CreatedNanos: int64(i + 1)}
		all = append(all, newSandbox(rec, config, [32]byte{}))
		m.sandboxes.put(rec.ID, all[i])
	}
	return m, all
}

// An entry is encoded once, and again when its record is another one.
func TestListedEntriesFollowTheRecord(t *testing.T) {
	m, all := listedCore(3)
	look := func() (states []criv1.PodSandboxState) {
		for i, e := range m.ListSandboxes(nil) {
			got := &criv1.PodSandbox{}
			if err := proto.Unmarshal(e, got); err != nil {
				t.Fatal(err)
			}
			if want := all[len(all)-1-i]; got.GetId() != want.id || !proto.Equal(got.GetMetadata(), want.config.GetMetadata()) {
				t.Errorf("entry %d: got %v, want %s: newest first", i, got, want.id)
			}
			states = append(states, got.GetState())
		}
		return states
	}
	const ready, notReady = criv1.PodSandboxState_SANDBOX_READY, criv1.PodSandboxState_SANDBOX_NOTREADY
	if got := fmt.Sprint(look()); got != fmt.Sprint([]criv1.PodSandboxState{ready, ready, ready}) {
		t.Errorf("at first: got %v", got)
	}
	next := *all[1].record()
	next.Phase = record.SandboxNotReady
	all[1].cur.Store(&next)
	if got := fmt.Sprint(look()); got != fmt.Sprint([]criv1.PodSandboxState{ready, notReady, ready}) {
		t.Errorf("after one stopped: got %v", got)
	}
	if list := m.ListSandboxes(&criv1.PodSandboxFilter{State: &criv1.PodSandboxStateValue{State: notReady}}); len(list) != 1 {
		t.Errorf("those that are not ready: got %d, want 1", len(list))
	}
}

func TestEntryThatCannotBeSentIsListedByItsID(t *testing.T) {
	rec := &record.Sandbox{ID: record.NewID(), Phase: record.SandboxReady, CreatedNanos: 1}
	s := newSandbox(rec, &criv1.PodSandboxConfig{Metadata: &criv1.PodSandboxMetadata{Name: "\xff"}}, [32]byte{})
	got := &criv1.PodSandbox{}
	if err := proto.Unmarshal(s.entry(rec), got); err != nil || got.GetId() != rec.ID || got.GetState() != criv1.PodSandboxState_SANDBOX_READY {
		t.Errorf("got %v, %v, want id and state", got, err)
	}
}

func BenchmarkList500Sandboxes(b *testing.B) {
	m, _ := listedCore(500)
	b.ReportAllocs()
	for range b.N {
		m.ListSandboxes(nil)
	}
}

func TestSideBySideKeepsTheOrder(t *testing.T) {
	for n := range 3 * lookers {
		of := make([]int64, n)
		for i := range of {
			of[i] = int64(i)
		}
		got := sideBySide(of, func(i int64) dated { return dated{i, Encoded{byte(i)}} })
		if len(got) != n {
			t.Fatalf("%d of %d", len(got), n)
		}
		for i, one := range got {
			if one.created != int64(i) || one.bytes[0] != byte(i) {
				t.Errorf("entry %d of %d is %+v", i, n, one)
			}
		}
	}
}
