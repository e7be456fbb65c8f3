package edge

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"toolbroker/gateway"
)

// metadataPaths are where RFC 9728 has a client look for what /mcp says of
// itself: with the resource's path, and for those that leave it out, without.
var metadataPaths = []string{"/.well-known/oauth-protected-resource/mcp", "/.well-known/oauth-protected-resource"}

const (
	metadataAge = "public, max-age=300"
	soon        = "1" // Retry-After, in seconds: this replica is busy
	later       = "5" // somebody else is
)

// discoverable checks what clients will be told, and fills in what is not said.
func (c *Config) discoverable() error {
	if c.PublicURL != "" {
		u, err := serverURL(c.PublicURL)
		if err != nil || u.Path != "" && u.Path != "/" {
			return errors.New("edge: PublicURL is https://host[:port], or http on a loopback name, and has no path")
		}
		c.PublicURL = u.Scheme + "://" + u.Host
	}
	for _, issuer := range c.Issuers {
		if _, err := serverURL(issuer); err != nil {
			return errors.New("edge: an issuer is an https URL without query and fragment, or http on a loopback name")
		}
	}
	if len(c.DPoPAlgs) == 0 {
		c.DPoPAlgs = []string{"ES256", "ES384", "EdDSA", "RS256", "PS256"}
	}
	for _, word := range slices.Concat(c.Scopes, c.DPoPAlgs) {
		if !isScope(word) {
			return fmt.Errorf("edge: %q is no OAuth scope or algorithm", word)
		}
	}
	return nil
}

func serverURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, err
	case u.Scheme != "https" && !(u.Scheme == "http" && isLoopback(u.Host)), u.Host == "",
		u.User != nil, u.RawQuery != "", u.ForceQuery, u.Fragment != "", strings.ContainsAny(s, "\"\\#"):
		return nil, errors.New("not an address of a server")
	}
	return u, nil
}

// isScope reports whether s is one scope-token of RFC 6749, which can stand
// between quotes as it is.
func isScope(s string) bool {
	return s != "" && strings.IndexFunc(s, func(c rune) bool { return c <= ' ' || c > '~' || c == '"' || c == '\\' }) < 0
}

// metadata says whose tokens are taken here (RFC 9728). Anybody may read it, a
// page in a browser too: it is the same for all.
func (e *Edge) metadata(w http.ResponseWriter, r *http.Request) {
	base := e.base(r)
	if len(e.Issuers) == 0 || base == "" {
		http.NotFound(w, r)
		return
	}
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", "*")
	if r.Method == http.MethodOptions { // clients in browsers send the revision they speak
		h.Set("Access-Control-Allow-Methods", "GET, HEAD")
		h.Set("Access-Control-Allow-Headers", "Mcp-Protocol-Version")
		w.WriteHeader(http.StatusNoContent)
		return
	}
	body, err := json.Marshal(struct {
		Resource     string   `json:"resource"`
		Issuers      []string `json:"authorization_servers"`
		Scopes       []string `json:"scopes_supported,omitempty"`
		Methods      []string `json:"bearer_methods_supported"`
		DPoP         []string `json:"dpop_signing_alg_values_supported"`
		Certificates bool     `json:"tls_client_certificate_bound_access_tokens,omitempty"`
		Details      []string `json:"authorization_details_types_supported"`
		Name         string   `json:"resource_name"`
	}{base + "/mcp", e.Issuers, e.Scopes, []string{"header"}, e.DPoPAlgs, e.MTLS, []string{detailsType}, e.Name})
	if err != nil { // nothing in it can fail to marshal
		http.Error(w, "internal", http.StatusInternalServerError)
		return
	}
	h.Set("Cache-Control", metadataAge)
	_ = writeJSON(w, http.StatusOK, body)
}

// challenge says to a caller who was not identified what to do about it: it sets
// the headers of the answer and returns its status.
//
// A client that hears 401 throws its token away and gets another, and one that
// hears insufficient_scope asks its user for more. So each is said only where
// that can help, and what passes by itself is said with a status that says so.
func (e *Edge) challenge(h http.Header, r *http.Request, err error) int {
	where := ""
	if base := e.base(r); base != "" && len(e.Issuers) > 0 {
		where = base + metadataPaths[0]
	}
	why := whyNot(err)
	switch why {
	case gateway.WhyBusy:
		h.Set("Retry-After", soon)
		return http.StatusTooManyRequests
	case gateway.WhyKeys:
		// The token may be good, and another one would be no better off.
		h.Set("Retry-After", later)
		return http.StatusServiceUnavailable
	case gateway.WhyScope:
		n, _ := errors.AsType[*gateway.NotIdentified](err)
		h.Add("WWW-Authenticate", authenticate("Bearer", "error", "insufficient_scope", "scope", scopes(n.Scope), "resource_metadata", where))
		return http.StatusForbidden
	}
	bad, says := "", ""
	if why != gateway.WhyNone && presents(r) {
		bad, says = "invalid_token", said(why)
	}
	if where == "" { // there is nowhere to send anybody
		h.Add("WWW-Authenticate", "Bearer")
	} else {
		h.Add("WWW-Authenticate", authenticate("Bearer", "error", bad, "error_description", says, "resource_metadata", where, "scope", scopes(e.Scopes)))
	}
	if why == gateway.WhyProof || why == gateway.WhyReplay || why == gateway.WhyAlgorithm && r.Header.Get("DPoP") != "" {
		h.Add("WWW-Authenticate", authenticate("DPoP", "algs", strings.Join(e.DPoPAlgs, " "), "error", "invalid_dpop_proof", "error_description", said(why)))
	}
	return http.StatusUnauthorized
}

// whyNot is why a caller was not identified, or empty where nobody said.
func whyNot(err error) string {
	if n, ok := errors.AsType[*gateway.NotIdentified](err); ok {
		return n.Why
	}
	return ""
}

// authenticate is a challenge of a scheme with those parameters that have a
// value. No value needs quoting: all are checked, or our own words.
func authenticate(scheme string, params ...string) string {
	var b strings.Builder
	b.WriteString(scheme)
	sep := " "
	for i := 0; i < len(params); i += 2 {
		if params[i+1] != "" {
			b.WriteString(sep + params[i] + `="` + params[i+1] + `"`)
			sep = ", "
		}
	}
	return b.String()
}

func scopes(all []string) string {
	return strings.Join(slices.DeleteFunc(slices.Clone(all), func(s string) bool { return !isScope(s) }), " ")
}

// said is why a credential was not taken, for its holder: nothing of the
// credential, and nothing that only its issuer or our config should know.
func said(why string) string {
	if text := saying[why]; text != "" {
		return text
	}
	return "the token is not valid here"
}

var saying = map[string]string{
	gateway.WhyNone:      "no token came with the request",
	gateway.WhyMalformed: "the token cannot be read",
	gateway.WhyUnknown:   "the key is not known",
	gateway.WhyIssuer:    "the token's issuer is not one of those that the resource metadata names",
	gateway.WhyAudience:  "the token is for another resource",
	gateway.WhyExpired:   "the token has expired",
	gateway.WhyEarly:     "the token is not valid yet",
	gateway.WhyAlgorithm: "the token is signed with an algorithm that is not taken here",
	gateway.WhySignature: "the token's signature does not verify",
	gateway.WhyKeys:      "the keys of the token's issuer cannot be had right now",
	gateway.WhyProof:     "the token is bound to a key, and no valid proof of that key came with it",
	gateway.WhyReplay:    "the proof was used before",
	gateway.WhyMapping:   "nobody is known here by this token",
	gateway.WhyScope:     "the token lacks a scope",
	gateway.WhyBusy:      "too many tokens are being verified; try again",
}
