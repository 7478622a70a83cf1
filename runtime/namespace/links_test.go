package namespace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/vishvananda/netlink"
)

// addPair makes two connected interfaces in the sandbox, up: the kernel sends its neighbour discovery through them.
func addPair(t *testing.T, p *Pins, id, name, peer string) {
	t.Helper()
	err := p.Run(context.Background(), id, func() error {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: peer}); err != nil {
			return err
		}
		for _, one := range []string{name, peer} {
			link, err := netlink.LinkByName(one)
			if err == nil {
				err = netlink.LinkSetUp(link)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func linksOf(t *testing.T, p *Pins, ids ...string) (map[string][]Link, map[string]error) {
	t.Helper()
	found, failed := map[string][]Link{}, map[string]error{}
	p.Links(context.Background(), ids, func(id string, links []Link, err error) { found[id], failed[id] = links, err })
	return found, failed
}

func TestLinksOfSeveralSandboxesAreCounted(t *testing.T) {
	p := newPins(t)
	ctx := context.Background()
	for _, id := range []string{"sb1", "sb2"} {
		if err := p.Create(ctx, id, Spec{Net: true}); err != nil {
			t.Fatal(err)
		}
		defer p.Remove(ctx, id)
	}
	hostile := "e\xff\xfe\""
	addPair(t, p, "sb1", "eth0", hostile)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		found, failed := linksOf(t, p, "sb1", "gone", "sb2")
		if failed["sb1"] != nil || failed["sb2"] != nil || !errors.Is(failed["gone"], fs.ErrNotExist) {
			t.Fatalf("errors: got %v, want one of the sandbox that is gone", failed)
		}
		if len(found["sb1"]) != 2 || len(found["sb2"]) != 0 {
			t.Fatalf("got %+v, want the two of sb1, and lo nowhere", found)
		}
		byName := map[string]Link{}
		for _, link := range found["sb1"] {
			if !utf8.ValidString(link.Name) {
				t.Errorf("the name %q is no UTF-8", link.Name)
			}
			byName[link.Name] = link
		}
		sent, received := byName["eth0"], byName["e?\""]
		if sent.TxBytes > 0 && sent.TxPackets > 0 && received.RxBytes > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no traffic is counted: %+v", byName)
		}
	}
}

// The kernel gives a page at a time, which some 30 interfaces fill: lists end before, at and behind its end.
func TestLinksOfManyInterfacesAreAllSeen(t *testing.T) {
	p := newPins(t)
	ctx := context.Background()
	if err := p.Create(ctx, "sb1", Spec{Net: true}); err != nil {
		t.Fatal(err)
	}
	defer p.Remove(ctx, "sb1")
	for count := 2; count < maxLinks; count += 2 {
		addPair(t, p, "sb1", fmt.Sprintf("eth%d", count), fmt.Sprintf("eth%d", count+1))
		if found, failed := linksOf(t, p, "sb1"); len(found["sb1"]) != count || failed["sb1"] != nil {
			t.Fatalf("got %d interfaces, %v, want %d", len(found["sb1"]), failed["sb1"], count)
		}
	}
}

// A socket or thread that stayed would keep the namespace, and the interfaces in it, alive after its removal.
func TestLinksLeaveNothingBehind(t *testing.T) {
	p := newPins(t)
	ctx := context.Background()
	if err := p.Create(ctx, "sb1", Spec{Net: true}); err != nil {
		t.Fatal(err)
	}
	// One end is here: it goes with the namespace of the other.
	if err := p.Run(ctx, "sb1", func() error {
		host, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", os.Getpid()))
		if err != nil {
			return err
		}
		defer host.Close()
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "left1", PeerNamespace: netlink.NsFd(int(host.Fd()))})
	}); err != nil {
		t.Fatal(err)
	}
	linksOf(t, p, "sb1")
	files := len(dirNames(t, "/proc/self/fd"))
	for range 50 {
		linksOf(t, p, "sb1")
	}
	if now := len(dirNames(t, "/proc/self/fd")); now > files {
		t.Errorf("%d files open, %d before", now, files)
	}
	if err := p.Remove(ctx, "sb1"); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat("/sys/class/net/left1"); err != nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the namespace is still alive")
		}
	}
}

func dirNames(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestLinksStopWithTheirContext(t *testing.T) {
	p := newPins(t)
	ctx, cancel := context.WithCancel(context.Background())
	visits := 0
	p.Links(ctx, []string{"a", "b", "c"}, func(string, []Link, error) {
		visits++
		cancel()
	})
	if visits != 1 {
		t.Errorf("%d visits after the first one ended the context", visits)
	}
}

const linkHeadings = "Inter-|   Receive                                                |  Transmit\n" +
	" face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n"

func TestParseLinks(t *testing.T) {
	lo := "    lo:  100     1    0    0    0     0          0         0      100     1    0    0    0     0       0          0\n"
	eth := "  eth0: 3 1 5 7 0 0 0 0 4 2 6 8 0 0 0 0\n"
	eth0 := Link{Name: "eth0", RxPackets: 1, TxPackets: 2, RxBytes: 3, TxBytes: 4, RxErrors: 5, TxErrors: 6, RxDropped: 7, TxDropped: 8}
	for _, test := range []struct {
		name, text string
		want       []Link
	}{
		{"none but lo", linkHeadings + lo, nil},
		{"one", linkHeadings + lo + eth, []Link{eth0}},
		{"a name as long as its column", linkHeadings + "abcdefghijklmno:3 1 5 7 0 0 0 0 4 2 6 8 0 0 0 0\n",
			[]Link{{Name: "abcdefghijklmno", RxPackets: 1, TxPackets: 2, RxBytes: 3, TxBytes: 4, RxErrors: 5, TxErrors: 6, RxDropped: 7, TxDropped: 8}}},
		{"no UTF-8", linkHeadings + "\xffx: 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n", []Link{{Name: "?x", RxBytes: 1}}},
		{"the largest counter", linkHeadings + "x: 18446744073709551615 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n", []Link{{Name: "x", RxBytes: 18446744073709551615}}},
		{"cut off", linkHeadings + eth + "eth1: 3 1 5 7 0 0 0 0 4 2 6 8 0 0 0", []Link{eth0}},
		{"nothing", "", nil},
		{"more than are told", linkHeadings + strings.Repeat(eth, maxLinks+9), slices.Repeat([]Link{eth0}, maxLinks)},
	} {
		if got := parseLinks([]byte(test.text)); !slices.Equal(got, test.want) {
			t.Errorf("%s: got %+v, want %+v", test.name, got, test.want)
		}
	}
}

// FuzzParseLinks: names of interfaces are chosen in the container.
func FuzzParseLinks(f *testing.F) {
	f.Add([]byte(linkHeadings + "  eth0: 3 1 5 7 0 0 0 0 4 2 6 8 0 0 0 0\n"))
	f.Add([]byte("\xff: 3 1 5 7 0 0 0 0 4 2 6 8\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		links := parseLinks(text)
		if len(links) > maxLinks || len(links) > bytes.Count(text, []byte("\n")) {
			t.Errorf("%d interfaces of %q", len(links), text)
		}
		for _, link := range links {
			if link.Name == "" || !utf8.ValidString(link.Name) {
				t.Errorf("the name %q of %q", link.Name, text)
			}
		}
	})
}
