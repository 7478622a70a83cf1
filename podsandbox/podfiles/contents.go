package podfiles

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
)

const (
	hostFileBytes = 256 << 10 // of a host's file that is copied
	hostnameBytes = 64        // HOST_NAME_MAX, uname(2)

	// ownHosts is for sandboxes with a network of their own. The kubelet brings a better one, with the pod's addresses.
	ownHosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
)

// contents gives each file's text, all values checked.
func (f *Files) contents(spec Spec) (map[string]string, error) {
	if !oneWord(spec.Hostname) || len(spec.Hostname) > hostnameBytes {
		return nil, fmt.Errorf("hostname %q: %w", spec.Hostname, ErrInvalid)
	}
	hosts := ownHosts
	var err error
	if spec.HostNetwork {
		if hosts, err = copyHost(f.config.HostHosts); err != nil {
			return nil, err
		}
	}
	resolv, err := f.resolvConf(spec.DNS)
	if err != nil {
		return nil, err
	}
	return map[string]string{"hosts": hosts, "hostname": spec.Hostname + "\n", "resolv.conf": resolv}, nil
}

func (f *Files) resolvConf(dns *DNS) (string, error) {
	if dns == nil || len(dns.Servers)+len(dns.Searches)+len(dns.Options) == 0 {
		return copyHost(f.config.HostResolvConf)
	}
	for _, list := range [][]string{dns.Servers, dns.Searches, dns.Options} {
		for _, s := range list {
			if !oneWord(s) {
				return "", fmt.Errorf("DNS value %q: %w", s, ErrInvalid)
			}
		}
	}
	var b strings.Builder
	if len(dns.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(dns.Searches, " "))
	}
	for _, server := range dns.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	if len(dns.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(dns.Options, " "))
	}
	return b.String(), nil
}

// oneWord keeps a value from becoming two, or a line of its own (the class of CVE-2022-4318), also for readers to whom
// Unicode's spaces and line ends are such.
func oneWord(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) })
}

// copyHost reads a file of the host; a host without it has nothing to give.
func copyHost(path string) (string, error) {
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, hostFileBytes+1))
	if err == nil && len(b) > hostFileBytes {
		err = fmt.Errorf("%s: more than %d bytes: %w", path, hostFileBytes, ErrInvalid)
	}
	return string(b), err
}
