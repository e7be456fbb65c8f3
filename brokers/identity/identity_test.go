package identity_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"toolbroker/brokers/identity"
	"toolbroker/gateway"
)

var epoch = time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)

func newKey(t testing.TB, id string) (string, identity.APIKey) {
	key, hash, err := identity.NewKey(id)
	if err != nil {
		t.Fatal(err)
	}
	return key.Reveal(), identity.APIKey{ID: id, Hash: hash, Tenant: "acme", Principal: "agent:a", OnBehalfOf: "ann", Owner: "alice", Expires: epoch.Add(time.Hour)}
}

func TestAPIKeys(t *testing.T) {
	now := epoch
	raw, key := newKey(t, "a-1")
	other, _ := newKey(t, "a-1")
	i, err := identity.New(identity.Config{Keys: []identity.APIKey{key}, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	p, err := i.Identify(t.Context(), gateway.Credential{Bearer: gateway.NewSecret(raw)})
	if err != nil || p.ID != "agent:a" || p.Tenant != "acme" || p.OnBehalfOf != "ann" || p.Owner != "alice" || p.Credential != "a-1" || p.Task != "" {
		t.Fatalf("%+v %v", p, err)
	}
	for name, bearer := range map[string]string{
		"nothing":              "",
		"another key":          other,
		"an unknown name":      strings.Replace(raw, "a-1", "a-2", 1),
		"in capitals":          strings.ToUpper(raw),
		"with a space":         raw + " ",
		"cut":                  raw[:len(raw)-1],
		"its hash":             key.Hash,
		"the zero key":         "tbk__",
		"something else":       "Basic abc",
		"a token, unsupported": "a.b.c",
		"a megabyte":           "tbk_" + strings.Repeat("a", 1<<20),
	} {
		if _, err := i.Identify(t.Context(), gateway.Credential{Bearer: gateway.NewSecret(bearer)}); !errors.Is(err, gateway.ErrUnidentified) {
			t.Errorf("%s: %v", name, err)
		} else if len(bearer) > 8 && strings.Contains(err.Error(), bearer) {
			t.Errorf("%s: the error holds the token", name)
		}
	}
	now = key.Expires
	if _, err := i.Identify(t.Context(), gateway.Credential{Bearer: gateway.NewSecret(raw)}); !errors.Is(err, gateway.ErrUnidentified) {
		t.Errorf("expired: %v", err)
	}
}

func TestTaskTokens(t *testing.T) {
	now, asked := epoch, 0
	good, bad := unsigned(`{"typ":"tbtask+jwt"}`, `{"a":1}`), unsigned(`{"typ":"tbtask+jwt"}`, `{"a":2}`)
	i, err := identity.New(identity.Config{Now: func() time.Time { return now }, TaskTokens: func(raw string) (gateway.Principal, error) {
		asked++
		if raw != good {
			return gateway.Principal{}, errors.New("bad signature")
		}
		return gateway.Principal{ID: "agent:a", Tenant: "acme", Task: "task-1", Expires: epoch.Add(time.Minute)}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if p, err := i.Identify(t.Context(), bearer(good)); err != nil || p.Task != "task-1" {
			t.Fatalf("%+v %v", p, err)
		}
	}
	if asked != 1 {
		t.Errorf("verified %d times", asked)
	}
	for range 2 {
		if _, err := i.Identify(t.Context(), bearer(bad)); why(err) != gateway.WhySignature {
			t.Errorf("bad: %v", err)
		}
	}
	if asked != 3 {
		t.Error("a refusal is remembered")
	}
	now = epoch.Add(time.Minute)
	if _, err := i.Identify(t.Context(), bearer(good)); why(err) != gateway.WhyExpired {
		t.Errorf("a remembered token outlives itself: %v", err)
	}
}

func TestKeysThatAreNone(t *testing.T) {
	_, good := newKey(t, "a")
	for name, change := range map[string]func(*identity.APIKey){
		"no hash":                        func(k *identity.APIKey) { k.Hash = "" },
		"md5":                            func(k *identity.APIKey) { k.Hash = "md5:00" },
		"it vouches for what nobody can": func(k *identity.APIKey) { k.Vouches = []string{"everything"} },
		"no owner":                       func(k *identity.APIKey) { k.Owner = "" },
		"no tenant":                      func(k *identity.APIKey) { k.Tenant = "" },
		"for ever":                       func(k *identity.APIKey) { k.Expires = time.Time{} },
	} {
		k := good
		change(&k)
		if _, err := identity.New(identity.Config{Keys: []identity.APIKey{k}}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := identity.New(identity.Config{Keys: []identity.APIKey{good, good}}); err == nil {
		t.Error("one key twice: accepted")
	}
	if _, _, err := identity.NewKey("No Good"); err == nil {
		t.Error("a name with a space: accepted")
	}
}

// Whatever is presented, only the key itself is let in, and nothing panics.
func FuzzIdentify(f *testing.F) {
	raw, key := newKey(f, "a")
	i, err := identity.New(identity.Config{Keys: []identity.APIKey{key}, Now: func() time.Time { return epoch },
		TaskTokens: func(string) (gateway.Principal, error) { return gateway.Principal{}, gateway.ErrUnidentified }})
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{raw, raw[:20], "a.b.c", "tbk_", "tbk_a_", "tbk_a_aaaaaaaaaaaaaaaaaaaaaaaaaa"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := i.Identify(t.Context(), gateway.Credential{Bearer: gateway.NewSecret(s)}); err == nil && s != raw {
			t.Fatalf("%q is let in", s)
		}
	})
}
