package cni

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func loadOf(t *testing.T, n *node) ([]*network, error) {
	t.Helper()
	network, err := New(n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	return network.load()
}

func TestFirstConfigurationByNameCounts(t *testing.T) {
	n := newNode(t)
	n.conf("20-b.conflist", `{"cniVersion":"1.0.0","name":"second","plugins":[{"type":"b"}]}`)
	n.conf("10-a.conf", `{"cniVersion":"0.3.1","name":"first","type":"a"}`)
	n.conf("05-a.conflist.bak", `{"cniVersion":"0.3.1","name":"backup","type":"a"}`)
	n.conf("README", `no configuration`)
	if err := os.Mkdir(filepath.Join(n.cfg.ConfDir, "00-dir.conf"), 0o755); err != nil {
		t.Fatal(err)
	}
	// A link that leads nowhere yet is a file that isn't there yet.
	if err := os.Symlink("/nowhere/at/all", filepath.Join(n.cfg.ConfDir, "01-link.conflist")); err != nil {
		t.Fatal(err)
	}
	networks, err := loadOf(t, n)
	if err != nil || len(networks) != 1 || networks[0].name != "first" || networks[0].list.CNIVersion != "0.3.1" || networks[0].list.Plugins[0].Network.Type != "a" {
		t.Fatalf("got %+v, %v", networks, err)
	}
	n.cfg.MaxConfNum = 3
	networks, err = loadOf(t, n)
	if err != nil || len(networks) != 2 || networks[1].name != "second" {
		t.Errorf("got %+v, %v", networks, err)
	}
	n.conf("30-c.conflist", `{"cniVersion":"1.0.0","name":"first","plugins":[{"type":"c"}]}`)
	if _, err = loadOf(t, n); err == nil || !strings.Contains(err.Error(), `network "first" is in`) {
		t.Errorf("a name twice: got %v", err)
	}
}

func TestUnusableConfigurationIsNamed(t *testing.T) {
	cases := []struct{ name, content, want string }{
		{"empty", "", "not a CNI configuration"},
		{"rubbish", "\x00\x01<xml/>", "not a CNI configuration"},
		{"half a file", `{"name":"x","plugins":[`, "not a CNI configuration"},
		{"a list", `[]`, "not a CNI configuration"},
		{"no name", `{"plugins":[{"type":"a"}]}`, "no name"},
		{"a name that is a path", `{"name":"../x","plugins":[{"type":"a"}]}`, "network name"},
		{"no plugins", `{"name":"x","plugins":[]}`, "no plugins"},
		{"neither list nor plugin", `{"name":"x"}`, "no plugins"},
		{"a plugin without a type", `{"name":"x","plugins":[{}]}`, "type"},
		{"a type with a slash", `{"name":"x","plugins":[{"type":"../../bin/sh"}]}`, "not the bare name"}, // CVE-2021-20206
		{"an absolute type", `{"name":"x","type":"/bin/sh"}`, "not the bare name"},
		{"an ipam type with a slash", `{"name":"x","plugins":[{"type":"a","ipam":{"type":"../sh"}}]}`, "not the bare name"},
		{"a version of the future", `{"cniVersion":"2.0.0","name":"x","plugins":[{"type":"a"}]}`, "speaks up to"},
		{"a version that is none", `{"cniVersion":"one","name":"x","plugins":[{"type":"a"}]}`, "cniVersion"},
		{"too large", `{"name":"x","plugins":[{"type":"a"}],"pad":"` + strings.Repeat("x", maxConfBytes) + `"}`, "larger than"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			n.conf("10-bad.conflist", c.content)
			// A good one after it doesn't make up for it.
			n.conf("20-good.conflist", fakeConf)
			_, err := loadOf(t, n)
			wantError(t, err, "10-bad.conflist", c.want)
			if err != nil && len(err.Error()) > 2*maxSaidBytes {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
}

func TestFIFOInTheDirectoryHangsNobody(t *testing.T) {
	n := newNode(t)
	if err := unix.Mkfifo(filepath.Join(n.cfg.ConfDir, "10-a.conflist"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := loadOf(t, n)
	wantError(t, err, "10-a.conflist", "not a regular file")
}

// Plugins of other files become part of what is stored for DEL.
func TestPluginsOfOtherFilesAreInlined(t *testing.T) {
	n := newNode(t)
	n.conf("10-a.conflist", `{"cniVersion":"1.0.0","name":"podnet","keep":{"n":12345678901234567890},"plugins":[{"type":"a"}]}`)
	dir := filepath.Join(n.cfg.ConfDir, "podnet")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	n.write(filepath.Join(dir, "50-b.conf"), `{"type":"b","capabilities":{"bandwidth":true}}`, 0o644)
	networks, err := loadOf(t, n)
	if err != nil {
		t.Fatal(err)
	}
	if got := networks[0].plugins(); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("plugins: got %v", got)
	}
	again, err := parseConf(networks[0].list.Bytes)
	if err != nil || len(again.Plugins) != 2 || !again.LoadOnlyInlinedPlugins || !again.Plugins[1].Network.Capabilities["bandwidth"] {
		t.Errorf("from its own bytes: got %+v, %v", again, err)
	}
	if !strings.Contains(string(networks[0].list.Bytes), "12345678901234567890") {
		t.Errorf("a number was rounded: %s", networks[0].list.Bytes)
	}
	n.conf("10-a.conflist", `{"cniVersion":"1.0.0","name":"podnet","loadOnlyInlinedPlugins":true,"plugins":[{"type":"a"}]}`)
	networks, err = loadOf(t, n)
	if err != nil || len(networks[0].plugins()) != 1 {
		t.Errorf("inlined only: got %+v, %v", networks, err)
	}
}

func TestNewRefusesImpossibleConfigs(t *testing.T) {
	good := newNode(t).cfg
	cases := map[string]func(*Config){
		"relative conf dir":  func(c *Config) { c.ConfDir = "net.d" },
		"relative cache":     func(c *Config) { c.CacheDir = "cache" },
		"no bin dirs":        func(c *Config) { c.BinDirs = nil },
		"relative bin dir":   func(c *Config) { c.BinDirs = []string{"bin"} },
		"colon in a bin dir": func(c *Config) { c.BinDirs = []string{"/a:/b"} },
		"negative networks":  func(c *Config) { c.MaxConfNum = -1 },
		"too many networks":  func(c *Config) { c.MaxConfNum = maxNetworks + 1 },
	}
	for name, change := range cases {
		cfg := good
		change(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// B56
func TestPodCIDRIsCheckedAndKept(t *testing.T) {
	n := newNode(t)
	network := n.start()
	for _, bad := range []string{"10.0.0.0", "10.0.0.1/24", "x", "10.0.0.0/33", "10.0.0.0/24;fd00::/64"} {
		if err := network.SetPodCIDR(bad); err == nil {
			t.Errorf("%q: accepted", bad)
		}
	}
	if err := network.SetPodCIDR("10.1.0.0/16, fd00::/48"); err != nil {
		t.Fatal(err)
	}
	if err := network.SetPodCIDR(""); err != nil {
		t.Errorf("none: %v", err)
	}
	again := n.start()
	if got := fmt.Sprint(*again.podCIDR.Load()); got != "[10.1.0.0/16 fd00::/48]" {
		t.Errorf("after a restart: got %s", got)
	}
}

// What is accepted can be stored, read again, and executes nothing but bare names.
func FuzzParseConf(f *testing.F) {
	f.Add([]byte(fakeConf))
	f.Add([]byte(`{"cniVersion":"0.3.1","name":"first","type":"a","ipam":{"type":"b"}}`))
	f.Add([]byte(`{"name":"x","cniVersions":["1.0.0",1],"plugins":[null]}`))
	f.Add([]byte(`{"name":"x","plugins":[{"type":"../a","capabilities":{"x":null}}],"disableGC":"true"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := parseConf(data)
		if err == nil {
			err = checkList(list)
		}
		if err != nil {
			if len(err.Error()) > 4*maxSaidBytes {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
			return
		}
		whole, err := inline(list)
		if err != nil {
			t.Fatalf("inline: %v", err)
		}
		again, err := parseConf(whole.Bytes)
		if err == nil {
			err = checkList(again)
		}
		if err != nil || again.Name != list.Name || len(again.Plugins) != len(list.Plugins) || again.CNIVersion != list.CNIVersion {
			t.Fatalf("again: %+v, %v; first %+v", again, err, list)
		}
		net := &network{name: list.Name, list: list}
		for _, plugin := range net.plugins() {
			if plugin != filepath.Base(plugin) || strings.HasPrefix(plugin, ".") {
				t.Errorf("plugin %q", plugin)
			}
		}
	})
}
