package secrets

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"
)

// callTimeout bounds each request. A credential that takes longer to make is
// refused, and what was made of it falls with its token.
const callTimeout = 10 * time.Second

// A vault speaks to one Vault: each method is one request, tried once. Issuing
// cannot be repeated safely, and ending is repeated by the ledger's worker.
type vault struct {
	Vault
	client *api.Client
	keeper
}

func newVault(c Vault) (*vault, error) {
	if err := c.Auth.check(); err != nil {
		return nil, err
	}
	if c.TokenRole == "" && len(c.Policies) == 0 {
		return nil, errors.New("secrets: name a token role, or policies for the tokens that read secrets")
	}
	if strings.Contains(c.TokenRole, "/") {
		return nil, errors.New("secrets: a token role is one name")
	}
	client, err := dial(c.Address, c.CAFile, c.Namespace)
	if err != nil {
		return nil, err
	}
	return &vault{Vault: c, client: client, keeper: newKeeper()}, nil
}

// dial makes a client of a Vault, without a token. It speaks to nobody yet.
func dial(address, caFile, namespace string) (*api.Client, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.User != nil {
		return nil, errors.New("secrets: the Vault address must be an http or https URL without a user")
	}
	if u.Scheme == "http" && !loopback(u.Hostname()) {
		return nil, errors.New("secrets: plain http to Vault is for loopback only; use https")
	}
	trust := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, fmt.Errorf("secrets: Vault's CA: %w", err)
		}
		if trust.RootCAs = x509.NewCertPool(); !trust.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("secrets: no certificate in %s", caFile)
		}
	}
	client, err := api.NewClient(&api.Config{
		Address: address, MaxRetries: 0, Timeout: callTimeout,
		HttpClient: &http.Client{
			Transport: &http.Transport{TLSClientConfig: trust, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 16,
				IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: callTimeout},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	})
	if err != nil {
		return nil, fmt.Errorf("secrets: Vault client: %w", err)
	}
	// The client takes more than we say from the environment; config is the only truth.
	client.ClearToken()
	client.SetHeaders(http.Header{api.RequestHeaderName: {"true"}})
	client.SetWrappingLookupFunc(func(string, string) string { return "" })
	if namespace != "" {
		client.SetNamespace(namespace)
	}
	return client, nil
}

// A child is a token of one lease: whatever was issued under it falls with it.
type child struct {
	token    string
	accessor string
	expires  time.Time
	gen      int // the login it hangs from
}

// An issued secret is what Vault answered.
type issued struct {
	data    map[string]string
	lease   string // Vault's lease id; empty for KV
	expires time.Time
	renew   bool
	request string
	version string
}

// child makes the token of one lease. It can be used until at, holds only what
// reading that secret takes, and ends when the gateway's own token does.
func (v *vault) child(ctx context.Context, id string, meta map[string]any, life time.Duration) (child, error) {
	path := "auth/token/create"
	if v.TokenRole != "" {
		path += "/" + v.TokenRole
	}
	ttl := fmt.Sprintf("%ds", int64(math.Ceil(life.Seconds())))
	body := map[string]any{
		"ttl": ttl, "explicit_max_ttl": ttl, "no_default_policy": true, "renewable": false,
		"type": "service", "display_name": "toolbroker", "meta": meta,
	}
	if len(v.Policies) > 0 {
		body["policies"] = v.Policies
	}
	own, err := v.own(ctx)
	if err != nil {
		return child{}, err
	}
	asked := time.Now()
	s, err := v.ask(ctx, own.value, id, path, body)
	if reasonOf(err) == reasonInvalidToken {
		// Our token was taken away, and with it nothing was made: log in once more.
		v.lost(own)
		if own, err = v.own(ctx); err != nil {
			return child{}, err
		}
		asked = time.Now()
		s, err = v.ask(ctx, own.value, id, path, body)
	}
	if err != nil {
		return child{}, err
	}
	if s == nil || s.Auth == nil || s.Auth.Accessor == "" || s.Auth.ClientToken == "" {
		return child{}, &vaultError{op: path, reason: reasonAnswer, answered: true, said: "no token with an accessor; batch tokens cannot be revoked"}
	}
	c := child{token: s.Auth.ClientToken, accessor: s.Auth.Accessor, gen: own.gen,
		expires: asked.Add(time.Duration(s.Auth.LeaseDuration) * time.Second)}
	if s.Auth.Orphan || s.Auth.LeaseDuration <= 0 || slices.Contains(s.Auth.Policies, "root") {
		return c, &vaultError{op: path, reason: reasonAnswer, answered: true, said: "the token role makes orphan, endless or root tokens"}
	}
	return c, nil
}

// read reads a binding's secret under the child's token.
func (v *vault) read(ctx context.Context, c child, id string, b *Binding) (issued, error) {
	path, asked := b.path(), time.Now()
	var s *api.Secret
	var err error
	if len(b.Params) > 0 {
		body := map[string]any{}
		for k, p := range b.Params {
			body[k] = p
		}
		s, err = v.ask(ctx, c.token, id, path, body)
	} else {
		s, err = v.as(c.token, id).ReadWithContext(ctx, path)
		err = worded(path, err)
	}
	if err != nil {
		return issued{}, err
	}
	if s == nil {
		return issued{}, &vaultError{op: path, reason: reasonNotFound, status: 404, answered: true}
	}
	i := issued{request: s.RequestID, lease: s.LeaseID, renew: s.Renewable, expires: c.expires}
	data := s.Data
	if b.Engine == KV {
		data, _ = s.Data["data"].(map[string]any)
		if data == nil {
			return issued{}, &vaultError{op: path, reason: reasonNotFound, status: 404, answered: true, said: "no current version"}
		}
		meta, _ := s.Data["metadata"].(map[string]any)
		if n, ok := meta["version"].(json.Number); ok {
			i.version = n.String()
		}
	} else if s.LeaseDuration > 0 {
		// Vault's own answer ignores that the token may end first.
		i.expires = earliest(c.expires, asked.Add(time.Duration(s.LeaseDuration)*time.Second))
	}
	i.data = map[string]string{}
	for k, x := range data {
		switch x := x.(type) {
		case string:
			i.data[k] = x
		case json.Number:
			i.data[k] = x.String()
		}
	}
	return i, nil
}

// renew asks for more of a lease's life, and says when it ends now.
func (v *vault) renew(ctx context.Context, id, lease string, more time.Duration) (time.Time, error) {
	asked := time.Now()
	s, err := v.admin(ctx, id, "sys/leases/renew", map[string]any{"lease_id": lease, "increment": int64(math.Ceil(more.Seconds()))})
	if err != nil {
		return time.Time{}, err
	}
	if s == nil || s.LeaseDuration <= 0 {
		return time.Time{}, &vaultError{op: "sys/leases/renew", reason: reasonAnswer, answered: true}
	}
	return asked.Add(time.Duration(s.LeaseDuration) * time.Second), nil
}

// revokeLease ends a lease. Its success proves nothing, for Vault says the same
// of an id it does not know; leaseGone does. The id goes in the body: a URL
// would show it to every log on the way.
func (v *vault) revokeLease(ctx context.Context, id, lease string, sync bool) error {
	_, err := v.admin(ctx, id, "sys/leases/revoke", map[string]any{"lease_id": lease, "sync": sync})
	return err
}

// leaseGone says whether Vault holds the lease no more. Only a 400 that says so
// counts: any other error proves nothing.
func (v *vault) leaseGone(ctx context.Context, id, lease string) (bool, error) {
	_, err := v.admin(ctx, id, "sys/leases/lookup", map[string]any{"lease_id": lease})
	if reasonOf(err) == reasonNoLease {
		return true, nil
	}
	return false, err
}

// revokeToken ends a child and all that was issued under it, the latter a
// moment later.
func (v *vault) revokeToken(ctx context.Context, id, accessor string) error {
	_, err := v.admin(ctx, id, "auth/token/revoke-accessor", map[string]any{"accessor": accessor})
	if reasonOf(err) == reasonNoAccessor {
		return nil
	}
	return err
}

// tokenGone says whether Vault knows the child no more.
func (v *vault) tokenGone(ctx context.Context, id, accessor string) (bool, error) {
	_, err := v.admin(ctx, id, "auth/token/lookup-accessor", map[string]any{"accessor": accessor})
	if reasonOf(err) == reasonNoAccessor {
		return true, nil
	}
	return false, err
}

// admin asks with the gateway's own token, and once more after a new login.
// What it is used for may be repeated.
func (v *vault) admin(ctx context.Context, id, path string, body map[string]any) (*api.Secret, error) {
	own, err := v.own(ctx)
	if err != nil {
		return nil, err
	}
	s, err := v.ask(ctx, own.value, id, path, body)
	if reasonOf(err) == reasonInvalidToken {
		v.lost(own)
		if own, err = v.own(ctx); err != nil {
			return nil, err
		}
		s, err = v.ask(ctx, own.value, id, path, body)
	}
	return s, err
}

func (v *vault) ask(ctx context.Context, token, id, path string, body map[string]any) (*api.Secret, error) {
	s, err := v.as(token, id).WriteWithContext(ctx, path, body)
	if err == nil && s != nil && s.Auth == nil && s.LeaseID == "" && s.Data == nil && s.RequestID == "" {
		return nil, &vaultError{op: path, reason: reasonAnswer, answered: true}
	}
	return s, worded(path, err)
}

// as is the client under a token. Vault's audit device writes the correlation
// id down beside the request id, which joins its record to ours.
func (v *vault) as(token, id string) *api.Logical {
	return v.client.WithRequestCallbacks(func(r *api.Request) {
		r.ClientToken = token
		if id != "" {
			r.Headers.Set("X-Correlation-Id", id)
		}
	}).Logical()
}

// health asks whether this Vault can serve us at all.
func (v *vault) health(ctx context.Context) error {
	h, err := v.client.Sys().HealthWithContext(ctx)
	if err != nil {
		return worded("sys/health", err)
	}
	switch {
	case h.Version == "":
		return &vaultError{op: "sys/health", reason: reasonAnswer, said: "not a Vault's"}
	case !h.Initialized:
		return &vaultError{op: "sys/health", reason: reasonSealed, said: "not initialised"}
	case h.Sealed:
		return &vaultError{op: "sys/health", reason: reasonSealed}
	case v.Namespace != "" && !h.Enterprise:
		// It would be ignored without a word, and the root namespace read instead.
		return &vaultError{op: "sys/health", reason: reasonConfig, said: "a namespace is configured and this Vault has none: it is not an enterprise server"}
	}
	return nil
}

// Why Vault did not do it: the words of a refusal's record.
const (
	reasonSealed       = "sealed"
	reasonPermission   = "permission"
	reasonNotFound     = "not found"
	reasonRate         = "rate limited"
	reasonUnreachable  = "unreachable" // no answer: what was asked may have been done
	reasonInvalidToken = "gateway token invalid"
	reasonNoLease      = "invalid lease"
	reasonNoAccessor   = "invalid accessor"
	reasonRequest      = "bad request"
	reasonFailing      = "vault failing"
	reasonAnswer       = "unusable answer"
	reasonConfig       = "configuration"
)

// A vaultError says what failed and why in our words. Vault's own text can quote
// what a target said of a statement, so of it only known phrases are kept; the
// rest stands in Vault's audit log under our correlation id.
type vaultError struct {
	op, reason, said string
	status           int
	answered         bool // Vault answered: what was asked was not done
}

func (e *vaultError) Error() string {
	s := "vault: " + e.op + ": " + e.reason
	if e.status != 0 {
		s += fmt.Sprintf(" (%d)", e.status)
	}
	if e.said != "" {
		s += ": " + e.said
	}
	return s
}

func reasonOf(err error) string {
	if e, ok := errors.AsType[*vaultError](err); ok {
		return e.reason
	}
	return ""
}

// phrases of Vault's that are worth an admin's while and quote nothing.
var phrases = []string{
	"Vault is sealed", "permission denied", "invalid token", "invalid lease", "lease not found", "invalid accessor",
	"unknown role", "child policies must be subset of parent", "no handler for route", "unsupported path",
	"unsupported operation", "rate limit quota exceeded", "lease is not renewable", "invalid role or secret ID",
	"invalid role ID", "invalid secret id", "wrapping token is not valid or does not exist", "missing client token",
}

func worded(op string, err error) error {
	if err == nil {
		return nil
	}
	r, ok := errors.AsType[*api.ResponseError](err)
	if !ok {
		e := &vaultError{op: op, reason: reasonUnreachable}
		// An error of the transport quotes the URL and nothing else; a broken
		// answer's can quote the answer.
		if t, ok := errors.AsType[*url.Error](err); ok {
			e.said = t.Err.Error()
		} else if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.ErrUnexpectedEOF) {
			e.said = "no answer in time, or half of one"
		}
		return e
	}
	e := &vaultError{op: op, status: r.StatusCode, answered: true}
	var said []string
	if !r.RawError {
		all := strings.Join(r.Errors, "\n")
		for _, p := range phrases {
			if strings.Contains(all, p) {
				said = append(said, p)
			}
		}
	}
	e.said = strings.Join(said, ", ")
	has := func(p string) bool { return slices.Contains(said, p) }
	switch {
	case r.StatusCode == http.StatusBadRequest && (has("invalid lease") || has("lease not found")):
		e.reason = reasonNoLease
	case has("invalid accessor"):
		e.reason = reasonNoAccessor
	case r.StatusCode == http.StatusForbidden && has("invalid token"):
		e.reason = reasonInvalidToken
	case r.StatusCode == http.StatusForbidden:
		e.reason = reasonPermission
	case r.StatusCode == http.StatusNotFound:
		e.reason = reasonNotFound
	case r.StatusCode == http.StatusTooManyRequests:
		e.reason = reasonRate
	case r.StatusCode == http.StatusServiceUnavailable && has("Vault is sealed"):
		e.reason = reasonSealed
	case r.StatusCode >= 500:
		// A proxy's 502 and 504 hide whether Vault did it.
		e.reason, e.answered = reasonFailing, false
	default:
		e.reason = reasonRequest
	}
	return e
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
