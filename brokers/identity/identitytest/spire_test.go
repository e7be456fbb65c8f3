package identitytest_test

import (
	"testing"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"toolbroker/brokers/identity/identitytest"
)

// Both kinds of SVID come from the Workload API, and hold by the bundle that the
// server shows.
func TestSPIRE(t *testing.T) {
	s := identitytest.StartSPIRE(t)
	domain := spiffeid.RequireTrustDomainFromString(s.TrustDomain)
	bundle, err := spiffebundle.Parse(domain, s.Bundle())
	if err != nil {
		t.Fatal(err)
	}
	api := workloadapi.WithAddr(s.WorkloadAPI)

	certificate, err := workloadapi.FetchX509SVID(t.Context(), api)
	if err != nil {
		t.Fatal(err)
	}
	if id, _, err := x509svid.Verify(certificate.Certificates, bundle); err != nil || id.String() != s.ID {
		t.Errorf("X.509-SVID of %s: %v", id, err)
	}

	token, err := workloadapi.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "https://tools.example/mcp"}, api)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := jwtsvid.ParseAndValidate(token.Marshal(), bundle, []string{"https://tools.example/mcp"}); err != nil || got.ID.String() != s.ID {
		t.Errorf("JWT-SVID: %v", err)
	}
	if _, err := jwtsvid.ParseAndValidate(token.Marshal(), bundle, []string{"https://elsewhere.example"}); err == nil {
		t.Error("a JWT-SVID for somebody else is fine")
	}

	// Another entry is another SVID.
	s.Register("spiffe://example.org/agent/second")
	second := spiffeid.RequireFromString("spiffe://example.org/agent/second")
	if _, err := workloadapi.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "a", Subject: second}, api); err != nil {
		t.Error(err)
	}
}
