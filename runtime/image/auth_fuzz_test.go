package image

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// Whatever a client sends as credentials: they never show in an error, and with a server's address they are for nobody else.
func FuzzParseAuth(f *testing.F) {
	f.Add("user", "secret", "", "", "", "registry.example")
	f.Add("", "", "dXNlcjpzZWNyZXQ=", "", "", "https://index.docker.io/v1/")
	f.Add("", "", "not base64: secret", "", "", "")
	f.Add("", "", "", "secret", "", "://")
	f.Add("", "", "", "", "secret", "[::1]:5000")
	f.Fuzz(func(t *testing.T, user, password, auth, identity, token, server string) {
		c, err := parseAuth(&Auth{Username: user, Password: password, Auth: auth, IdentityToken: identity, RegistryToken: token, ServerAddress: server})
		if err != nil {
			if !errors.Is(err, ErrInvalidAuth) {
				t.Fatalf("%v is not ErrInvalidAuth", err)
			}
			for _, secret := range []string{password, auth, identity, token} {
				if len(secret) > 20 && strings.Contains(err.Error(), secret) && !strings.Contains(server, secret) {
					t.Fatalf("%v has a secret in it", err)
				}
			}
			return
		}
		const ours, stranger = "registry.test", "stranger.test"
		allowed := c.hosts(ours, []docker.RegistryHost{{Host: ours}})
		if allowed[stranger] || c.empty() && len(allowed) > 0 || c.server != "" && c.server != ours && allowed[ours] {
			t.Fatalf("credentials of server %q are for %v", c.server, allowed)
		}
	})
}
