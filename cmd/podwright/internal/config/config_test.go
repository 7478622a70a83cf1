package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDefaultIsValidAndReadsBack(t *testing.T) {
	raw, err := Default().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Load(write(t, filepath.Join(t.TempDir(), "config.toml"), string(raw)))
	want := Default()
	// An absent list and an empty one mean the same.
	if len(got.Image.Pinned) == 0 {
		got.Image.Pinned = nil
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
}

func TestUnknownKeyNamesKeyFileAndLine(t *testing.T) {
	path := write(t, filepath.Join(t.TempDir(), "config.toml"), "log_level = 2\n[network]\nconf_dri = \"/etc\"\n")
	_, err := Load(path)
	if err == nil || !strings.Contains(err.Error(), path+":3: unknown key \"network.conf_dri\"") {
		t.Errorf("got %v, want it to name %s:3 and network.conf_dri", err, path)
	}
}

func TestWhatIsNoTOMLNamesFileAndPlace(t *testing.T) {
	path := write(t, filepath.Join(t.TempDir(), "config.toml"), "log_level = 2\nsocket = \"/run\n")
	_, err := Load(path)
	if err == nil || !strings.Contains(err.Error(), path+":2:15: toml: ") {
		t.Errorf("got %v, want it to name %s:2:15", err, path)
	}
}

func TestDropInsOverlayInNameOrder(t *testing.T) {
	dir := t.TempDir()
	path := write(t, filepath.Join(dir, "config.toml"), "log_level = 1\nsocket = \"/run/a.sock\"\n")
	write(t, filepath.Join(dir, "conf.d/20.toml"), "log_level = 4\n")
	write(t, filepath.Join(dir, "conf.d/10.toml"), "log_level = 3\n[network]\nconf_dir = \"/etc/x\"\n")
	got, err := Load(path)
	if err != nil || got.LogLevel != 4 || got.Socket != "/run/a.sock" || got.Network.ConfDir != "/etc/x" || got.Network.NetnsDir != "/run/netns" {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestBadValuesAreRefusedByName(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"relative path", `socket = "podwright.sock"`, "socket"},
		{"no duration", "[network]\nplugin_timeout = \"soon\"", "plugin_timeout"},
		{"zero timeout", "[image]\nprogress_timeout = \"0s\"", "image.progress_timeout"},
		{"no profile", "[runtime]\napparmor_default_profile = \"unconfined\"", "runtime.apparmor_default_profile: \"unconfined\" is no name"},
		{"no kind of profile", "[runtime]\napparmor_when_unset = \"Localhost\"", "runtime.apparmor_when_unset: \"Localhost\" is neither"},
		{"unknown limit", "[runtime.rlimits.files]\nsoft = 1\nhard = 1", "runtime.rlimits.files"},
		{"soft above hard", "[runtime.rlimits.nofile]\nsoft = 2\nhard = 1", "soft 2 is above hard 1"},
		{"keeper among pods", "[cgroup]\nkeeper = \"/podwright/keeper\"", "cgroup.keeper"},
		{"unknown driver", "[cgroup]\ndriver = \"openrc\"", "cgroup.driver: \"openrc\""},
		{"slice and cgroupfs", "[cgroup]\ndriver = \"cgroupfs\"\nparent = \"pods.slice\"", "cgroup.parent: \"pods.slice\" is a slice"},
		{"relative parent", "[cgroup]\nparent = \"pods\"", "cgroup.parent"},
		{"grace below nothing", "[runtime]\nshutdown_grace = \"-1s\"", "runtime.shutdown_grace"},
		{"wrong type", "log_level = \"high\"", ":1:"},
		{"address without a port", "[metrics]\naddress = \"127.0.0.1\"", "metrics.address: \"127.0.0.1\" is no host:port"},
		{"port beyond all", "[metrics]\naddress = \":70000\"", "metrics.address: \":70000\" has the port \"70000\""},
		{"URL for a collector", "[tracing]\nendpoint = \"http://localhost:4317\"", "tracing.endpoint"},
		{"collector's port 0", "[tracing]\nendpoint = \"localhost:0\"", "tracing.endpoint"},
		{"more than all", "[tracing]\nsampling_rate_per_million = 1000001", "tracing.sampling_rate_per_million: 1000001"},
		{"stream address is a name", "[streaming]\naddress = \"localhost\"", "streaming.address"},
		{"stream port", "[streaming]\nport = 70000", "streaming.port: 70000"},
		{"certificate without key", "[streaming]\ntls_cert_file = \"/etc/x.pem\"", "streaming.tls_key_file"},
		{"relative key", "[streaming]\ntls_cert_file = \"/etc/x.pem\"\ntls_key_file = \"x.key\"", "streaming.tls_key_file"},
		{"no idle time", "[streaming]\nidle_timeout = \"0s\"", "streaming.idle_timeout"},
		{"unknown label mode", "[selinux]\nmode = \"enforcing\"", "selinux.mode"},
		{"too many categories", "[selinux]\ncategory_range = 1025", "selinux.category_range: 1025"},
		{"unknown seccomp default", "[runtime]\nseccomp_when_unset = \"none\"", "seccomp_when_unset"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := Load(write(t, filepath.Join(t.TempDir(), "config.toml"), test.text))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: got %v, want it to name %s", test.text, err, test.want)
			}
		})
	}
}

func TestMissingFileIsAnErrorOnlyWhenAskedFor(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "absent.toml")); err == nil {
		t.Error("got no error for a file that was named and is missing")
	}
}

func FuzzLoad(f *testing.F) {
	f.Add("log_level = 3\n[runtime.rlimits.nofile]\nsoft = 1\nhard = 2\n")
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(t.TempDir(), "config.toml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Skip()
		}
		if cfg, err := Load(path); err == nil && cfg.check() != nil {
			t.Errorf("Load accepted what check refuses: %q", text)
		}
	})
}
