package serve

import (
	"fmt"
	"runtime/debug"

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
			Name: o.Name, Groups: o.Groups, Roles: o.Roles, Tenants: o.Tenants, Identities: o.Identities,
		}})
	}
	return all
}

func apiKeys(c *config.Config) []identity.APIKey {
	var all []identity.APIKey
	for _, k := range c.Identity.APIKeys {
		all = append(all, identity.APIKey{
			ID: k.ID, Hash: k.Hash, Tenant: k.Tenant, Principal: k.Principal, OnBehalfOf: k.OnBehalfOf, Owner: k.Owner, Expires: k.Expires,
		})
	}
	return all
}

func downstreams(c *config.Config, standIn bool) []servers.Server {
	var all []servers.Server
	for _, s := range c.Servers {
		d := servers.Server{
			Name: s.Name, Tenants: s.Tenants, URL: s.URL, Env: s.Env, Dir: string(s.Dir), Protocol: servers.Protocol(s.Protocol),
			Timeout: s.Timeout, MaxResponse: int64(s.MaxResponse), Meta: s.Meta, TargetArg: s.TargetArgument, Class: s.Credential.Class,
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

func taskKinds(c *config.Config) ([]gateway.TaskKind, error) {
	var all []gateway.TaskKind
	for _, k := range c.TaskKinds {
		rows := make([]authz.ScopeRow, len(k.Scope))
		for i, r := range k.Scope {
			rows[i] = authz.ScopeRow{Tool: r.Tool, Action: r.Action, When: r.When, Verdict: r.Verdict}
		}
		scope, err := authz.NewScope(rows)
		if err != nil {
			return nil, fmt.Errorf("%s: task kind %s: scope: %w", c.File, k.Name, err)
		}
		all = append(all, gateway.TaskKind{Name: k.Name, Purpose: k.Purpose, TTL: k.TTL, Scope: scope, Tenants: k.Tenants})
	}
	return all, nil
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
