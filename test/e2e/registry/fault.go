package registry

import (
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"time"
)

// Fault answers a request in the registry's place and returns true, or leaves
// it alone.
type Fault func(w http.ResponseWriter, req *http.Request, sound http.Handler) bool

// Match says which requests a fault is for.
type Match func(*http.Request) bool

// Manifests matches requests for manifests and indexes.
func Manifests(req *http.Request) bool { return strings.Contains(req.URL.Path, "/manifests/") }

// Blobs matches requests for layers and configs.
func Blobs(req *http.Request) bool { return strings.Contains(req.URL.Path, "/blobs/") }

// Everything matches all requests.
func Everything(*http.Request) bool { return true }

// Blob matches requests for one blob.
func Blob(digest string) Match {
	return func(req *http.Request) bool { return strings.HasSuffix(req.URL.Path, "/blobs/"+digest) }
}

// Hang takes requests and never answers.
func Hang(match Match) Fault {
	return func(_ http.ResponseWriter, req *http.Request, _ http.Handler) bool {
		if !match(req) {
			return false
		}
		<-req.Context().Done()
		return true
	}
}

// HangAfter sends the first bytes of the answer and then nothing more.
func HangAfter(match Match, bytes int) Fault {
	return func(w http.ResponseWriter, req *http.Request, sound http.Handler) bool {
		if !match(req) || req.Method != http.MethodGet {
			return false
		}
		answer := record(req, sound)
		copyHeader(w, answer)
		w.WriteHeader(answer.Code)
		body := answer.Body.Bytes()
		w.Write(body[:min(bytes, len(body))])
		http.NewResponseController(w).Flush()
		<-req.Context().Done()
		return true
	}
}

// Trickle slows the answer down: a piece, a pause, the next piece.
func Trickle(match Match, piece int, pause time.Duration) Fault {
	return func(w http.ResponseWriter, req *http.Request, sound http.Handler) bool {
		if !match(req) || req.Method != http.MethodGet {
			return false
		}
		answer := record(req, sound)
		copyHeader(w, answer)
		w.WriteHeader(answer.Code)
		for body := answer.Body.Bytes(); len(body) > 0 && req.Context().Err() == nil; {
			n := min(piece, len(body))
			w.Write(body[:n])
			http.NewResponseController(w).Flush()
			body = body[n:]
			time.Sleep(pause)
		}
		return true
	}
}

// Status answers with a status code.
func Status(match Match, code int) Fault {
	return func(w http.ResponseWriter, req *http.Request, _ http.Handler) bool {
		if !match(req) {
			return false
		}
		w.WriteHeader(code)
		return true
	}
}

// Corrupt flips one bit in the middle of what is served.
func Corrupt(match Match) Fault {
	return rewrite(match, func(body []byte) []byte {
		body[len(body)/2] ^= 1
		return body
	})
}

// Truncate serves a prefix, as if that were all.
func Truncate(match Match, bytes int) Fault {
	return rewrite(match, func(body []byte) []byte { return body[:min(bytes, len(body))] })
}

// Replace serves other content under the same name.
func Replace(match Match, with []byte) Fault {
	return rewrite(match, func([]byte) []byte { return with })
}

// LieAboutDigest claims another digest for manifests than they have.
func LieAboutDigest(digest string) Fault {
	return func(w http.ResponseWriter, req *http.Request, sound http.Handler) bool {
		if !Manifests(req) {
			return false
		}
		if strings.HasSuffix(req.URL.Path, "/"+digest) {
			// The liar has content for it.
			req = req.Clone(req.Context())
			req.URL.Path = strings.TrimSuffix(req.URL.Path, digest) + "latest"
		}
		answer := record(req, sound)
		copyHeader(w, answer)
		w.Header().Set("Docker-Content-Digest", digest)
		w.WriteHeader(answer.Code)
		w.Write(answer.Body.Bytes())
		return true
	}
}

// ContentType serves manifests under another media type.
func ContentType(mediaType string) Fault {
	return func(w http.ResponseWriter, req *http.Request, sound http.Handler) bool {
		if !Manifests(req) {
			return false
		}
		answer := record(req, sound)
		copyHeader(w, answer)
		w.Header().Set("Content-Type", mediaType)
		w.WriteHeader(answer.Code)
		w.Write(answer.Body.Bytes())
		return true
	}
}

// Redirect sends requests to the same path elsewhere: to is "http://host:port".
func Redirect(match Match, to string, code int) Fault {
	return func(w http.ResponseWriter, req *http.Request, _ http.Handler) bool {
		if !match(req) {
			return false
		}
		http.Redirect(w, req, to+req.URL.RequestURI(), code)
		return true
	}
}

func rewrite(match Match, change func([]byte) []byte) Fault {
	return func(w http.ResponseWriter, req *http.Request, sound http.Handler) bool {
		if !match(req) || req.Method != http.MethodGet {
			return false
		}
		answer := record(req, sound)
		body := change(answer.Body.Bytes())
		copyHeader(w, answer)
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.WriteHeader(answer.Code)
		w.Write(body)
		return true
	}
}

func record(req *http.Request, sound http.Handler) *httptest.ResponseRecorder {
	recorder := httptest.NewRecorder()
	sound.ServeHTTP(recorder, req)
	return recorder
}

func copyHeader(w http.ResponseWriter, answer *httptest.ResponseRecorder) {
	for key, values := range answer.Header() {
		w.Header()[key] = values
	}
}
