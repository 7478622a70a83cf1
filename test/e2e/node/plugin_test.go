package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// plugin is a CNI plugin that does as a test says and writes down how it was called.
type plugin struct {
	t   *testing.T
	dir string
}

// pluginScript: $dir/<COMMAND> says what to do instead of answering properly.
const pluginScript = `#!/bin/sh
dir=%s
cat > "$dir/conf.$CNI_COMMAND"
echo "$CNI_COMMAND id=$CNI_CONTAINERID netns=${CNI_NETNS:-none} if=$CNI_IFNAME args=$CNI_ARGS" >> "$dir/calls"
case $(cat "$dir/$CNI_COMMAND" 2>/dev/null) in
wait) while [ -e "$dir/$CNI_COMMAND" ]; do sleep 0.02; done; exit 1 ;;
fail) echo '{ "cniVersion": "1.0.0", "code": 107, "msg": "no luck today", "details": "as told" }'; exit 1 ;;
pause) sleep 1 ;;
hang) exec sleep 1000 ;;
rubbish) head -c 200000 /dev/zero | tr '\0' '{'; exit 0 ;;
silent) exit 0 ;;
die) kill -9 $$ ;;
esac
case $CNI_COMMAND in
ADD) echo '{ "cniVersion": "1.0.0", "interfaces": [{ "name": "eth0", "sandbox": "'"$CNI_NETNS"'" }],
  "ips": [{ "address": "10.9.0.7/24", "interface": 0 }, { "address": "fd09::7/64", "interface": 0 }, { "address": "10.9.0.8/24", "interface": 0 }] }' ;;
VERSION) echo '{ "cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"] }' ;;
esac
`

const pluginConf = `{ "cniVersion": "1.0.0", "name": "fake", "plugins": [
  { "type": "fake", "capabilities": { "portMappings": true, "bandwidth": true, "dns": true, "ipRanges": true } } ] }`

// pluginNode is a node whose only network is the plugin's.
func pluginNode(t *testing.T) (*node, *plugin) {
	t.Helper()
	p := &plugin{t: t, dir: t.TempDir()}
	n := ownNode(t, options{
		conf: map[string]string{"10-fake.conflist": pluginConf}, plugins: map[string]string{"fake": fmt.Sprintf(pluginScript, p.dir)},
	})
	if err := os.Remove(filepath.Join(p.dir, "calls")); err != nil { // of the pod that every node has first
		t.Fatal(err)
	}
	return n, p
}

// behave changes what the plugin does for a command; "" is the proper answer.
func (p *plugin) behave(command, how string) {
	p.t.Helper()
	path := filepath.Join(p.dir, command)
	err := os.Remove(path)
	if how != "" {
		err = os.WriteFile(path, []byte(how), 0o644)
	}
	if err != nil && !os.IsNotExist(err) {
		p.t.Fatal(err)
	}
}

// calls gives the calls of one command so far.
func (p *plugin) calls(command string) []string {
	p.t.Helper()
	raw, err := os.ReadFile(filepath.Join(p.dir, "calls"))
	if err != nil && !os.IsNotExist(err) {
		p.t.Fatal(err)
	}
	var list []string
	for line := range strings.Lines(string(raw)) {
		if strings.HasPrefix(line, command+" ") {
			list = append(list, strings.TrimSpace(line))
		}
	}
	return list
}

func (p *plugin) waitForCall(command string) {
	p.t.Helper()
	eventually(p.t, 20*time.Second, "CNI "+command, func() bool { return len(p.calls(command)) > 0 })
}

// conf is what the plugin got on stdin the last time.
func (p *plugin) conf(command string) string {
	p.t.Helper()
	raw, err := os.ReadFile(filepath.Join(p.dir, "conf."+command))
	if err != nil {
		p.t.Fatal(err)
	}
	return string(raw)
}
