package tasks_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"toolbroker/brokers/internal/redis/redistest"
	"toolbroker/brokers/tasks"
	"toolbroker/gateway"
	"toolbroker/gateway/gatewaytest"
)

func TestATokenIsItsTaskOnEveryReplica(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		s := start(t)
		a, b := replica(t, s, &gatewaytest.Facts{}), replica(t, s, &gatewaytest.Facts{})
		token := begin(t, a, "acme", "task-1")
		want, err := a.Get(t.Context(), "acme", "task-1")
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range []*tasks.Tasks{a, b, a} {
			p, err := r.VerifyToken(token.Reveal())
			if err != nil {
				t.Fatal(err)
			}
			if p.ID != "agent:a" || p.Tenant != "acme" || p.OnBehalfOf != "bob" || p.Owner != "alice" || p.Task != "task-1" ||
				p.Authn != "task_token" || p.Credential == "" || len(p.Chain) != 0 || p.Expires.After(want.Expires) || want.Expires.Sub(p.Expires) > time.Second {
				t.Errorf("it is %+v", p)
			}
		}
		s.Stop(t)
		if _, err := b.VerifyToken(token.Reveal()); err != nil {
			t.Error("a key seen before costs a round trip:", err)
		}
	})
}

func TestForgedTokens(t *testing.T) {
	s := redistest.Embedded(t)
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	clock := func() time.Time { return now }
	r := replica(t, s, &gatewaytest.Facts{}, func(c *tasks.Config) { c.SigningKey, c.Now = key, clock })
	good, err := r.Start(t.Context(), task("acme", "task-1"))
	if err != nil {
		t.Fatal(err)
	}
	head, body, sig := split(t, good.Reveal())
	kid := head["kid"].(string)
	if head["alg"] != "EdDSA" || head["typ"] != "tbtask+jwt" || len(head) != 3 {
		t.Errorf("the header is %v", head)
	}
	_, stranger, _ := ed25519.GenerateKey(nil)

	type m = map[string]any
	sign := func(k any, alg jose.SignatureAlgorithm, head m, body m) string {
		opt := &jose.SignerOptions{}
		for n, v := range head {
			opt = opt.WithHeader(jose.HeaderKey(n), v)
		}
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: k}, opt)
		if err != nil {
			t.Fatal(err)
		}
		payload, _ := json.Marshal(body)
		signed, err := signer.Sign(payload)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := signed.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	with := func(change m) m {
		out := m{}
		for k, v := range body {
			out[k] = v
		}
		for k, v := range change {
			if out[k] = v; v == nil {
				delete(out, k)
			}
		}
		return out
	}
	ours := m{"kid": kid, "typ": "tbtask+jwt"}
	part := func(v any) string { b, _ := json.Marshal(v); return base64.RawURLEncoding.EncodeToString(b) }

	if _, err := r.VerifyToken(sign(key, jose.EdDSA, ours, body)); err != nil {
		t.Fatal("the forger's tools do not work:", err)
	}
	for name, raw := range map[string]string{
		"nothing":                       "",
		"rubbish":                       "a.b.c",
		"alg none":                      part(m{"alg": "none", "typ": "tbtask+jwt", "kid": kid}) + "." + part(body) + ".",
		"alg none with a signature":     part(m{"alg": "none", "typ": "tbtask+jwt", "kid": kid}) + "." + part(body) + "." + sig,
		"HMAC with the public key":      sign([]byte(pub), jose.HS256, ours, body),
		"a stranger's key, our kid":     sign(stranger, jose.EdDSA, ours, body),
		"a stranger's key, no kid":      sign(stranger, jose.EdDSA, m{"typ": "tbtask+jwt"}, body),
		"a stranger's kid":              sign(stranger, jose.EdDSA, m{"kid": strings.Repeat("a", 32), "typ": "tbtask+jwt"}, body),
		"a kid that is a path":          sign(key, jose.EdDSA, m{"kid": "x:{acme}", "typ": "tbtask+jwt"}, body),
		"the key in the header":         sign(stranger, jose.EdDSA, m{"jwk": jose.JSONWebKey{Key: stranger.Public()}, "typ": "tbtask+jwt"}, body),
		"another type":                  sign(key, jose.EdDSA, m{"kid": kid, "typ": "JWT"}, body),
		"no type":                       sign(key, jose.EdDSA, m{"kid": kid}, body),
		"another issuer":                sign(key, jose.EdDSA, ours, with(m{"iss": "https://else.test"})),
		"another audience":              sign(key, jose.EdDSA, ours, with(m{"aud": "else"})),
		"two audiences":                 sign(key, jose.EdDSA, ours, with(m{"aud": []string{"toolbroker", "else"}})),
		"no audience":                   sign(key, jose.EdDSA, ours, with(m{"aud": nil})),
		"expired":                       sign(key, jose.EdDSA, ours, with(m{"exp": now.Unix()})),
		"no expiry":                     sign(key, jose.EdDSA, ours, with(m{"exp": nil})),
		"from the future":               sign(key, jose.EdDSA, ours, with(m{"iat": now.Unix() + 10})),
		"not yet":                       sign(key, jose.EdDSA, ours, with(m{"nbf": now.Unix() + 10})),
		"no nbf":                        sign(key, jose.EdDSA, ours, with(m{"nbf": nil})),
		"no subject":                    sign(key, jose.EdDSA, ours, with(m{"sub": ""})),
		"no owner":                      sign(key, jose.EdDSA, ours, with(m{"owner": nil})),
		"no jti":                        sign(key, jose.EdDSA, ours, with(m{"jti": nil})),
		"no tenant":                     sign(key, jose.EdDSA, ours, with(m{"tid": nil})),
		"an unknown tenant":             sign(key, jose.EdDSA, ours, with(m{"tid": "initech"})),
		"the shared tenant":             sign(key, jose.EdDSA, ours, with(m{"tid": "_"})),
		"a task that is no id":          sign(key, jose.EdDSA, ours, with(m{"task": "a:b"})),
		"no task":                       sign(key, jose.EdDSA, ours, with(m{"task": nil})),
		"too long":                      sign(key, jose.EdDSA, ours, with(m{"pad": strings.Repeat("x", 8<<10)})),
		"longer than anyone would read": strings.Repeat("x", 64<<20),
		"a changed body":                strings.Split(good.Reveal(), ".")[0] + "." + part(with(m{"sub": "agent:root"})) + "." + sig,
		"no signature":                  strings.TrimSuffix(good.Reveal(), sig),
		"JSON serialisation":            fmt.Sprintf(`{"payload":%q,"protected":%q,"signature":%q}`, strings.Split(good.Reveal(), ".")[1], strings.Split(good.Reveal(), ".")[0], sig),
		"spaces around":                 " " + good.Reveal() + "\n",
	} {
		p, err := r.VerifyToken(raw)
		if !errors.Is(err, gateway.ErrUnidentified) || p.ID != "" {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
		if len(raw) > 20 && strings.Contains(fmt.Sprint(err), raw[:20]) {
			t.Errorf("%s: the error holds the token: %v", name, err)
		}
	}

	// A stranger with access to Redis publishes a key of its own.
	strangers := strings.Repeat("b", 32)
	s.Do(t, "SET", "tb:{_}:task-key:"+strangers, []byte(stranger.Public().(ed25519.PublicKey)))
	if _, err := r.VerifyToken(sign(stranger, jose.EdDSA, m{"kid": strangers, "typ": "tbtask+jwt"}, body)); !errors.Is(err, gateway.ErrUnidentified) {
		t.Error("a published key counts:", err)
	}
	// And one of ours under another kid.
	s.Do(t, "SET", "tb:{_}:task-key:"+strangers, s.Do(t, "GET", "tb:{_}:task-key:"+kid))
	if _, err := r.VerifyToken(sign(key, jose.EdDSA, m{"kid": strangers, "typ": "tbtask+jwt"}, body)); !errors.Is(err, gateway.ErrUnidentified) {
		t.Error("a moved key counts:", err)
	}
}

func FuzzVerifyToken(f *testing.F) {
	f.Add("a.b.c")
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Add("eyJhbGciOiJFZERTQSIsImtpZCI6ImEiLCJ0eXAiOiJ0YnRhc2srand0In0.e30.AA")
	s := redistest.Embedded(f)
	_, key, _ := ed25519.GenerateKey(nil)
	r, err := tasks.New(tasks.Config{Store: s.Open(f, "acme"), Recorder: &gatewaytest.Facts{}, SigningKey: key, Issuer: "i", Audience: "a"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		if p, err := r.VerifyToken(raw); !errors.Is(err, gateway.ErrUnidentified) || p.ID != "" {
			t.Errorf("%q is %+v", raw, p)
		}
	})
}

func split(t *testing.T, raw string) (head, body map[string]any, sig string) {
	t.Helper()
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		t.Fatal("not a compact JWS")
	}
	for i, to := range []*map[string]any{&head, &body} {
		b, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil || json.Unmarshal(b, to) != nil {
			t.Fatal("not a JWT")
		}
	}
	return head, body, parts[2]
}

func TestLoadKey(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "task.key")
	var all sync.WaitGroup
	keys := make([]ed25519.PrivateKey, 8)
	for i := range keys {
		all.Go(func() {
			k, err := tasks.LoadKey(path)
			if err != nil {
				t.Error(err)
			}
			keys[i] = k
		})
	}
	all.Wait()
	for _, k := range keys {
		if len(k) != ed25519.PrivateKeySize || !bytes.Equal(k, keys[0]) {
			t.Fatal("not one key")
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v", info.Mode(), err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}

	good, _ := os.ReadFile(path)
	seed := keys[0].Seed()
	for name, prepare := range map[string]func(path string) error{
		"others may read": func(p string) error { return os.WriteFile(p, good, 0o644) },
		"empty":           func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"cut":             func(p string) error { return os.WriteFile(p, good[:len(good)/2], 0o600) },
		"raw bytes":       func(p string) error { return os.WriteFile(p, seed, 0o600) },
		"two keys":        func(p string) error { return os.WriteFile(p, append(bytes.Clone(good), good...), 0o600) },
		"a link":          func(p string) error { return os.Symlink(path, p) },
		"a directory":     func(p string) error { return os.Mkdir(p, 0o700) },
		"no directory":    func(p string) error { return nil },
	} {
		p := filepath.Join(dir, rand.Text())
		if name == "no directory" {
			p = filepath.Join(p, "x")
		}
		if err := prepare(p); err != nil {
			t.Fatal(err)
		}
		if k, err := tasks.LoadKey(p); err == nil || k != nil {
			t.Errorf("%s: loaded", name)
		} else if strings.Contains(err.Error(), string(seed)) {
			t.Errorf("%s: the error holds the key", name)
		}
	}
}
