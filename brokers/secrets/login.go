package secrets

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"time"

	"toolbroker/gateway"
)

// An Auth is how the gateway proves itself to Vault: exactly one of its fields.
type Auth struct {
	TokenFile string         // a file that holds a token, read again at every login
	Token     gateway.Secret // the token itself, for a Vault in this process
	AppRole   *AppRole
}

// An AppRole is a login with a role id and a secret id from a file.
type AppRole struct {
	Mount        string // empty for "approle"
	RoleID       string
	SecretIDFile string // read again at every login
	Wrapped      bool   // the file holds a single-use wrapping token for the secret id
}

func (a Auth) check() error {
	n := 0
	for _, given := range []bool{a.TokenFile != "", !a.Token.IsZero(), a.AppRole != nil} {
		if given {
			n++
		}
	}
	if n != 1 {
		return errors.New("secrets: say exactly one way to log in to Vault: a token file or an AppRole")
	}
	if r := a.AppRole; r != nil && (r.RoleID == "" || r.SecretIDFile == "" || strings.Contains(r.Mount, "..")) {
		return errors.New("secrets: an AppRole needs a role id and a secret id file")
	}
	return nil
}

// An ownToken is the gateway's own, never a tool's. Every child hangs from one,
// and falls with it.
type ownToken struct {
	value   string
	gen     int       // counts logins that gave another token
	ends    time.Time // as of the last renewal; zero when it does not
	life    time.Duration
	renew   bool
	session bool // made by our login, so ours to end
}

// A keeper holds the gateway's own token: logs in, renews, logs in again.
type keeper struct {
	mu       sync.Mutex // guards all below
	token    *ownToken
	gen      int
	err      error         // why there is no token
	again    time.Time     // no new login before
	secretID string        // unwrapped once, kept for the next login
	wake     chan struct{} // the token is no good any more
	// superseded is told that children of a login end at a time, the zero time
	// meaning that they are dead by now.
	superseded func(gen int, at time.Time)
}

// errLogin says that there is no token to ask with, so nothing was asked.
var errLogin = errors.New("log in to Vault")

func newKeeper() keeper { return keeper{wake: make(chan struct{}, 1)} }

// own returns the gateway's token, logging in where there is none.
func (v *vault) own(ctx context.Context) (*ownToken, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if t := v.token; t != nil && (t.ends.IsZero() || time.Now().Before(t.ends)) {
		return t, nil
	}
	if time.Now().Before(v.again) {
		return nil, v.err
	}
	return v.loginLocked(ctx)
}

// lost says that Vault knows t no more.
func (v *vault) lost(t *ownToken) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.token == t {
		v.drop(time.Time{})
		v.again = time.Time{}
	}
}

// drop forgets the token, whose children end at a time. The caller holds mu.
func (v *vault) drop(at time.Time) {
	if v.token == nil {
		return
	}
	gen := v.token.gen
	v.token = nil
	if v.superseded != nil {
		go v.superseded(gen, at)
	}
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

// loginLocked gets a token and looks it up. A failed login is not repeated
// within a second, or every call would log in. The caller holds mu.
func (v *vault) loginLocked(ctx context.Context) (*ownToken, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	t, err := v.login(ctx)
	if err != nil {
		v.err, v.again = fmt.Errorf("%w: %w", errLogin, err), time.Now().Add(time.Second)
		return nil, v.err
	}
	if v.token != nil && v.token.value == t.value {
		t.gen = v.token.gen
	} else {
		if v.token != nil {
			v.drop(v.token.ends)
		}
		v.gen++
		t.gen = v.gen
	}
	v.token, v.err = t, nil
	return t, nil
}

func (v *vault) login(ctx context.Context) (*ownToken, error) {
	if err := v.health(ctx); err != nil {
		return nil, err
	}
	t := &ownToken{}
	switch a := v.Auth; {
	case a.TokenFile != "":
		b, err := os.ReadFile(a.TokenFile)
		if err != nil {
			return nil, err
		}
		t.value = strings.TrimSpace(string(b))
	case a.AppRole != nil:
		secret, err := v.secret(ctx, a.AppRole)
		if err != nil {
			return nil, err
		}
		mount := a.AppRole.Mount
		if mount == "" {
			mount = "approle"
		}
		s, err := v.ask(ctx, "", "", "auth/"+mount+"/login", map[string]any{"role_id": a.AppRole.RoleID, "secret_id": secret})
		if err != nil {
			v.secretID = "" // the file may hold a newer one
			return nil, err
		}
		if s == nil || s.Auth == nil {
			return nil, &vaultError{op: "login", reason: reasonAnswer}
		}
		t.value, t.session = s.Auth.ClientToken, true
	default:
		t.value = a.Token.Reveal()
	}
	if t.value == "" || strings.ContainsAny(t.value, " \r\n\t") {
		return nil, errors.New("the token is empty or has spaces in it")
	}
	asked := time.Now()
	s, err := v.as(t.value, "").ReadWithContext(ctx, "auth/token/lookup-self")
	if err != nil {
		return nil, worded("auth/token/lookup-self", err)
	}
	if s == nil {
		return nil, &vaultError{op: "auth/token/lookup-self", reason: reasonAnswer}
	}
	ttl, err := s.TokenTTL()
	if err != nil {
		return nil, &vaultError{op: "auth/token/lookup-self", reason: reasonAnswer}
	}
	t.renew, _ = s.TokenIsRenewable()
	if t.life = ttl; ttl > 0 {
		t.ends = asked.Add(ttl)
	}
	return t, nil
}

// secret reads the secret id. A wrapping token works once, so what was in it is
// kept: a restart needs a new one in the file.
func (v *vault) secret(ctx context.Context, r *AppRole) (string, error) {
	if v.secretID != "" {
		return v.secretID, nil
	}
	b, err := os.ReadFile(r.SecretIDFile)
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(string(b))
	if !r.Wrapped {
		return text, nil
	}
	s, err := v.ask(ctx, text, "", "sys/wrapping/unwrap", nil)
	if err != nil {
		return "", err
	}
	if s != nil {
		v.secretID, _ = s.Data["secret_id"].(string)
	}
	if v.secretID == "" {
		return "", &vaultError{op: "sys/wrapping/unwrap", reason: reasonAnswer, said: "no secret_id in it"}
	}
	return v.secretID, nil
}

// keep renews the token at two thirds of its life until ctx ends. Any end of
// it, and a renewal that gives less than it once had, is a new login; failures
// wait longer and longer, with jitter.
func (v *vault) keep(ctx context.Context, log *slog.Logger) {
	said := ""
	for tries := 0; ; {
		t, err := v.own(ctx)
		wait := time.Minute // a token without an end is looked at now and then
		if err == nil && !t.ends.IsZero() {
			wait = max(time.Until(t.ends)-t.life/3, 100*time.Millisecond)
		}
		if err == nil {
			tries, said = 0, ""
		} else {
			tries++
			wait = backoff(tries, 30*time.Second)
			if err.Error() != said {
				said = err.Error()
				log.Warn("no token from Vault; calls that need a credential are refused", "error", said)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-v.wake:
			continue
		case <-time.After(wait):
		}
		if err == nil {
			for tries = 0; v.refresh(ctx, t) != nil && ctx.Err() == nil && !t.over(); tries++ {
				select {
				case <-ctx.Done():
				case <-time.After(min(backoff(tries+1, 10*time.Second), max(time.Until(t.ends), 0)+time.Millisecond)):
				}
			}
			tries = 0
		}
	}
}

func (t *ownToken) over() bool { return !t.ends.IsZero() && !time.Now().Before(t.ends) }

// refresh renews t, or replaces it where it cannot be. It returns an error only
// where trying again may help.
func (v *vault) refresh(ctx context.Context, t *ownToken) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if t.ends.IsZero() {
		_, err := v.as(t.value, "").ReadWithContext(ctx, "auth/token/lookup-self")
		if r := reasonOf(worded("", err)); r == reasonInvalidToken || r == reasonPermission {
			v.lost(t)
		}
		return nil
	}
	asked := time.Now()
	left := time.Duration(0)
	if t.renew {
		s, err := v.ask(ctx, t.value, "", "auth/token/renew-self", nil)
		switch r := reasonOf(err); {
		case r == reasonInvalidToken || r == reasonPermission:
			v.lost(t)
			return nil
		case err != nil && r != reasonRequest:
			return err
		case err == nil && s != nil && s.Auth != nil:
			left = time.Duration(s.Auth.LeaseDuration) * time.Second
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.token != t {
		return nil
	}
	// A full life again: go on with it. Less: its last one has begun.
	if left > t.life/2 {
		renewed := *t
		renewed.ends = asked.Add(left)
		v.token = &renewed
		return nil
	}
	_, err := v.loginLocked(ctx)
	return err
}

// logout ends the token that our login made, and so whatever still hangs from it.
func (v *vault) logout(ctx context.Context) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	t := v.token
	if t == nil || !t.session {
		return nil
	}
	v.token = nil
	v.err, v.again = fmt.Errorf("%w: logged out", errLogin), time.Now().Add(time.Hour)
	_, err := v.ask(ctx, t.value, "", "auth/token/revoke-self", nil)
	return err
}

// backoff is how long to wait after n failures: doubling from 200 ms, at most
// most, and anywhere in the upper half of that.
func backoff(n int, most time.Duration) time.Duration {
	d := min(200*time.Millisecond<<min(n-1, 20), most)
	return d/2 + rand.N(d/2+1)
}
