package tasks_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"toolbroker/brokers/internal/redis"
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

// A token says which key its holder must prove, and who delegated, outermost
// deepest; and it is its task's however deep that is.
func TestATokenSaysItsChainAndItsKey(t *testing.T) {
	s := redistest.Embedded(t)
	r := replica(t, s, &gatewaytest.Facts{})
	thumb := strings.Repeat("x", 42) + "_"
	for _, bound := range []string{"", "jkt:" + thumb, "x5t#S256:" + thumb} {
		root := task("acme", tasks.NewID())
		root.Principal, root.Bound, root.Limits = "agent:root", bound, gateway.Limits{Depth: 2, FanOut: 2}
		if _, err := r.Start(t.Context(), root); err != nil {
			t.Fatal(err)
		}
		mid := below(root, tasks.NewID())
		mid.Principal, mid.Bound = "agent:mid", bound
		if _, err := r.Start(t.Context(), mid); err != nil {
			t.Fatal(err)
		}
		leaf := below(mid, tasks.NewID())
		leaf.Principal, leaf.Bound = "agent:leaf", bound
		token, err := r.Start(t.Context(), leaf)
		if err != nil {
			t.Fatal(err)
		}
		p, err := r.VerifyToken(token.Reveal())
		if err != nil || p.ID != "agent:leaf" || p.Task != leaf.ID || p.Bound != bound || !slices.Equal(p.Chain, []string{"agent:root", "agent:mid"}) {
			t.Errorf("it is %+v, %v", p, err)
		}
		_, body, _ := split(t, token.Reveal())
		if got, _ := json.Marshal(body["act"]); string(got) != `{"act":{"sub":"agent:root"},"sub":"agent:mid"}` {
			t.Errorf("act is %s", got)
		}
		name, value, _ := strings.Cut(bound, ":")
		if got, _ := json.Marshal(body["cnf"]); bound != "" && string(got) != fmt.Sprintf(`{%q:%q}`, name, value) || bound == "" && body["cnf"] != nil {
			t.Errorf("cnf is %s", got)
		}
	}
	for _, bound := range []string{"jkt:", "jkt:short", "x5t#S256:" + thumb + "=", thumb, "jwk:" + thumb} {
		odd := task("acme", tasks.NewID())
		odd.Bound = bound
		if _, err := r.Start(t.Context(), odd); err == nil {
			t.Errorf("bound to %q, it starts", bound)
		}
	}
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
	thumb := strings.Repeat("A", 43)
	deep := func(n int) m {
		act := m{"sub": "a"}
		for range n - 1 {
			act = m{"sub": "a", "act": act}
		}
		return act
	}
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
		"bound to nothing":              sign(key, jose.EdDSA, ours, with(m{"cnf": m{}})),
		"bound to two keys":             sign(key, jose.EdDSA, ours, with(m{"cnf": m{"jkt": thumb, "x5t#S256": thumb}})),
		"bound in a way unknown here":   sign(key, jose.EdDSA, ours, with(m{"cnf": m{"jkt": thumb, "jwk": "x"}})),
		"bound to no thumbprint":        sign(key, jose.EdDSA, ours, with(m{"cnf": m{"jkt": "short"}})),
		"bound to a list":               sign(key, jose.EdDSA, ours, with(m{"cnf": []string{thumb}})),
		"a chain of nobody":             sign(key, jose.EdDSA, ours, with(m{"act": m{"sub": ""}})),
		"a chain too deep":              sign(key, jose.EdDSA, ours, with(m{"act": deep(17)})),
		"a chain far too deep":          sign(key, jose.EdDSA, ours, with(m{"act": deep(400)})),
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
	f.Add(`{"iss":"i","aud":"a","sub":"x","owner":"o","jti":"j","iat":1,"nbf":1,"exp":9999999999,"tid":"acme","task":"t","act":{"sub":"y","act":{"sub":"z"}},"cnf":{"jkt":"` + strings.Repeat("A", 43) + `"}}`)
	s := redistest.Embedded(f)
	_, key, _ := ed25519.GenerateKey(nil)
	sum := sha256.Sum256(key.Public().(ed25519.PublicKey))
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: jose.JSONWebKey{Key: key, KeyID: hex.EncodeToString(sum[:16])}},
		(&jose.SignerOptions{}).WithType("tbtask+jwt"))
	if err != nil {
		f.Fatal(err)
	}
	r, err := tasks.New(tasks.Config{Store: s.Open(f, "acme"), Recorder: &gatewaytest.Facts{}, SigningKey: key, Issuer: "i", Audience: "a"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		if p, err := r.VerifyToken(raw); !errors.Is(err, gateway.ErrUnidentified) || p.ID != "" {
			t.Errorf("%q is %+v", raw, p)
		}
		// The same as what a key of ours signed: refused, or somebody whole.
		signed, err := signer.Sign([]byte(raw))
		if err != nil {
			t.Fatal(err)
		}
		token, err := signed.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		p, err := r.VerifyToken(token)
		if err != nil {
			if !errors.Is(err, gateway.ErrUnidentified) || p.ID != "" {
				t.Errorf("claims %q: %+v, %v", raw, p, err)
			}
			return
		}
		if p.ID == "" || p.Tenant != "acme" || p.Owner == "" || !redis.ValidID(p.Task) || p.Expires.Before(time.Now()) || len(p.Chain) > 16 || slices.Contains(p.Chain, "") ||
			p.Bound != "" && !strings.HasPrefix(p.Bound, "jkt:") && !strings.HasPrefix(p.Bound, "x5t#S256:") {
			t.Errorf("claims %q are %+v", raw, p)
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
