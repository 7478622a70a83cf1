package cri

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/podwright/podwright/podsandbox"
)

func TestStreamedListsComeInBoundedMessages(t *testing.T) {
	item := func(bytes int) *criv1.Container { return &criv1.Container{Id: strings.Repeat("x", bytes)} }
	tests := []struct {
		name  string
		sizes []int // of the items
		want  []int // items per message
	}{
		{"nothing", nil, nil},
		{"one", []int{10}, []int{1}},
		{"all in one", []int{10, 20, 30}, []int{3}},
		{"one too large for company", []int{10, chunkBytes + 1, 10}, []int{1, 1, 1}},
		{"exactly full", []int{chunkBytes/2 - 4, chunkBytes/2 - 4, 1}, []int{2, 1}},
		{"many", []int{600 << 10, 600 << 10, 400 << 10, 700 << 10}, []int{1, 2, 1}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var items, got []*criv1.Container
			for _, size := range test.sizes {
				items = append(items, item(size))
			}
			var parts []int
			err := sendInChunks(items, func(part []*criv1.Container) error {
				parts = append(parts, len(part))
				got = append(got, part...)
				if bytes := proto.Size(&criv1.StreamContainersResponse{Containers: part}); len(part) > 1 && bytes > chunkBytes+8*len(part) {
					t.Errorf("a message of %d items has %d bytes", len(part), bytes)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if len(parts) != len(test.want) || len(got) != len(items) {
				t.Fatalf("items per message: got %v, want %v", parts, test.want)
			}
			for i := range parts {
				if parts[i] != test.want[i] {
					t.Errorf("items per message: got %v, want %v", parts, test.want)
				}
			}
			for i := range items {
				if got[i] != items[i] {
					t.Errorf("item %d is another one", i)
				}
			}
		})
	}
}

func TestStreamedListEndsWithTheFirstFailedSend(t *testing.T) {
	gone := errors.New("client gone")
	sent := 0
	err := sendInChunks([]*criv1.Container{{Id: strings.Repeat("x", chunkBytes)}, {Id: "y"}}, func([]*criv1.Container) error {
		sent++
		return gone
	})
	if !errors.Is(err, gone) || sent != 1 {
		t.Errorf("got %v after %d sends, want the error after one", err, sent)
	}
}

// What was encoded before is received as if it had been encoded with its answer.
func TestEncodedEntriesAreEntriesToTheClient(t *testing.T) {
	var want []*criv1.PodSandbox
	var entries []podsandbox.Encoded
	for i := range 3 {
		s := &criv1.PodSandbox{Id: strings.Repeat("x", 100*i), Metadata: &criv1.PodSandboxMetadata{Name: "x"}, Labels: map[string]string{"a": "b"}, State: 1, CreatedAt: int64(i)}
		raw, err := proto.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		want, entries = append(want, s), append(entries, raw)
	}
	for name, test := range map[string]struct{ sent, got, want proto.Message }{
		"list":               {withEntries(&criv1.ListPodSandboxResponse{}, entries), &criv1.ListPodSandboxResponse{}, &criv1.ListPodSandboxResponse{Items: want}},
		"stream":             {withEntries(&criv1.StreamPodSandboxesResponse{}, entries), &criv1.StreamPodSandboxesResponse{}, &criv1.StreamPodSandboxesResponse{PodSandboxes: want}},
		"nothing":            {withEntries(&criv1.ListPodSandboxResponse{}, nil), &criv1.ListPodSandboxResponse{}, &criv1.ListPodSandboxResponse{}},
		"list of containers": {withEntries(&criv1.ListContainersResponse{}, nil), &criv1.ListContainersResponse{}, &criv1.ListContainersResponse{}},
	} {
		raw, err := proto.Marshal(test.sent)
		if err == nil {
			err = proto.Unmarshal(raw, test.got)
		}
		if err != nil || !proto.Equal(test.got, test.want) {
			t.Errorf("%s: got %v, %v, want %v", name, test.got, err, test.want)
		}
	}
	for _, answer := range []proto.Message{
		&criv1.ListPodSandboxResponse{}, &criv1.ListContainersResponse{}, &criv1.StreamPodSandboxesResponse{}, &criv1.StreamContainersResponse{},
		&criv1.ListContainerStatsResponse{}, &criv1.StreamContainerStatsResponse{}, &criv1.ListPodSandboxStatsResponse{}, &criv1.StreamPodSandboxStatsResponse{},
		&criv1.ListPodSandboxMetricsResponse{}, &criv1.StreamPodSandboxMetricsResponse{},
	} {
		fields := answer.ProtoReflect().Descriptor().Fields()
		if fields.Len() != 1 || fields.Get(0).Number() != entriesField || !fields.Get(0).IsList() {
			t.Errorf("%T is no longer a list of entries alone", answer)
		}
	}
}
