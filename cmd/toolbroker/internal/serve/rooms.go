package serve

import (
	"fmt"
	"runtime/debug"
	"slices"

	"toolbroker/authz"
	"toolbroker/brokers/identity"
	"toolbroker/brokers/operators"
	"toolbroker/brokers/secrets"
	"toolbroker/brokers/servers"
	"toolbroker/cmd/toolbroker/internal/config"
	"toolbroker/gateway"
)

// Each room's nouns, out of the config's.

func people(c *config.Config) []operators.Operator {
	var all []operators.Operator
	for _, o := range c.Operators {
		all = append(all, operators.Operator{PasswordHash: o.PasswordHash, Operator: gateway.Operator{
			Name: o.Name, Groups: o.Groups, Roles: o.Roles, Tenants: o.Tenants, Identities: o.Identities, Disabled: o.Disabled,
		}})
	}
	return all
}

func apiKeys(c *config.Config) []identity.APIKey {
	var all []identity.APIKey
	for _, k := range c.Identity.APIKeys {
		all = append(all, identity.APIKey{
			ID: k.ID, Hash: k.Hash, Tenant: k.Tenant, Principal: k.Principal, OnBehalfOf: k.OnBehalfOf, Owner: k.Owner, Expires: k.Expires,
			Standing: k.DefaultTask, Vouches: k.Vouches, StartsFor: k.StartsFor,
		})
	}
	return all
}

func issuers(c *config.Config) []identity.Issuer {
	var all []identity.Issuer
	for _, is := range c.Identity.Issuers {
		out := identity.Issuer{
			Name: is.Name, Kind: is.Kind, Bound: is.Bound != "", Audiences: is.Audiences,
			URL: is.Issuer, JWKSURL: is.JWKSURI, JWKSFile: string(is.JWKSFile), CAFile: string(is.CA), TokenFile: string(is.TokenFile),
			Algorithms: is.Algorithms, Skew: is.Skew, MaxLifetime: is.MaxLifetime, Refresh: is.Refresh, MaxStale: is.MaxStale,
			Scopes: is.Scopes, RequireType: is.RequireTyp, WorkloadAPI: is.WorkloadAPI, TrustDomains: is.TrustDomains, Allow: is.Allow,
		}
		for domain, file := range is.Bundles {
			if out.Bundles == nil {
				out.Bundles = map[string]string{}
			}
			out.Bundles[domain] = string(file)
		}
		for _, file := range is.CAs {
			out.CAFiles = append(out.CAFiles, string(file))
		}
		for _, r := range is.Rules {
			out.Rules = append(out.Rules, identity.Rule{
				When: r.When, Principal: r.Principal, Tenant: r.Tenant, Owner: r.Owner, OnBehalfOf: r.OnBehalfOf, Chain: r.Chain,
				Standing: r.DefaultTask, Vouches: r.Vouches, StartsFor: r.StartsFor, Bound: r.Bound != "",
			})
		}
		all = append(all, out)
	}
	return all
}

func names(all []config.Operator) []string {
	var out []string
	for _, o := range all {
		out = append(out, o.Name)
	}
	return out
}

func downstreams(c *config.Config, standIn bool) []servers.Server {
	var all []servers.Server
	for _, s := range c.Servers {
		d := servers.Server{
			Name: s.Name, Tenants: s.Tenants, URL: s.URL, Env: s.Env, Dir: string(s.Dir), Protocol: servers.Protocol(s.Protocol),
			Timeout: s.Timeout, MaxResponse: int64(s.MaxResponse), Meta: s.Meta, Allow: s.Allow, AllowPrivate: s.AllowPrivate,
			IdempotencyHeader: s.Idempotency.Header, IdempotencyMeta: s.Idempotency.Meta, TargetArg: s.TargetArgument, Class: s.Credential.Class,
			Trust: servers.Trust(s.Trust), Digest: s.Digest, User: s.User, Floating: s.Unsafe == "floating",
		}
		if standIn && d.Class != "" {
			d.Class = secrets.StandIn
		}
		if s.Command != "" {
			d.Command = append([]string{s.Command}, s.Args...)
		}
		if s.Prefix != "" {
			prefix := s.Prefix + "__"
			if s.Prefix == "none" {
				prefix = ""
			}
			d.Prefix = &prefix
		}
		all = append(all, d)
	}
	return all
}

// largest is the most bytes that some server may answer with.
func largest(c *config.Config) int {
	most := 4 << 20
	for _, s := range c.Servers {
		most = max(most, int(s.MaxResponse))
	}
	return most
}

func taskKinds(c *config.Config) ([]gateway.TaskKind, error) {
	var all []gateway.TaskKind
	for _, k := range c.TaskKinds {
		scope, err := scopeOf(k.Scope)
		if err != nil {
			return nil, fmt.Errorf("%s: task kind %s: scope: %w", c.File, k.Name, err)
		}
		var initial *authz.Scope
		if k.Initial != nil {
			if initial, err = scopeOf(k.Initial); err != nil {
				return nil, fmt.Errorf("%s: task kind %s: initial: %w", c.File, k.Name, err)
			}
		}
		all = append(all, gateway.TaskKind{
			Name: k.Name, Purpose: k.Purpose, TTL: k.TTL, Scope: scope, Initial: initial, Tenants: k.Tenants,
			Own: k.SelfStart, Parallel: k.Parallel, Bound: k.Bound, Plain: k.PlainReference, Escalate: k.Escalation,
			Budget: gateway.Budget{Calls: int64(k.Budget.Calls), PerDay: int64(k.Budget.CallsPerDay)},
			Limits: gateway.Limits{Depth: k.Delegation.Depth, FanOut: k.Delegation.FanOut},
		})
	}
	return all, nil
}

func scopeOf(rows []config.ScopeRow) (*authz.Scope, error) {
	out := make([]authz.ScopeRow, len(rows))
	for i, r := range rows {
		out[i] = authz.ScopeRow{Tool: r.Tool, Action: r.Action, When: r.When, Verdict: r.Verdict}
	}
	return authz.NewScope(out)
}

func vaultOf(c *config.Config) secrets.Vault {
	v := c.Vault
	if v.Address == "" {
		return secrets.Vault{}
	}
	auth := secrets.Auth{TokenFile: string(v.TokenFile)}
	if v.AppRole.RoleID != "" {
		auth.AppRole = &secrets.AppRole{Mount: v.AppRole.Mount, RoleID: v.AppRole.RoleID, SecretIDFile: string(v.AppRole.SecretIDFile), Wrapped: v.AppRole.Wrapped}
	}
	return secrets.Vault{Address: v.Address, CAFile: string(v.CA), Namespace: v.Namespace, Auth: auth, TokenRole: v.TokenRole, Policies: v.Policies}
}

func bindings(c *config.Config) []secrets.Binding {
	var all []secrets.Binding
	for _, s := range c.Servers {
		b := s.Credential
		if b.IsZero() {
			continue
		}
		class := b.Class
		if b.Engine == secrets.KV {
			class = "" // static, whatever is said
		}
		all = append(all, secrets.Binding{
			Server: s.Name, Tenants: s.Tenants, Engine: b.Engine, Mount: b.Mount, Path: b.Path, Params: b.Params, Class: class,
			Mode: b.Mode, Headers: b.Headers, Env: b.Env, TTL: b.TTL,
		})
	}
	return all
}

// build is the commit that the binary was made of, as Go stamped it.
func build() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return "unknown"
}

// authorizationServers are the issuers that an agent can get a token from by
// itself.
func authorizationServers(c *config.Config) (all []string) {
	for _, is := range c.Identity.Issuers {
		if is.Kind == "oidc" {
			all = append(all, is.Issuer)
		}
	}
	return all
}

// oauthScopes are those that some issuer's tokens must have.
func oauthScopes(c *config.Config) (all []string) {
	for _, is := range c.Identity.Issuers {
		all = append(all, is.Scopes...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}
