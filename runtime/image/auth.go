package image

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/auth"
)

// Auth is what a caller knows to prove itself at a registry. One of user and
// password, Auth ("user:password" in base64), IdentityToken (exchanged for
// access tokens) and RegistryToken (sent as it is) is used, in this order.
// With a ServerAddress it is only for that server.
type Auth struct {
	Username      string
	Password      string
	Auth          string
	IdentityToken string
	RegistryToken string
	ServerAddress string
}

// String keeps credentials out of logs.
func (Auth) String() string { return "Auth{...}" }

// GoString keeps credentials out of logs that print with %#v.
func (Auth) GoString() string { return "Auth{...}" }

// credentials is Auth, checked and reduced to what is sent.
type credentials struct {
	username, secret string // a secret without a user is an identity token
	token            string
	server           string // host and port, "" for the reference's registry
}

func parseAuth(a *Auth) (credentials, error) {
	if a == nil {
		return credentials{}, nil
	}
	var c credentials
	if a.ServerAddress != "" {
		c.server = serverHost(a.ServerAddress)
		if c.server == "" {
			return c, fmt.Errorf("%w: server address %q", ErrInvalidAuth, a.ServerAddress)
		}
	}
	switch {
	case a.Username != "":
		c.username, c.secret = a.Username, a.Password
	case a.Auth != "":
		// The error must not carry the text: it is the password.
		decoded, err := base64.StdEncoding.DecodeString(a.Auth)
		if err != nil {
			return c, fmt.Errorf("%w: auth is not base64", ErrInvalidAuth)
		}
		user, password, found := strings.Cut(string(decoded), ":")
		if !found {
			return c, fmt.Errorf("%w: auth is not user:password", ErrInvalidAuth)
		}
		// Docker's own files pad the password with NULs.
		c.username, c.secret = user, strings.Trim(password, "\x00")
	case a.IdentityToken != "":
		c.secret = a.IdentityToken
	case a.RegistryToken != "":
		c.token = a.RegistryToken
	}
	return c, nil
}

func (c credentials) empty() bool { return c.username == "" && c.secret == "" && c.token == "" }

// serverHost takes the host out of a server address, which is a host or a URL.
func serverHost(address string) string {
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return canonicalHost(u.Host)
}

// canonicalHost folds the names under which Docker Hub is known into one.
func canonicalHost(host string) string {
	switch host = strings.ToLower(host); host {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return host
}

// credentialHosts says which of a registry's endpoints may be given the
// credentials (B45). Endpoints are the administrator's choice (hosts.toml), so
// all of them stand for the registry; a redirect is the registry's choice and
// stands for nothing. A server address that is neither the registry nor an
// endpoint means that the credentials are for someone else.
func (c credentials) hosts(domain string, endpoints []docker.RegistryHost) map[string]bool {
	allowed := map[string]bool{}
	if c.empty() {
		return allowed
	}
	for _, endpoint := range endpoints {
		if c.server == "" || c.server == canonicalHost(domain) || c.server == canonicalHost(endpoint.Host) {
			allowed[endpoint.Host] = true
		}
	}
	return allowed
}

// authorizer adds to the library's the registry token, which it ignores, and
// refuses to answer an https registry's challenge at a plain http token server.
type authorizer struct {
	docker.Authorizer
	token   string
	allowed map[string]bool
}

func (a *authorizer) Authorize(ctx context.Context, req *http.Request) error {
	if a.token != "" && a.allowed[req.URL.Host] {
		req.Header.Set("Authorization", "Bearer "+a.token)
		return nil
	}
	return a.Authorizer.Authorize(ctx, req)
}

func (a *authorizer) AddResponses(ctx context.Context, responses []*http.Response) error {
	last := responses[len(responses)-1]
	if a.allowed[last.Request.URL.Host] {
		if a.token != "" {
			return fmt.Errorf("%w: registry token", docker.ErrInvalidAuthorization)
		}
		for _, challenge := range auth.ParseAuthHeader(last.Header) {
			realm, err := url.Parse(challenge.Parameters["realm"])
			if challenge.Scheme == auth.BearerAuth && err == nil && realm.Scheme == "http" && last.Request.URL.Scheme == "https" {
				return fmt.Errorf("%w: token server %s is not https, its registry is", docker.ErrInvalidAuthorization, realm.Host)
			}
		}
	}
	return a.Authorizer.AddResponses(ctx, responses)
}
