// Package registry makes OCI images and serves them from a registry on
// loopback, for tests and the demo.
//
// It owns nothing outside the process; the images live in memory or in a
// directory that the caller gives. It may not be imported by the product.
// A registry can ask for credentials and misbehave on purpose.
// Sources: OCI distribution specification v1.1; the token protocol of
// distribution.github.io/distribution/spec/auth.
package registry

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Config is what a registry is made from.
type Config struct {
	// BlobDir keeps layers on disk; "" keeps them in memory.
	BlobDir string
	// Auth asks for credentials; nil lets anyone in.
	Auth *Auth
	// TLS makes it an https registry.
	TLS *tls.Config
}

// Registry serves images. Its handlers may be used by many clients at once.
type Registry struct {
	storage http.Handler
	auth    *Auth
	tls     *tls.Config

	// mu guards faults and requests.
	mu       sync.Mutex
	faults   []Fault
	requests []Request
}

// Request is one request as it came, for tests of what a client sends.
type Request struct {
	Method, Host, Path, Query string
	Header                    http.Header
}

// New makes a registry without images.
func New(config Config) *Registry {
	options := []registry.Option{registry.Logger(log.New(io.Discard, "", 0))}
	if config.BlobDir != "" {
		options = append(options, registry.WithBlobHandler(registry.NewDiskBlobHandler(config.BlobDir)))
	}
	return &Registry{storage: registry.New(options...), auth: config.Auth, tls: config.TLS}
}

// Push adds an image under "repository:tag" and returns the digest of its
// manifest. It goes around faults and authorization.
func (r *Registry) Push(ref string, img v1.Image) (v1.Hash, error) {
	tag, err := localName(ref)
	if err != nil {
		return v1.Hash{}, err
	}
	if err := remote.Write(tag, img, remote.WithTransport(direct{r.storage})); err != nil {
		return v1.Hash{}, fmt.Errorf("push %s: %w", ref, err)
	}
	return img.Digest()
}

// PushIndex adds an index and the images in it.
func (r *Registry) PushIndex(ref string, index v1.ImageIndex) (v1.Hash, error) {
	tag, err := localName(ref)
	if err != nil {
		return v1.Hash{}, err
	}
	if err := remote.WriteIndex(tag, index, remote.WithTransport(direct{r.storage})); err != nil {
		return v1.Hash{}, fmt.Errorf("push %s: %w", ref, err)
	}
	return index.Digest()
}

// PushRaw puts bytes in the place of a manifest, whatever they are.
func (r *Registry) PushRaw(repository, tag, mediaType string, data []byte) error {
	req, err := http.NewRequest(http.MethodPut, "http://registry/v2/"+repository+"/manifests/"+tag, bytes.NewReader(data))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", mediaType)
	resp, err := direct{r.storage}.RoundTrip(req)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusCreated {
		body, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("put manifest %s:%s: %s: %s", repository, tag, resp.Status, body)
	}
	return nil
}

func localName(ref string) (name.Reference, error) {
	// The registry part is never looked at: pushes don't leave the process.
	parsed, err := name.ParseReference("registry.localhost/"+ref, name.Insecure)
	if err != nil {
		return nil, fmt.Errorf("image name %q: %w", ref, err)
	}
	return parsed, nil
}

// Serve answers on listener until ctx ends. It takes ownership of listener.
func (r *Registry) Serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	if r.tls != nil {
		listener = tls.NewListener(listener, r.tls)
	}
	// Ended by ctx: closing the server makes Serve return.
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// ServeHTTP notes the request, then lets faults, authorization and storage
// answer it, in this order.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.requests = append(r.requests, Request{
		Method: req.Method, Host: req.Host, Path: req.URL.Path, Query: req.URL.RawQuery, Header: req.Header.Clone(),
	})
	faults := append([]Fault(nil), r.faults...)
	r.mu.Unlock()
	if r.auth != nil && r.auth.answer(w, req) {
		return
	}
	for _, fault := range faults {
		if fault(w, req, r.storage) {
			return
		}
	}
	r.storage.ServeHTTP(w, req)
}

// Requests returns what has come since the last call.
func (r *Registry) Requests() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := r.requests
	r.requests = nil
	return seen
}

// Break makes the registry misbehave from now on; without faults it is sound
// again.
func (r *Registry) Break(faults ...Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = faults
}

// direct hands requests to a handler without a network.
type direct struct{ handler http.Handler }

func (d direct) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body == nil {
		req.Body = http.NoBody
	}
	recorder := httptest.NewRecorder()
	d.handler.ServeHTTP(recorder, req)
	resp := recorder.Result()
	resp.Request = req
	return resp, nil
}
