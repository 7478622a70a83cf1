package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	dockerconfig "github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

const maxHostsFileBytes = 1 << 20

// connection is one pull's way to a registry: a resolver of its own, because
// it carries the pull's credentials, with hosts.toml read afresh, so that a
// change counts from the next pull on.
type connection struct {
	resolver remotes.Resolver
	meters   []*meter
}

// connect prepares to talk to ref's registry; it sends nothing yet.
func connect(ctx context.Context, ref Reference, certsDirs []string, creds credentials, m *monitor) *connection {
	c := &connection{}
	allowed := map[string]bool{} // filled once the endpoints are known
	hosts := dockerconfig.ConfigureHosts(ctx, dockerconfig.HostOptions{
		HostDir: func(host string) (string, error) { return findHostDir(certsDirs, host) },
		Credentials: func(host string) (string, string, error) {
			if !allowed[host] {
				return "", "", nil
			}
			return creds.username, creds.secret, nil
		},
		UpdateClient: func(client *http.Client) error {
			if _, done := client.Transport.(*meter); !done {
				t := &meter{next: client.Transport, monitor: m}
				client.Transport = t
				c.meters = append(c.meters, t)
			}
			client.CheckRedirect = checkTokenRedirect
			return nil
		},
	})
	endpoints := func(domain string) ([]docker.RegistryHost, error) {
		found, err := hosts(domain)
		if err != nil {
			return nil, fmt.Errorf("registry %s: %w", domain, err)
		}
		for host := range creds.hosts(domain, found) {
			allowed[host] = true
		}
		for i := range found {
			guard := &authorizer{Authorizer: found[i].Authorizer, token: creds.token, allowed: allowed}
			client := *found[i].Client
			client.CheckRedirect = func(req *http.Request, via []*http.Request) error {
				return checkRedirect(ctx, guard, req, via)
			}
			found[i].Authorizer, found[i].Client = guard, &client
		}
		return found, nil
	}
	c.resolver = docker.NewResolver(docker.ResolverOptions{
		Hosts:   cacheHosts(endpoints),
		Headers: http.Header{"User-Agent": {"podwright"}},
	})
	return c
}

// cacheHosts asks once per registry: resolving and fetching share endpoints,
// connections and tokens.
func cacheHosts(next docker.RegistryHosts) docker.RegistryHosts {
	known := map[string][]docker.RegistryHost{}
	return func(domain string) ([]docker.RegistryHost, error) {
		if hosts, ok := known[domain]; ok {
			return hosts, nil
		}
		hosts, err := next(domain)
		if err == nil {
			known[domain] = hosts
		}
		return hosts, err
	}
}

// close lets go of idle connections; a pull's are of no use to the next one.
func (c *connection) close() {
	for _, t := range c.meters {
		t.CloseIdleConnections()
	}
}

// checkRedirect follows a registry's redirect without what was meant for the
// registry. net/http compares host names only, without ports, and passes
// sensitive headers on to subdomains; a header set in hosts.toml it passes to
// anyone.
func checkRedirect(ctx context.Context, guard docker.Authorizer, req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	if !sameOrigin(req.URL, via[0].URL) {
		for name := range req.Header {
			switch name {
			case "Accept", "Accept-Encoding", "Range", "User-Agent":
			default:
				// Not Del: keys from hosts.toml are kept as spelt there.
				delete(req.Header, name)
			}
		}
	}
	return guard.Authorize(ctx, req)
}

// checkTokenRedirect keeps credentials on the token server that the challenge
// named: a 307 would send a POST's body, the password, anywhere.
func checkTokenRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	secret := via[0].Method == http.MethodPost || via[0].Header.Get("Authorization") != ""
	if secret && !sameOrigin(req.URL, via[0].URL) {
		return fmt.Errorf("token server %s redirects credentials to %s", via[0].URL.Host, req.URL.Host)
	}
	return nil
}

func sameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && strings.EqualFold(a.Host, b.Host)
}

// findHostDir returns the directory that configures a registry; the first of
// certsDirs that has one wins.
func findHostDir(certsDirs []string, host string) (string, error) {
	for _, dir := range certsDirs {
		found, err := dockerconfig.HostDirFromRoot(dir)(host)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return "", err
		}
		return found, checkHostsFile(filepath.Join(found, "hosts.toml"))
	}
	return "", errdefs.ErrNotFound
}

// checkHostsFile refuses a file that the library would skip with a log line: a
// mirror or a CA that silently doesn't count is worse than a failed pull.
func checkHostsFile(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Size() > maxHostsFileBytes {
		return fmt.Errorf("%s: %d bytes, at most %d", path, info.Size(), maxHostsFileBytes)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	type host struct {
		Capabilities []string `toml:"capabilities"`
		Server       string   `toml:"server"`
	}
	var file struct {
		host
		Hosts map[string]host `toml:"host"`
	}
	if err := toml.Unmarshal(data, &file); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if file.Hosts == nil {
		file.Hosts = map[string]host{}
	}
	file.Hosts[file.Server] = file.host
	for name, h := range file.Hosts {
		if _, err := url.Parse(name); err != nil {
			return fmt.Errorf("%s: host: %w", path, err)
		}
		for _, capability := range h.Capabilities {
			switch strings.ToLower(capability) {
			case "pull", "resolve", "push", "referrers":
			default:
				return fmt.Errorf("%s: host %q: unknown capability %q", path, name, capability)
			}
		}
	}
	return nil
}
