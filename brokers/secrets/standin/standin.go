// Package standin is a small stand-in for Vault, for trying toolbroker out and
// for tests. It keeps everything in memory, in this process, on loopback.
//
// It speaks just the endpoints that brokers/secrets uses, with Vault's paths,
// statuses and words, and passes the same contract test as real Vault. It is no
// Vault: nothing is encrypted and nothing is kept. It says what it is in
// sys/health, and serve cannot reach it.
package standin

import (
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// Version is what sys/health gives as the version.
const Version = "stand-in"

// A Server is a running stand-in. Its methods are safe for concurrent use.
type Server struct {
	http *http.Server
	addr string
	root string

	mu       sync.Mutex
	sealed   bool
	tokens   map[string]*token // by value
	leases   map[string]*lease // by lease id
	kv       map[string][]version
	policies map[string]map[string][]string // policy, path pattern, capabilities
	roles    map[string][]string            // token role, the policies its tokens may have
	creds    map[string]time.Duration       // role of the creds mount, how long a credential lives
	logins   map[string]login               // by AppRole role id
}

type token struct {
	value, accessor, parent string
	policies                []string
	display, role           string
	meta                    map[string]string
	issued, expires         time.Time // the zero expiry is none
	max                     time.Time // explicit_max_ttl, or zero
	period                  time.Duration
}

type lease struct {
	id, token, value string
	issued, expires  time.Time
	ttl              time.Duration
}

type version struct {
	data map[string]any
	at   time.Time
}

type login struct {
	secret   string
	policies []string
	ttl      time.Duration
	periodic bool
}

// Start listens on addr, which must be a loopback address with a port (0 for
// any), and serves until Close. Off loopback it refuses.
func Start(addr string) (*Server, error) {
	at, err := netip.ParseAddrPort(addr)
	if err != nil || !at.Addr().IsLoopback() {
		return nil, fmt.Errorf("stand-in Vault: %q is not a loopback IP:PORT", addr)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("stand-in Vault: %w", err)
	}
	s := &Server{
		addr: l.Addr().String(), root: "standin." + rand.Text(),
		tokens: map[string]*token{}, leases: map[string]*lease{}, kv: map[string][]version{},
		policies: map[string]map[string][]string{}, roles: map[string][]string{},
		creds: map[string]time.Duration{}, logins: map[string]login{},
	}
	s.tokens[s.root] = &token{value: s.root, accessor: rand.Text(), policies: []string{"root"}, display: "root", issued: time.Now()}
	s.http = &http.Server{Handler: s.handler(), ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = s.http.Serve(l) }()
	return s, nil
}

// Close stops serving and forgets everything.
func (s *Server) Close() error { return s.http.Close() }

// Address is where it listens, as a URL.
func (s *Server) Address() string { return "http://" + s.addr }

// RootToken may do anything. It is as secret as anything here is.
func (s *Server) RootToken() string { return s.root }

// Policy sets a policy: path patterns, where a last * stands for any rest, and
// what may be done there: read, update, create.
func (s *Server) Policy(name string, paths map[string][]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.policies[name] = paths
}

// TokenRole sets a role for auth/token/create/ROLE and the policies its tokens may have.
func (s *Server) TokenRole(name string, policies ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.roles[name] = policies
}

// AppRole sets a login. A periodic one's tokens can be renewed for ever.
func (s *Server) AppRole(roleID, secretID string, ttl time.Duration, periodic bool, policies ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logins[roleID] = login{secretID, policies, ttl, periodic}
}

// Creds sets a role of the leased engine: reading creds/NAME issues a token
// that [Server.Verify] accepts for as long as its lease lives, ttl at most.
func (s *Server) Creds(name string, ttl time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.creds[name] = ttl
}

// PutKV writes a version of a KV v2 secret under the mount "secret".
func (s *Server) PutKV(path string, data map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kv[path] = append(s.kv[path], version{data, time.Now()})
}

// Token makes a token that no other token's end ends.
func (s *Server) Token(ttl time.Duration, periodic bool, policies ...string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := &token{policies: policies, display: "token", expires: time.Now().Add(ttl)}
	if periodic {
		t.period = ttl
	}
	return s.add(t).value
}

// RevokeToken ends a token, and with it its children and their leases.
func (s *Server) RevokeToken(value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tokens, value)
	s.sweep(time.Now())
}

// Seal makes everything but sys/health answer 503; Unseal undoes it.
func (s *Server) Seal() { s.seal(true) }

// Unseal undoes Seal.
func (s *Server) Unseal() { s.seal(false) }

func (s *Server) seal(sealed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sealed = sealed
}

// ErrNotLive is what Verify says of a credential that is unknown, expired or revoked.
var ErrNotLive = errors.New("not a live credential of the stand-in Vault")

// Verify says whether a token that the creds mount issued is still good.
func (s *Server) Verify(token string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweep(time.Now())
	err := ErrNotLive
	for _, l := range s.leases {
		if subtle.ConstantTimeCompare([]byte(l.value), []byte(token)) == 1 {
			err = nil
		}
	}
	return err
}

// Live counts the leases and the child tokens that are alive.
func (s *Server) Live() (leases, children int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweep(time.Now())
	for _, t := range s.tokens {
		if t.parent != "" {
			children++
		}
	}
	return len(s.leases), children
}

// add completes t and keeps it.
func (s *Server) add(t *token) *token {
	t.value, t.accessor, t.issued = "standin."+rand.Text(), rand.Text(), time.Now()
	s.tokens[t.value] = t
	return t
}

// sweep drops what has expired, and what fell with its parent.
func (s *Server) sweep(now time.Time) {
	for dropped := true; dropped; { // a chain of children falls link by link
		dropped = false
		for v, t := range s.tokens {
			_, has := s.tokens[t.parent]
			if (!t.expires.IsZero() && !now.Before(t.expires)) || (t.parent != "" && !has) {
				delete(s.tokens, v)
				dropped = true
			}
		}
	}
	for id, l := range s.leases {
		if _, has := s.tokens[l.token]; !has || !now.Before(l.expires) {
			delete(s.leases, id)
		}
	}
}

// may says whether t's policies let it do what at path.
func (s *Server) may(t *token, what, path string) bool {
	// What Vault's default policy gives every token for itself.
	if path == "auth/token/lookup-self" || path == "auth/token/renew-self" || path == "auth/token/revoke-self" {
		return true
	}
	for _, name := range t.policies {
		if name == "root" {
			return true
		}
		for pattern, caps := range s.policies[name] {
			prefix, glob := strings.CutSuffix(pattern, "*")
			if path != pattern && !(glob && strings.HasPrefix(path, prefix)) {
				continue
			}
			for _, c := range caps {
				if c == what {
					return true
				}
			}
		}
	}
	return false
}
