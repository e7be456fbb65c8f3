package serve

import (
	"crypto/tls"
	"io"
	"testing"

	"toolbroker/cmd/toolbroker/internal/config"
)

// Agents are asked for a certificate where one could identify them, and may
// have none; elsewhere nobody is asked.
func TestAgentsAreAskedForACertificate(t *testing.T) {
	for name, kind := range map[string]string{"some issuer takes them": "mtls", "none does": ""} {
		t.Run(name, func(t *testing.T) {
			c, dir := newConfig(t, "")
			c.Agent.TLS = config.TLS{Cert: config.Path(dir + "/tls.crt"), Key: config.Path(dir + "/tls.key")}
			trust := newCertificate(t, dir)
			if kind != "" {
				c.Identity.Issuers = []config.Issuer{{Name: "partners", Kind: kind, CAs: []config.Path{config.Path(dir + "/tls.crt")},
					Rules: []config.Rule{{Principal: "partner:{cn}", Tenant: "acme", Owner: "alice"}}}}
			}
			h, _ := start(t, c, io.Discard)
			asked := false
			conn, err := tls.Dial("tcp", h.agents.Addr().String(), &tls.Config{RootCAs: trust, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				asked = true
				return &tls.Certificate{}, nil
			}})
			if err != nil {
				t.Fatal(err)
			}
			conn.Close()
			if asked != (kind != "") {
				t.Errorf("asked: %v", asked)
			}
		})
	}
}

// What the config says of an issuer is what the identity room gets.
func TestIssuersAreTheConfigs(t *testing.T) {
	c, problems := config.Load("../../../../config.example.yaml")
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	all := issuers(c)
	if len(all) != 5 {
		t.Fatalf("%d issuers", len(all))
	}
	corp, cluster, mesh, certs, partners := all[0], all[1], all[2], all[3], all[4]
	switch {
	case corp.URL != "https://login.example.com" || !corp.Bound || corp.RequireType != "at+jwt" || corp.Scopes[0] != "mcp" || corp.MaxLifetime.Hours() != 1:
		t.Errorf("%+v", corp)
	case corp.Rules[0].When["client_id"] != "agent-*" || corp.Rules[0].OnBehalfOf != "{sub}" || corp.Rules[0].Standing != "triage" || corp.Rules[0].Bound || !corp.Rules[1].Bound:
		t.Errorf("%+v", corp.Rules)
	case cluster.CAFile == "" || cluster.TokenFile == "" || cluster.JWKSURL == "" || cluster.Audiences[0] != "toolbroker":
		t.Errorf("%+v", cluster)
	case mesh.WorkloadAPI == "" || mesh.TrustDomains[0] != "corp.example", len(certs.Bundles) != 1, len(partners.CAFiles) != 1 || len(partners.Allow) != 1:
		t.Errorf("%+v", all[2:])
	}
	if k := apiKeys(c)[0]; k.Standing != "triage" || k.Vouches[0] != "reference" {
		t.Errorf("%+v", k)
	}
}
