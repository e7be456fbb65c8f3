package config

import (
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

var (
	issuerKinds = []string{"oidc", "kubernetes", "spiffe_jwt", "spiffe_x509", "mtls"}
	algorithms  = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
	vouched     = []string{"on_behalf_of", "purpose", "labels", "reference", "approvers"}
	template    = regexp.MustCompile(`^([A-Za-z0-9._:/@+=-]|\{[^{}]+\})*$`)
	certHash    = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	notWorkload = regexp.MustCompile(`(?i)^(operator|role|group|task):`)

	// Which kinds have a setting; the others refuse it.
	tokens, fetched, svids = []string{"oidc", "kubernetes", "spiffe_jwt"}, []string{"oidc", "kubernetes"}, []string{"spiffe_jwt", "spiffe_x509"}
	issuerSettings         = map[string][]string{
		"audiences": tokens, "issuer": fetched, "jwks_uri": fetched, "jwks_file": fetched, "ca": fetched, "token_file": fetched,
		"algorithms": fetched, "skew": tokens, "max_lifetime": tokens, "refresh": fetched, "scopes": fetched, "require_typ": fetched,
		"workload_api": svids, "trust_domains": svids, "bundles": svids, "cas": {"mtls"}, "allow": {"mtls"},
	}
)

func (c *Config) checkIdentity(d *decoder, operators []string) {
	d.count("identity.act_depth", c.Identity.ActDepth, 16)
	d.count("identity.verifications_per_second", c.Identity.VerificationsPerSecond, 1_000_000)
	var keys, names, urls []string
	for i, k := range c.Identity.APIKeys {
		key := fmt.Sprintf("identity.api_keys[%d]", i)
		keys = append(keys, k.ID)
		d.id(key+".id", k.ID)
		if k.Hash == "" {
			d.at(key+".hash", "make one with `toolbroker key new`", "is required")
		}
		if k.Principal == "" || len(k.Principal) > 256 {
			d.at(key+".principal", "such as agent:triage", "is required, of at most 256 bytes")
		}
		d.workload(key+".principal", k.Principal)
		d.oneOf(key+".tenant", k.Tenant, c.Tenants...)
		d.oneOf(key+".owner", k.Owner, operators...)
		if k.Expires.IsZero() {
			d.at(key+".expires", "such as 2027-01-31", "is required")
		}
		c.checkWord(d, key, k.DefaultTask, k.Vouches)
	}
	d.unique("identity.api_keys", "id", keys)
	for i, is := range c.Identity.Issuers {
		key := fmt.Sprintf("identity.issuers[%d]", i)
		names, urls = append(names, is.Name), append(urls, is.Issuer)
		d.id(key+".name", is.Name)
		d.oneOf(key+".kind", is.Kind, issuerKinds...)
		c.checkIssuer(d, key, is)
		if len(is.Rules) == 0 {
			d.at(key+".rules", "a credential that no rule names is nobody's", "at least one is required")
		}
		for j, r := range is.Rules {
			c.checkRule(d, fmt.Sprintf("%s.rules[%d]", key, j), r, operators)
		}
	}
	d.unique("identity.issuers", "name", names)
	d.unique("identity.issuers", "issuer", urls)
}

// checkWord checks what a credential says about tasks.
func (c *Config) checkWord(d *decoder, key, task string, vouches []string) {
	if task != "" {
		var kinds []string
		for _, k := range c.TaskKinds {
			kinds = append(kinds, k.Name)
		}
		d.oneOf(key+".default_task", task, kinds...)
	}
	for i, v := range vouches {
		d.oneOf(fmt.Sprintf("%s.vouches[%d]", key, i), v, vouched...)
	}
}

func (c *Config) checkIssuer(d *decoder, key string, is Issuer) {
	for _, setting := range slices.Sorted(maps.Keys(issuerSettings)) {
		if kinds := issuerSettings[setting]; d.has(key+"."+setting) && slices.Contains(issuerKinds, is.Kind) && !slices.Contains(kinds, is.Kind) {
			d.at(key+"."+setting, "it belongs to kind "+strings.Join(kinds, ", "), "means nothing to kind %s", is.Kind)
		}
	}
	if slices.Contains(tokens, is.Kind) && (len(is.Audiences) == 0 || slices.Contains(is.Audiences, "")) {
		d.at(key+".audiences", "who we are to the issuer, such as https://tools.example.com/mcp", "at least one is required")
	}
	d.within(key+".skew", is.Skew, 0, time.Minute, "")
	d.within(key+".refresh", is.Refresh, 10*time.Second, 24*time.Hour, "")
	d.within(key+".max_stale", is.MaxStale, is.Refresh, 7*24*time.Hour, "no less than refresh")
	d.require(key+".bound", is.Bound)
	switch is.Kind {
	case "oidc", "kubernetes":
		c.checkFetched(d, key, is)
	case "spiffe_jwt", "spiffe_x509":
		switch {
		case (is.WorkloadAPI != "") == (len(is.Bundles) > 0):
			d.at(key, "set workload_api, or bundles", "needs exactly one source of SPIFFE bundles")
		case is.WorkloadAPI != "" && len(is.TrustDomains) == 0:
			d.at(key+".trust_domains", "a Workload API also has those that are federated", "at least one is required")
		case len(is.Bundles) > 0 && len(is.TrustDomains) > 0:
			d.at(key+".trust_domains", "leave it out", "bundles name their trust domains themselves")
		}
	case "mtls":
		if len(is.CAs) == 0 {
			d.at(key+".cas", "PEM files of the authorities whose client certificates are taken", "at least one is required")
		}
		for i, a := range is.Allow {
			if !certHash.MatchString(a) {
				d.at(fmt.Sprintf("%s.allow[%d]", key, i), "write sha256: and 64 hex digits, of the certificate's DER", "is not a certificate's fingerprint")
			}
		}
	}
	if (is.Kind == "mtls" || is.Kind == "spiffe_x509") && c.Agent.TLS.Cert == "" {
		d.at(key+".kind", "set agent.tls: behind a TLS proxy no client certificate is seen", "needs TLS connections of agents' own")
	}
}

func (c *Config) checkFetched(d *decoder, key string, is Issuer) {
	if is.Issuer == "" {
		d.at(key+".issuer", "the issuer's URL, exactly as iss in its tokens", "is required")
	} else {
		d.safe(key+".issuer", is.Issuer)
	}
	if is.JWKSURI != "" {
		d.safe(key+".jwks_uri", is.JWKSURI)
		if is.JWKSFile != "" {
			d.at(key+".jwks_file", "leave one out", "jwks_uri is set as well")
		}
	}
	for i, a := range is.Algorithms {
		d.oneOf(fmt.Sprintf("%s.algorithms[%d]", key, i), a, algorithms...)
	}
}

func (c *Config) checkRule(d *decoder, key string, r Rule, operators []string) {
	for name, t := range map[string]string{"principal": r.Principal, "tenant": r.Tenant, "owner": r.Owner, "on_behalf_of": r.OnBehalfOf, "chain": r.Chain} {
		if t == "" && (name == "principal" || name == "tenant" || name == "owner") {
			d.at(key+"."+name, "a name, or one with {claim} in it", "is required")
		}
		if !template.MatchString(t) || len(t) > 256 {
			d.at(key+"."+name, "write letters, digits, . _ : / @ + = - and {claim}", "%q is not a template for a name", t)
		}
		d.workload(key+"."+name, t)
	}
	if r.Tenant != "" && !strings.Contains(r.Tenant, "{") {
		d.oneOf(key+".tenant", r.Tenant, c.Tenants...)
	}
	if r.Owner != "" && !strings.Contains(r.Owner, "{") {
		d.oneOf(key+".owner", r.Owner, operators...)
	}
	d.require(key+".bound", r.Bound)
	c.checkWord(d, key, r.DefaultTask, r.Vouches)
}

// workload refuses the names of other things.
func (d *decoder) workload(key, name string) {
	if notWorkload.MatchString(name) {
		d.at(key, "such as agent:triage", "%q is not a name for a workload or a human", name)
	}
}

func (d *decoder) require(key, s string) {
	if s != "" {
		d.oneOf(key, s, "require")
	}
}

// safe refuses a URL where somebody on the way could answer instead.
func (d *decoder) safe(key, s string) {
	d.url(key, s)
	if u, err := url.Parse(s); err == nil && u.Scheme == "http" && !Loopback(u.Hostname()) {
		d.at(key, "use https://", "would be plaintext off loopback")
	}
}

// ClientCertificates reports whether some issuer's workloads present one.
func (c *Config) ClientCertificates() bool {
	return slices.ContainsFunc(c.Identity.Issuers, func(is Issuer) bool { return is.Kind == "mtls" || is.Kind == "spiffe_x509" })
}
