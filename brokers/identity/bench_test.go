package identity_test

import (
	"fmt"
	"testing"
	"time"

	"toolbroker/brokers/identity"
	"toolbroker/gateway"
)

func BenchmarkIdentifyKey(b *testing.B) {
	raw, key := newKey(b, "a")
	i, _ := identity.New(identity.Config{Keys: []identity.APIKey{key}, Now: func() time.Time { return epoch }})
	s := bearer(raw)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := i.Identify(b.Context(), s); err != nil {
			b.Fatal(err)
		}
	}
}

// With 50,000 other tokens remembered, as a busy replica has.
func BenchmarkIdentifyCachedJWT(b *testing.B) {
	c := newClock()
	idp := newIssuer(b, c)
	conf := configOf(c, idp.config())
	conf.TaskTokens = func(string) (gateway.Principal, error) {
		return gateway.Principal{ID: "agent:a", Expires: c.now().Add(1e12)}, nil
	}
	i, err := identity.New(conf)
	if err != nil {
		b.Fatal(err)
	}
	for n := range 50_000 {
		if _, err := i.Identify(b.Context(), bearer(unsigned(`{"typ":"tbtask+jwt"}`, fmt.Sprintf(`{"n":%d}`, n)))); err != nil {
			b.Fatal(err)
		}
	}
	s := bearer(idp.token(nil))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := i.Identify(b.Context(), s); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkIdentifyDPoP(b *testing.B) {
	c := newClock()
	idp := newIssuer(b, c)
	i := open(b, c, idp.config())
	h := holder{b, c, newEC(b)}
	raw := idp.token(m{"cnf": m{"jkt": thumb(b, h.key.Public())}})
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		cred := dpop(raw, h.proof(raw, nil))
		b.StartTimer()
		if _, err := i.Identify(b.Context(), cred); err != nil {
			b.Fatal(err)
		}
	}
}
