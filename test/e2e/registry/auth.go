package registry

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// Auth is what a registry asks for: Basic credentials, or with Bearer a token
// from the token server at Realm, which gives it for the same credentials or
// for the identity token.
type Auth struct {
	Username, Password string
	Bearer             bool
	// Realm is the token server's URL; "" is /token of the registry itself.
	Realm string
	// IdentityToken is taken as a refresh token, if set.
	IdentityToken string
	// Token is what the token server gives out and the registry lets in.
	Token string
}

// answer returns true if it has answered: with a token, or with a challenge.
func (a *Auth) answer(w http.ResponseWriter, req *http.Request) bool {
	if req.URL.Path == "/token" {
		a.ServeToken(w, req)
		return true
	}
	if !strings.HasPrefix(req.URL.Path, "/v2/") {
		return false
	}
	if a.Bearer {
		if req.Header.Get("Authorization") == "Bearer "+a.Token {
			return false
		}
		realm := a.Realm
		if realm == "" {
			scheme := "http"
			if req.TLS != nil {
				scheme = "https"
			}
			realm = scheme + "://" + req.Host + "/token"
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="test",scope="repository:any:pull"`, realm))
	} else {
		if user, password, ok := req.BasicAuth(); ok && user == a.Username && password == a.Password {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
	}
	w.WriteHeader(http.StatusUnauthorized)
	return true
}

// ServeToken is the token server: GET with Basic credentials or POST with a
// form, as the OAuth2 variant of the protocol has it.
func (a *Auth) ServeToken(w http.ResponseWriter, req *http.Request) {
	granted := false
	switch req.Method {
	case http.MethodGet:
		user, password, ok := req.BasicAuth()
		granted = ok && user == a.Username && password == a.Password
	case http.MethodPost:
		switch req.FormValue("grant_type") {
		case "password":
			granted = req.FormValue("username") == a.Username && req.FormValue("password") == a.Password
		case "refresh_token":
			granted = a.IdentityToken != "" && req.FormValue("refresh_token") == a.IdentityToken
		}
	}
	if !granted {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]any{"token": a.Token, "access_token": a.Token, "expires_in": 300})
}
