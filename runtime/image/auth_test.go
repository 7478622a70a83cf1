package image

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/podwright/podwright/test/e2e/registry"
)

// B45.
func TestCredentials(t *testing.T) {
	basic := &registry.Auth{Username: "user", Password: "pass:word"}
	bearer := &registry.Auth{Username: "user", Password: "pass:word", Bearer: true, Token: "tok3n", IdentityToken: "ident1ty"}
	encoded := base64.StdEncoding.EncodeToString([]byte("user:pass:word"))
	for name, c := range map[string]struct {
		registry *registry.Auth
		auth     *Auth
		want     error
	}{
		"basic":                    {basic, &Auth{Username: "user", Password: "pass:word"}, nil},
		"basic encoded":            {basic, &Auth{Auth: encoded}, nil},
		"bearer":                   {bearer, &Auth{Username: "user", Password: "pass:word"}, nil},
		"bearer encoded":           {bearer, &Auth{Auth: encoded}, nil},
		"identity token":           {bearer, &Auth{IdentityToken: "ident1ty"}, nil},
		"registry token":           {bearer, &Auth{RegistryToken: "tok3n"}, nil},
		"for this server":          {basic, &Auth{Username: "user", Password: "pass:word", ServerAddress: "HOST"}, nil},
		"for this server's URL":    {basic, &Auth{Username: "user", Password: "pass:word", ServerAddress: "http://HOST/v1/"}, nil},
		"none":                     {basic, nil, ErrUnauthorized},
		"none bearer":              {bearer, nil, ErrUnauthorized},
		"wrong":                    {basic, &Auth{Username: "user", Password: "x"}, ErrUnauthorized},
		"wrong bearer":             {bearer, &Auth{Username: "user", Password: "x"}, ErrUnauthorized},
		"wrong identity token":     {bearer, &Auth{IdentityToken: "x"}, ErrUnauthorized},
		"wrong registry token":     {bearer, &Auth{RegistryToken: "x"}, ErrUnauthorized},
		"for another server":       {basic, &Auth{Username: "user", Password: "pass:word", ServerAddress: "other.example.com"}, ErrUnauthorized},
		"token for another server": {bearer, &Auth{RegistryToken: "tok3n", ServerAddress: "other.example.com"}, ErrUnauthorized},
		"not base64":               {basic, &Auth{Auth: "user:pass:word"}, ErrInvalidAuth},
		"no colon":                 {basic, &Auth{Auth: base64.StdEncoding.EncodeToString([]byte("user"))}, ErrInvalidAuth},
	} {
		t.Run(name, func(t *testing.T) {
			r := registry.New(registry.Config{Auth: c.registry})
			host := serve(t, r)
			push(t, r, "private/a:1", simple(t, "one"))
			s := openStore(t, Config{Root: t.TempDir()})
			if c.auth != nil {
				c.auth.ServerAddress = strings.ReplaceAll(c.auth.ServerAddress, "HOST", host)
			}
			_, err := s.Pull(t.Context(), host+"/private/a:1", PullOptions{Auth: c.auth})
			if c.want == nil && err != nil || c.want != nil && !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			for _, secret := range []string{"pass:word", encoded, "tok3n", "ident1ty"} {
				if err != nil && strings.Contains(err.Error(), secret) {
					t.Errorf("the error tells the secret: %v", err)
				}
			}
			if c.auth != nil && strings.Contains(fmt.Sprintf("%v %+v %#v", c.auth, *c.auth, *c.auth), "pass") {
				t.Error("credentials are printed")
			}
			if strings.Contains(name, "another server") {
				for _, req := range r.Requests() {
					if header := req.Header.Get("Authorization"); header != "" {
						t.Errorf("%s %s carried %q", req.Method, req.Path, header)
					}
				}
			}
		})
	}
}

// B45, CVE-2020-15157: what the user gave for one host stays with it.
func TestCredentialsAreNotForwarded(t *testing.T) {
	target := registry.New(registry.Config{})
	targetHost := serve(t, target)
	img := simple(t, "one")
	push(t, target, "private/a:1", img)
	// A target that asks for credentials of its own must not get these.
	greedy := registry.New(registry.Config{Auth: &registry.Auth{Username: "user", Password: "password", Bearer: true, Token: "other"}})
	greedyHost := serve(t, greedy)
	push(t, greedy, "private/a:1", img)
	thief := &thiefServer{}
	thiefHost := serveHandler(t, thief)

	for name, auth := range map[string]*registry.Auth{
		"basic":  {Username: "user", Password: "password"},
		"bearer": {Username: "user", Password: "password", Bearer: true, Token: "tok3n"},
	} {
		r := registry.New(registry.Config{Auth: auth})
		host := serve(t, r)
		certs := t.TempDir()
		writeHosts(t, certs, host, fmt.Sprintf("[host.%q]\n[host.%q.header]\nx-secret = \"header-secret\"\n", "http://"+host, "http://"+host))
		push(t, r, "private/a:1", img)
		creds := &Auth{Username: "user", Password: "password"}

		s := openStore(t, Config{Root: t.TempDir(), CertsDirs: []string{certs}})
		r.Break(registry.Redirect(registry.Blobs, "http://"+targetHost, http.StatusTemporaryRedirect))
		if _, err := s.Pull(t.Context(), host+"/private/a:1", PullOptions{Auth: creds}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		seen := target.Requests()
		if len(seen) == 0 {
			t.Errorf("%s: nothing was redirected", name)
		}
		for _, req := range seen {
			if req.Header.Get("Authorization") != "" || req.Header.Get("X-Secret") != "" {
				t.Errorf("%s: redirected %s carries %v", name, req.Path, req.Header)
			}
		}
		secretSent := false
		for _, req := range r.Requests() {
			secretSent = secretSent || req.Header.Get("X-Secret") == "header-secret"
		}
		if !secretSent {
			t.Errorf("%s: hosts.toml's header doesn't reach its own host", name)
		}

		s = openStore(t, Config{Root: t.TempDir(), CertsDirs: []string{certs}})
		r.Break(registry.Redirect(registry.Everything, "http://"+greedyHost, http.StatusTemporaryRedirect))
		if _, err := s.Pull(t.Context(), host+"/private/a:1", PullOptions{Auth: creds}); !errors.Is(err, ErrUnauthorized) {
			t.Errorf("%s: redirect to a host that asks again: got %v, want ErrUnauthorized", name, err)
		}
		for _, req := range greedy.Requests() {
			if strings.Contains(req.Header.Get("Authorization"), "Basic") || req.Method == http.MethodPost {
				t.Errorf("%s: %s %s carries %v", name, req.Method, req.Path, req.Header)
			}
		}
	}

	// The token server sends the password on.
	redirecting := serveHandler(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		http.Redirect(w, req, "http://"+thiefHost+"/", http.StatusTemporaryRedirect)
	}))
	r := registry.New(registry.Config{Auth: &registry.Auth{Bearer: true, Realm: "http://" + redirecting + "/token", Token: "x"}})
	host := serve(t, r)
	push(t, r, "a:1", img)
	s := openStore(t, Config{Root: t.TempDir()})
	for _, creds := range []*Auth{{Username: "user", Password: "password"}, {IdentityToken: "password"}} {
		if _, err := s.Pull(t.Context(), host+"/a:1", PullOptions{Auth: creds}); err == nil {
			t.Error("pulled")
		}
	}
	if len(thief.stolen) > 0 {
		t.Errorf("stolen: %v", thief.stolen)
	}
}

type thiefServer struct{ stolen []string }

func (s *thiefServer) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	req.ParseForm()
	s.stolen = append(s.stolen, fmt.Sprint(req.Method, req.Header, req.Form))
}

func serveHandler(t *testing.T, handler http.Handler) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler}
	go server.Serve(listener) // ended by the cleanup
	t.Cleanup(func() { server.Close() })
	return listener.Addr().String()
}

func writeHosts(t *testing.T, certs, host, text string) {
	t.Helper()
	dir := filepath.Join(certs, host)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Public names served from elsewhere, as clusters with a mirror have it.
func TestShortNamesGoWhereHostsTomlSays(t *testing.T) {
	r := registry.New(registry.Config{})
	host := serve(t, r)
	push(t, r, "library/busybox:latest", simple(t, "busybox"))
	push(t, r, "e2e/tool:1", simple(t, "tool"))
	first, second := t.TempDir(), t.TempDir()
	writeHosts(t, first, "docker.io", fmt.Sprintf("server = %q\n", "http://"+host))
	writeHosts(t, second, "docker.io", "server = \"http://127.0.0.1:1\"\n")
	// The mirror is down, the server behind it isn't.
	writeHosts(t, second, "registry.test.example", fmt.Sprintf("server = %q\n[host.\"http://127.0.0.1:1\"]\ncapabilities = [\"pull\", \"resolve\"]\n", "http://"+host))
	s := openStore(t, Config{Root: t.TempDir(), CertsDirs: []string{first, second}})
	img := pull(t, s, "busybox")
	if img.RepoTags[0] != "docker.io/library/busybox:latest" {
		t.Errorf("got %v", img.RepoTags)
	}
	pull(t, s, "registry.test.example/e2e/tool:1")

	for name, text := range map[string]string{
		"no TOML":            "server = \n",
		"unknown capability": "[host.\"http://" + host + "\"]\ncapabilities = [\"fly\"]\n",
	} {
		writeHosts(t, first, "broken.example", text)
		_, err := s.Pull(t.Context(), "broken.example/a:1", PullOptions{})
		if err == nil || !strings.Contains(err.Error(), filepath.Join(first, "broken.example", "hosts.toml")) {
			t.Errorf("%s: got %v, want an error that names the file", name, err)
		}
	}
}

func TestPullOverHTTPS(t *testing.T) {
	caFile := filepath.Join(t.TempDir(), "ca.pem")
	config := certificate(t, caFile)
	auth := &registry.Auth{Username: "user", Password: "password", Bearer: true, Token: "tok3n"}
	r := registry.New(registry.Config{TLS: config, Auth: auth})
	host := serve(t, r)
	push(t, r, "a:1", simple(t, "one"))
	certs := t.TempDir()
	writeHosts(t, certs, "secure.example", fmt.Sprintf("server = %q\nca = %q\n", "https://"+host, caFile))
	writeHosts(t, certs, "unknown.example", fmt.Sprintf("server = %q\n", "https://"+host))
	s := openStore(t, Config{Root: t.TempDir(), CertsDirs: []string{certs}})
	creds := PullOptions{Auth: &Auth{Username: "user", Password: "password"}}
	if _, err := s.Pull(t.Context(), "unknown.example/a:1", creds); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("certificate of an unknown authority: got %v", err)
	}
	if _, err := s.Pull(t.Context(), "secure.example/a:1", creds); err != nil {
		t.Error(err)
	}
	// A token server without TLS would get the password in the clear.
	thief := &thiefServer{}
	auth.Realm = "http://" + serveHandler(t, thief) + "/token"
	if _, err := s.Pull(t.Context(), "secure.example/a:1", creds); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("got %v, want ErrUnauthorized", err)
	}
	if len(thief.stolen) > 0 {
		t.Errorf("stolen: %v", thief.stolen)
	}
}

// certificate makes a self-signed one for loopback.
func certificate(t *testing.T, caFile string) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}
