package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
)

// network is one configuration as loaded, complete in itself.
type network struct {
	name string
	file string
	list *libcni.NetworkConfigList // never changed; list.Bytes holds every plugin
}

// maxConfBytes bounds every file that is read here. Real ones have a few KB.
const maxConfBytes = 1 << 20

// pluginName is stricter than a file name: it becomes a path below a plugin
// directory (CVE-2021-20206 came from one with a slash).
var pluginName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// load reads the configuration directory: the first MaxConfNum files by name.
//
// A file that can't be used is an error even where a later one could: a node that
// silently puts its pods on another network than the one configured first is worse
// than one that says what is wrong with it.
func (n *Network) load() ([]*network, error) {
	dir := n.cfg.ConfDir
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: read %s: %w", ErrNotReady, dir, err)
	}
	sort.Slice(entries, func(i, j int) bool { return entries[i].Name() < entries[j].Name() })
	var networks []*network
	for _, entry := range entries {
		if entry.IsDir() || !isConf(entry.Name()) {
			continue
		}
		file := filepath.Join(dir, entry.Name())
		loaded, err := loadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue // removed since the directory was read, or a link to nothing yet
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrNotReady, file, err)
		}
		for _, other := range networks {
			if other.name == loaded.name {
				return nil, fmt.Errorf("%w: %s: network %q is in %s too", ErrNotReady, file, loaded.name, other.file)
			}
		}
		if networks = append(networks, loaded); len(networks) == n.cfg.MaxConfNum {
			break
		}
	}
	if len(networks) == 0 {
		return nil, fmt.Errorf("%w: no CNI configuration (*.conflist, *.conf, *.json) in %s", ErrNotReady, dir)
	}
	return networks, nil
}

func isConf(name string) bool {
	switch filepath.Ext(name) {
	case ".conflist", ".conf", ".json":
		return true
	}
	return false
}

func loadFile(file string) (*network, error) {
	data, err := readBounded(file)
	if err != nil {
		return nil, err
	}
	list, err := parseConf(data)
	if err != nil {
		return nil, err
	}
	if !list.LoadOnlyInlinedPlugins {
		// Plugins may put themselves into <directory>/<network>/*.conf.
		extra, err := libcni.NetworkPluginConfsFromFiles(filepath.Dir(file), list.Name)
		if err != nil {
			return nil, bounded(err)
		}
		if len(extra) > 0 {
			list.Plugins = append(list.Plugins, extra...)
			if list, err = inline(list); err != nil {
				return nil, err
			}
		}
	}
	if err := checkList(list); err != nil {
		return nil, err
	}
	return &network{name: list.Name, file: file, list: list}, nil
}

// parseConf reads a configuration list, or a single plugin's configuration (the
// form before CNI 0.3.0, which still is in use) as a list of one.
func parseConf(data []byte) (*libcni.NetworkConfigList, error) {
	var form struct {
		Type    *json.RawMessage `json:"type"`
		Plugins *json.RawMessage `json:"plugins"`
	}
	if err := json.Unmarshal(data, &form); err != nil {
		return nil, fmt.Errorf("not a CNI configuration: %w", bounded(err))
	}
	var list *libcni.NetworkConfigList
	var err error
	if form.Type != nil && form.Plugins == nil {
		var single *libcni.PluginConfig
		if single, err = libcni.NetworkPluginConfFromBytes(data); err == nil {
			list, err = listOfOne(single)
		}
	} else {
		list, err = libcni.NetworkConfFromBytes(data)
	}
	if err != nil {
		return nil, bounded(err)
	}
	// Before the name becomes part of a path.
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return nil, fmt.Errorf("network name %.140q: %s", list.Name, err.Msg)
	}
	return list, nil
}

func listOfOne(single *libcni.PluginConfig) (*libcni.NetworkConfigList, error) {
	data, err := json.Marshal(map[string]any{
		"name":                   single.Network.Name,
		"cniVersion":             single.Network.CNIVersion,
		"loadOnlyInlinedPlugins": true,
		"plugins":                []json.RawMessage{single.Bytes},
	})
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(data)
}

// inline writes plugins that came from other files into the list's own bytes, so
// that a stored copy of them is all that DEL needs.
func inline(list *libcni.NetworkConfigList) (*libcni.NetworkConfigList, error) {
	whole := map[string]json.RawMessage{}
	if err := json.Unmarshal(list.Bytes, &whole); err != nil {
		return nil, bounded(err)
	}
	plugins := make([]json.RawMessage, len(list.Plugins))
	for i, plugin := range list.Plugins {
		plugins[i] = plugin.Bytes
	}
	var err error
	if whole["plugins"], err = json.Marshal(plugins); err != nil {
		return nil, bounded(err)
	}
	whole["loadOnlyInlinedPlugins"] = json.RawMessage("true")
	data, err := json.Marshal(whole)
	if err != nil {
		return nil, bounded(err)
	}
	list, err = libcni.NetworkConfFromBytes(data)
	return list, bounded(err)
}

// checkList holds for configurations read from disk and for those of a record.
func checkList(list *libcni.NetworkConfigList) error {
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return fmt.Errorf("network name %.140q: %s", list.Name, err.Msg)
	}
	if len(list.Plugins) == 0 {
		return fmt.Errorf("network %q: no plugins", list.Name)
	}
	if newer, err := version.GreaterThan(list.CNIVersion, version.Current()); err != nil {
		return fmt.Errorf("network %q: cniVersion: %w", list.Name, bounded(err))
	} else if newer {
		return fmt.Errorf("network %q: cniVersion %s: this runtime speaks up to %s", list.Name, list.CNIVersion, version.Current())
	}
	for i, plugin := range list.Plugins {
		if !pluginName.MatchString(plugin.Network.Type) {
			return fmt.Errorf("network %q: plugin %d: type %.140q: not the bare name of an executable", list.Name, i, plugin.Network.Type)
		}
		if ipam := plugin.Network.IPAM.Type; ipam != "" && !pluginName.MatchString(ipam) {
			return fmt.Errorf("network %q: plugin %s: ipam type %.140q: not the bare name of an executable", list.Name, plugin.Network.Type, ipam)
		}
	}
	return nil
}

// plugins are the executables the runtime starts for a network, each once. The
// IPAM ones are the plugins' own affair: some are no executables at all.
func (n *network) plugins() []string {
	var names []string
	for _, plugin := range n.list.Plugins {
		if !slices.Contains(names, plugin.Network.Type) {
			names = append(names, plugin.Network.Type)
		}
	}
	return names
}

// advertises says whether any plugin takes a capability's arguments.
func (n *network) advertises(capability string) bool {
	for _, plugin := range n.list.Plugins {
		if plugin.Network.Capabilities[capability] {
			return true
		}
	}
	return false
}

func sameNetworks(a, b []*network) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].file != b[i].file || !bytes.Equal(a[i].list.Bytes, b[i].list.Bytes) {
			return false
		}
	}
	return true
}

// readBounded reads a small regular file; O_NONBLOCK, as a FIFO left in the
// directory must not hang the reader before it is seen to be none.
func readBounded(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxConfBytes+1))
	if err == nil && len(data) > maxConfBytes {
		err = fmt.Errorf("larger than %d bytes", maxConfBytes)
	}
	return data, err
}
