package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

var (
	id     = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)
	header = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	envar  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,63}$`)
	digest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	notID  = regexp.MustCompile(`[^a-z0-9-]+`)
)

// Roles an operator may have.
var roles = []string{"viewer", "approver", "admin", "auditor"}

// fill sets the defaults that follow from other settings.
func (c *Config) fill() {
	if c.Replica == "" {
		host, _ := os.Hostname()
		host = notID.ReplaceAllString(strings.ToLower(host), "-")
		c.Replica = strings.Trim(host[:min(len(host), 64)], "-")
	}
	if c.Replica == "" {
		c.Replica = "replica"
	}
	if c.SealKey == "" && c.DataDir != "" {
		c.SealKey = c.DataDir + "/seal.key"
	}
	if c.Audit.Dir == "" && c.DataDir != "" {
		c.Audit.Dir = c.DataDir + "/audit"
	}
	if c.Audit.Origin == "" {
		c.Audit.Origin = "toolbroker/" + c.Replica
	}
	for i := range c.Servers {
		if s := &c.Servers[i].Credential; s.Class == "" {
			s.Class = map[string]string{"kv": "static", "leased": "revocable"}[s.Engine]
		}
	}
}

func (c *Config) check(d *decoder) {
	if c.DataDir == "" {
		d.at("data_dir", "such as /var/lib/toolbroker", "is required")
	}
	d.id("replica", c.Replica)
	d.oneOf("agent.catalogue", c.Agent.Catalogue, "all", "search")
	d.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	c.checkListeners(d)
	c.checkState(d)
	if len(c.Tenants) == 0 {
		d.at("tenants", "such as [acme]", "at least one is required")
	}
	d.unique("tenants", "", c.Tenants)
	d.ids("tenants", c.Tenants)
	c.checkPeople(d)
	c.checkKinds(d)
	c.checkVault(d)
	c.checkServers(d)
	d.within("approvals.hold", c.Approvals.Hold, 0, 25*time.Second, "clients give up on a call that answers later")
	d.within("approvals.expire", c.Approvals.Expire, time.Second, 30*24*time.Hour, "")
	d.within("approvals.use_window", c.Approvals.UseWindow, time.Second, 24*time.Hour, "")
	if d.has("approvals.link") {
		d.url("approvals.link", c.Approvals.Link)
	}
	d.count("limits.calls_per_second", c.Limits.CallsPerSecond, 100_000)
	d.count("limits.held_per_principal", c.Limits.HeldPerPrincipal, 10_000)
	d.count("limits.held_per_tenant", c.Limits.HeldPerTenant, 100_000)
	d.count("limits.calls_under_way", c.Limits.UnderWay, 100_000)
	d.count("limits.calls_under_way_per_tenant", c.Limits.UnderWayTenant, 1_000_000)
	d.count("limits.sessions", c.Limits.Sessions, 100_000)
	d.count("limits.calls_per_tenant_per_day", c.Limits.TenantPerDay, 1_000_000_000)
}

func (c *Config) checkListeners(d *decoder) {
	taken := map[string]string{}
	listener := func(key, listen string, tls TLS, proxy string) {
		host, port, err := net.SplitHostPort(listen)
		if n, perr := strconv.Atoi(port); err != nil || perr != nil || n < 0 || n > 65535 {
			d.at(key+".listen", "write HOST:PORT, such as 127.0.0.1:8080", "%q is not an address", listen)
			return
		}
		if (tls.Cert == "") != (tls.Key == "") {
			d.at(key+".tls", "", "needs both cert and key")
		}
		if tls.Cert != "" && proxy != "" {
			d.at(key+".tls_proxy", "drop one of the two", "tls is set as well, so no proxy terminates it")
		}
		if !Loopback(host) && tls.Cert == "" && proxy == "" {
			d.at(key+".listen", "set tls, or name in tls_proxy what terminates TLS in front, or listen on 127.0.0.1",
				"%q would serve plaintext off loopback", listen)
		}
		if other := taken[listen]; other != "" && port != "0" {
			d.at(key+".listen", "every listener has an address of its own", "%s is %s's address already", listen, other)
		}
		taken[listen] = key
	}
	listener("agent", c.Agent.Listen, c.Agent.TLS, c.Agent.TLSProxy)
	listener("console", c.Console.Listen, c.Console.TLS, c.Console.TLSProxy)
	listener("management", c.Management.Listen, c.Management.TLS, c.Management.TLSProxy)
	public := func(key, u string, forwarded bool, proxy string, hosts []string) {
		if d.has(key + ".public_url") {
			d.url(key+".public_url", u)
		}
		if forwarded && proxy == "" {
			d.at(key+".trust_forwarded", "name it in tls_proxy", "there is no proxy whose word could be taken")
		}
		for i, h := range hosts {
			if strings.ContainsAny(h, "/ *") || h == "" {
				d.at(fmt.Sprintf("%s.hosts[%d]", key, i), "write the host as a Host header names it", "%q is not a host", h)
			}
		}
	}
	public("agent", c.Agent.PublicURL, c.Agent.TrustForwarded, c.Agent.TLSProxy, c.Agent.Hosts)
	public("console", c.Console.PublicURL, c.Console.TrustForwarded, c.Console.TLSProxy, c.Console.Hosts)
	if b := c.Agent.MaxBody; b < 1<<10 || b > 64<<20 {
		d.at("agent.max_body", "write a size from 1KiB to 64MiB", "is out of range")
	}
	for i, o := range c.Agent.Origins {
		if u, err := url.Parse(o); err != nil || u.Host == "" || u.Path != "" || (u.Scheme != "http" && u.Scheme != "https") {
			d.at(fmt.Sprintf("agent.origins[%d]", i), "write scheme://host, such as https://app.example.com", "%q is not an origin", o)
		}
	}
}

func (c *Config) checkState(d *decoder) {
	switch {
	case c.Redis.Embedded:
	case c.Redis.URL == "":
		d.at("redis", "write `redis: {url: rediss://HOST:PORT}`, or `redis: embedded` for one replica whose pending approvals end with it", "is required")
	default:
		u, err := url.Parse(c.Redis.URL)
		if err != nil || (u.Scheme != "redis" && u.Scheme != "rediss") || u.Host == "" {
			d.at("redis.url", "write redis://HOST:PORT or rediss://HOST:PORT", "is not the address of a Redis")
			break
		}
		if _, inline := u.User.Password(); inline {
			d.at("redis.url", "put it into a file and name that in password_file", "holds a password")
		}
		if u.Scheme == "redis" && !Loopback(u.Hostname()) && c.Redis.TLSProxy == "" {
			d.at("redis.url", "use rediss://, or name in tls_proxy what protects the way", "would speak plaintext off loopback")
		}
	}
	d.within("audit.checkpoint_every", c.Audit.CheckpointEvery, 10*time.Millisecond, 10*time.Minute, "")
	if strings.ContainsAny(c.Audit.Origin, " \t\n+") {
		d.at("audit.origin", "such as toolbroker.example.com/eu-1", "%q cannot name a log", c.Audit.Origin)
	}
	if c.Policy.File == "" {
		d.at("policy.file", "without a policy nothing is allowed", "is required")
	}
}

func (c *Config) checkPeople(d *decoder) {
	var names []string
	for _, o := range c.Operators {
		names = append(names, o.Name)
	}
	d.unique("operators", "name", names)
	if len(c.Operators) == 0 {
		d.at("operators", "every task and key has an accountable one", "at least one is required")
	}
	for i, o := range c.Operators {
		key := fmt.Sprintf("operators[%d]", i)
		d.id(key+".name", o.Name)
		if !strings.HasPrefix(o.PasswordHash, "$argon2id$") {
			d.at(key+".password_hash", "make one with `toolbroker operator hash-password`", "is not an argon2id hash")
		}
		d.ids(key+".groups", o.Groups)
		for j, r := range o.Roles {
			d.oneOf(fmt.Sprintf("%s.roles[%d]", key, j), r, roles...)
		}
		if len(o.Tenants) == 0 {
			d.at(key+".tenants", `name them, or "*" for all`, "at least one is required")
		}
		for j, t := range o.Tenants {
			if t != "*" {
				d.oneOf(fmt.Sprintf("%s.tenants[%d]", key, j), t, c.Tenants...)
			}
		}
	}
	c.checkIdentity(d, names)
}

func (c *Config) checkKinds(d *decoder) {
	var names []string
	for i, k := range c.TaskKinds {
		key := fmt.Sprintf("task_kinds[%d]", i)
		names = append(names, k.Name)
		d.id(key+".name", k.Name)
		d.within(key+".ttl", k.TTL, time.Second, 30*24*time.Hour, "")
		for j, t := range k.Tenants {
			d.oneOf(fmt.Sprintf("%s.tenants[%d]", key, j), t, c.Tenants...)
		}
		if len(k.Scope) == 0 {
			d.at(key+".scope", "such as [{tool: 'tracker/*', action: call, verdict: allow}]", "at least one row is required")
		}
		d.rows(key+".scope", k.Scope)
		d.rows(key+".initial", k.Initial)
		for name, n := range map[string]int{"calls": k.Budget.Calls, "calls_per_day": k.Budget.CallsPerDay} {
			if d.has(key + ".budget." + name) {
				d.count(key+".budget."+name, n, 1_000_000_000)
			}
		}
		if d.has(key + ".delegation") {
			if !d.has(key+".delegation.depth") || !d.has(key+".delegation.fan_out") {
				d.at(key+".delegation", "leave it out for none", "needs both depth and fan_out")
			} else {
				d.count(key+".delegation.depth", k.Delegation.Depth, 8)
				d.count(key+".delegation.fan_out", k.Delegation.FanOut, 256)
			}
		}
		if d.has(key + ".escalation") {
			d.within(key+".escalation", k.Escalation, time.Second, k.TTL, "it ends with the task")
		}
	}
	d.unique("task_kinds", "name", names)
}

func (c *Config) checkVault(d *decoder) {
	v := c.Vault
	if v.Address == "" {
		if d.has("vault") {
			d.at("vault.address", "such as https://vault.example.com:8200", "is required")
		}
		return
	}
	d.url("vault.address", v.Address)
	if u, err := url.Parse(v.Address); err == nil && u.Scheme == "http" && !Loopback(u.Hostname()) {
		d.at("vault.address", "use https://", "would speak plaintext off loopback")
	}
	approle := v.AppRole.RoleID != "" || v.AppRole.SecretIDFile != ""
	switch {
	case v.TokenFile == "" && !approle:
		d.at("vault", "set token_file, or approle", "says no way to log in")
	case v.TokenFile != "" && approle:
		d.at("vault.approle", "drop one of the two", "token_file is set as well")
	case approle && (v.AppRole.RoleID == "" || v.AppRole.SecretIDFile == ""):
		d.at("vault.approle", "", "needs both role_id and secret_id_file")
	}
	if v.TokenRole == "" && len(v.Policies) == 0 {
		d.at("vault", "set token_role, or policies", "does not say what a task's token may read")
	}
}

func (c *Config) checkServers(d *decoder) {
	var names []string
	for i, s := range c.Servers {
		key := fmt.Sprintf("servers[%d]", i)
		names = append(names, s.Name)
		d.id(key+".name", s.Name)
		if s.Name == "toolbroker" {
			d.at(key+".name", "choose another", "is the gateway's own name")
		}
		for j, t := range s.Tenants {
			d.oneOf(fmt.Sprintf("%s.tenants[%d]", key, j), t, c.Tenants...)
		}
		switch {
		case (s.URL == "") == (s.Command == ""):
			d.at(key, "", "needs either url or command")
		case s.URL != "":
			d.url(key+".url", s.URL)
			if len(s.Args) > 0 || len(s.Env) > 0 || s.Dir != "" || s.Digest != "" || s.User != "" || s.Unsafe != "" {
				d.at(key, "args, env, dir, digest, user and unsafe are a command's", "has a url")
			}
		default:
			for name := range s.Env {
				if !envar.MatchString(name) {
					d.at(join(key+".env", name), "", "is not a name for an environment variable")
				}
			}
		}
		d.oneOf(key+".protocol", s.Protocol, "auto", "legacy", "modern", "sse")
		if s.Idempotency.Header != "" && s.Idempotency.Meta != "" {
			d.at(key+".idempotency", "", "needs either header or meta")
		}
		for j, network := range s.Allow {
			if _, err := netip.ParsePrefix(network); err != nil {
				d.at(fmt.Sprintf("%s.allow[%d]", key, j), "such as 10.1.0.0/16", "is not a network")
			}
		}
		d.oneOf(key+".trust", s.Trust, "first_use", "review")
		if s.Digest != "" && !digest.MatchString(s.Digest) {
			d.at(key+".digest", "write sha256: and the 64 hex digits that sha256sum prints", "is not a digest")
		}
		if s.Unsafe != "" {
			d.oneOf(key+".unsafe", s.Unsafe, "floating")
		}
		d.within(key+".timeout", s.Timeout, 100*time.Millisecond, time.Hour, "")
		if s.MaxResponse < 1<<10 || s.MaxResponse > 256<<20 {
			d.at(key+".max_response", "write a size from 1KiB to 256MiB", "is out of range")
		}
		if !s.Credential.IsZero() || d.has(key+".credential") {
			c.checkCredential(d, key+".credential", s)
		}
	}
	d.unique("servers", "name", names)
}

func (c *Config) checkCredential(d *decoder, key string, s Server) {
	b := s.Credential
	d.oneOf(key+".engine", b.Engine, "kv", "leased")
	if b.Mount == "" || b.Path == "" {
		d.at(key, "", "needs both mount and path")
	}
	switch b.Engine {
	case "kv":
		d.oneOf(key+".class", b.Class, "static")
	case "leased":
		d.oneOf(key+".class", b.Class, "revocable", "ttl-bound")
	}
	d.oneOf(key+".mode", b.Mode, "call", "task")
	if c.Vault.Address == "" {
		d.at(key, "set vault", "there is no Vault to get it from")
	}
	if s.URL != "" {
		if len(b.Headers) == 0 || len(b.Env) > 0 {
			d.at(key, "such as {Authorization: 'Bearer {{.token}}'}", "a server with a url takes it in headers, not env")
		}
		if u, err := url.Parse(s.URL); err == nil && u.Scheme == "http" && !Loopback(u.Hostname()) {
			d.at(key, "use https:// in url", "would send a credential in plaintext off loopback")
		}
	}
	if s.Command != "" {
		if len(b.Env) == 0 || len(b.Headers) > 0 {
			d.at(key, "such as {TOKEN: '{{.token}}'}", "a child takes it in env, not headers")
		}
		if b.Mode == "call" {
			d.at(key+".mode", "use task", "a child lives as long as its task, so its credential cannot be one per call")
		}
	}
	for name := range b.Headers {
		if !header.MatchString(name) {
			d.at(join(key+".headers", name), "", "is not a header's name")
		}
	}
	for name := range b.Env {
		if !envar.MatchString(name) {
			d.at(join(key+".env", name), "", "is not a name for an environment variable")
		}
	}
}

// rows looks for what a scope's row cannot lack; whoever compiles it does the rest.
func (d *decoder) rows(key string, rows []ScopeRow) {
	for i, r := range rows {
		row := fmt.Sprintf("%s[%d]", key, i)
		for name, v := range map[string]string{"tool": r.Tool, "action": r.Action, "verdict": r.Verdict} {
			if v == "" {
				d.at(row+"."+name, "", "is required")
			}
		}
	}
}

func (d *decoder) id(key, s string) {
	if !id.MatchString(s) {
		d.at(key, "use lower-case letters, digits and -, at most 64", "%q is not a name", s)
	}
}

func (d *decoder) ids(key string, all []string) {
	for i, s := range all {
		d.id(fmt.Sprintf("%s[%d]", key, i), s)
	}
}

func (d *decoder) oneOf(key, s string, known ...string) {
	if !slices.Contains(known, s) {
		if s == "" && !d.has(key) {
			d.at(key, suggest(s, known), "is required")
			return
		}
		d.at(key, suggest(s, known), "%q is not one of those known", s)
	}
}

func (d *decoder) within(key string, v, low, high time.Duration, why string) {
	if v < low || v > high {
		hint := fmt.Sprintf("write %v to %v", low, high)
		if why != "" {
			hint += ": " + why
		}
		d.at(key, hint, "%v is out of range", v)
	}
}

func (d *decoder) count(key string, n, high int) {
	if n < 1 || n > high {
		d.at(key, fmt.Sprintf("write 1 to %d", high), "%d is out of range", n)
	}
}

func (d *decoder) url(key, s string) {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https"):
		d.at(key, "write http://HOST[:PORT][/PATH] or https://", "%q is not a URL", s)
	case u.User != nil:
		d.at(key, "name a file that holds it instead", "holds a credential")
	}
}

func (d *decoder) unique(key, field string, names []string) {
	first := map[string]int{}
	for i, n := range names {
		at := fmt.Sprintf("%s[%d]", key, i)
		if field != "" {
			at += "." + field
		}
		if before, ok := first[n]; ok && n != "" {
			d.at(at, fmt.Sprintf("%s[%d] has it already", key, before), "%q is taken", n)
			continue
		}
		first[n] = i
	}
}

// Loopback reports whether a listener or peer of that host can only be this machine's.
func Loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}
