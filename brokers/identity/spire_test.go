package identity_test

import (
	"context"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"toolbroker/brokers/identity"
	"toolbroker/brokers/identity/identitytest"
	"toolbroker/gateway"
)

// A workload that a real SPIRE attests is itself by either kind of SVID, and by
// its own name only.
func TestASPIREWorkload(t *testing.T) {
	s := identitytest.StartSPIRE(t)
	const us = "https://tools.example/mcp"
	issuer := func(name, kind string) identity.Issuer {
		is := identity.Issuer{Name: name, Kind: kind, WorkloadAPI: s.WorkloadAPI, TrustDomains: []string{s.TrustDomain}, Rules: []identity.Rule{{
			When: map[string]string{"sub": "spiffe://" + s.TrustDomain + "/agent/*"}, Principal: "{sub}", Tenant: "acme", Owner: "alice",
		}}}
		if kind == gateway.AuthnJWTSVID {
			is.Audiences = []string{us}
		}
		return is
	}
	i, err := identity.New(configOf(newClock(), issuer("jwt", gateway.AuthnJWTSVID), issuer("x509", gateway.AuthnX509SVID)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = i.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })

	api := workloadapi.WithAddr(s.WorkloadAPI)
	token := func(audience, subject string) gateway.Credential {
		svid, err := workloadapi.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: audience, Subject: spiffeid.RequireFromString(subject)}, api)
		if err != nil {
			t.Fatal(err)
		}
		return bearer(svid.Marshal())
	}
	certificate, err := workloadapi.FetchX509SVID(t.Context(), api)
	if err != nil {
		t.Fatal(err)
	}
	var p gateway.Principal
	await(t, "the trust bundle", func() bool { p, err = ask(t, i, token(us, s.ID)); return err == nil })
	if p.ID != s.ID || p.Authn != gateway.AuthnJWTSVID || p.Bound != "" {
		t.Errorf("by JWT-SVID: %+v", p)
	}
	if p, err = ask(t, i, gateway.Credential{Proof: gateway.Proof{Peer: certificate.Certificates}}); err != nil || p.ID != s.ID || p.Authn != gateway.AuthnX509SVID || p.Bound == "" {
		t.Errorf("by X.509-SVID: %+v, %v", p, err)
	}
	if _, err := ask(t, i, token("https://elsewhere.example", s.ID)); why(err) != gateway.WhyAudience {
		t.Errorf("for somebody else: %v", err)
	}
	s.Register("spiffe://" + s.TrustDomain + "/job/other")
	if _, err := ask(t, i, token(us, "spiffe://"+s.TrustDomain+"/job/other")); why(err) != gateway.WhyMapping {
		t.Errorf("whom no rule names: %v", err)
	}
}
