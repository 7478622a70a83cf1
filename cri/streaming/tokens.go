package streaming

import (
	"crypto/rand"
	"net/http"
	"sync"
	"time"

	"github.com/podwright/podwright/podsandbox"
)

// A URL is used at once or never: whoever can read it could use it, too.
const (
	tokenLife = time.Minute
	maxTokens = 1000
)

// session serves one request that brought a valid token.
type session func(s *Server, w http.ResponseWriter, r *http.Request)

// tokens are the URLs that were given out and not used. The library's own cache knows neither what streams were asked
// for nor whose connection it is by the time a session begins; hence this one.
type tokens struct {
	mu     sync.Mutex // mu guards issued.
	issued map[string]issued
}

type issued struct {
	kind    string
	session session
	until   time.Time
}

// give makes a token for one session of a kind, the first part of its URL's path.
func (t *tokens) give(kind string, serve session) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	for token, i := range t.issued {
		if now.After(i.until) {
			delete(t.issued, token)
		}
	}
	if len(t.issued) >= maxTokens {
		return "", &podsandbox.Error{Kind: podsandbox.ErrResourceLimit, Err: errTooMany}
	}
	if t.issued == nil {
		t.issued = map[string]issued{}
	}
	token := rand.Text() // 128 bits
	t.issued[token] = issued{kind, serve, now.Add(tokenLife)}
	return token, nil
}

// take gives a token's session, once.
func (t *tokens) take(kind, token string) (session, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, known := t.issued[token]
	if !known || i.kind != kind {
		return nil, false
	}
	delete(t.issued, token)
	return i.session, time.Now().Before(i.until)
}
