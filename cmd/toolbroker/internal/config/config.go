// Package config reads toolbroker's one YAML file: every setting is a field
// below, an unknown key or a bad value is refused with its line, what is wrong
// and what may have been meant.
//
// It opens nothing and starts nothing; secrets are only ever named by the file
// that holds them.
package config

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v4"
)

// Config is the file. Paths in it are relative to the file's own directory and
// absolute once loaded.
type Config struct {
	DataDir    Path       `yaml:"data_dir"`   // this replica's own files; created 0700
	SealKey    Path       `yaml:"seal_key"`   // what lies in Redis is sealed with it; the same on every replica; default: seal.key under data_dir
	Replica    string     `yaml:"replica"`    // this process's name among the replicas; default: the host's
	Log        Log        `yaml:"log"`        // what goes to standard error
	Agent      Listener   `yaml:"agent"`      // the agents' door: /mcp and /v1/tasks
	Console    Console    `yaml:"console"`    // the operators' page and the admin API
	Management Management `yaml:"management"` // /healthz, /readyz, /metrics
	Redis      Redis      `yaml:"redis"`      // state shared by the replicas
	Audit      Audit      `yaml:"audit"`      // the log
	Policy     Policy     `yaml:"policy"`     // what may be done
	Tenants    []string   `yaml:"tenants"`    // the worlds kept apart
	Identity   Identity   `yaml:"identity"`   // who may ask
	Operators  []Operator `yaml:"operators"`  // who answers
	TaskKinds  []TaskKind `yaml:"task_kinds"` // what may be worked on
	Approvals  Approvals  `yaml:"approvals"`  // how long a human may take
	Limits     Limits     `yaml:"limits"`     // how much one caller may do
	Vault      Vault      `yaml:"vault"`      // where credentials come from
	Servers    []Server   `yaml:"servers"`    // the tools' servers

	File string `yaml:"-"` // where it was read
	Hash string `yaml:"-"` // "sha256:<hex>" of the file's bytes, for the record

	path  string         // the file, as it was named
	lines map[string]int // where each key stands
}

// Log is about the process's own log, not the audit log.
type Log struct {
	Level string `yaml:"level"` // debug, info, warn or error
}

// TLS is a listener's certificate.
type TLS struct {
	Cert Path `yaml:"cert"` // PEM, the chain
	Key  Path `yaml:"key"`  // PEM, 0600
}

// Listener is the agents' door.
type Listener struct {
	Listen         string   `yaml:"listen"`     // HOST:PORT
	PublicURL      string   `yaml:"public_url"` // what agents type, without /mcp; default: made from listen
	TLS            TLS      `yaml:"tls"`
	TLSProxy       string   `yaml:"tls_proxy"`       // who terminates TLS in front, if not we
	TrustForwarded bool     `yaml:"trust_forwarded"` // the proxy appends its peer to X-Forwarded-For
	Hosts          []string `yaml:"hosts"`           // Host headers answered, beside the listener's own
	Origins        []string `yaml:"origins"`         // Origin headers answered, beside the listener's own
	MaxBody        Size     `yaml:"max_body"`        // of one request
	Catalogue      string   `yaml:"catalogue"`       // how tools are shown: all, or search
}

// Console is the operators' listener.
type Console struct {
	Listen         string   `yaml:"listen"`
	PublicURL      string   `yaml:"public_url"`
	TLS            TLS      `yaml:"tls"`
	TLSProxy       string   `yaml:"tls_proxy"`
	TrustForwarded bool     `yaml:"trust_forwarded"`
	Hosts          []string `yaml:"hosts"`
}

// Management is the listener for probes and metrics.
type Management struct {
	Listen   string `yaml:"listen"`
	TLS      TLS    `yaml:"tls"`
	TLSProxy string `yaml:"tls_proxy"`
}

// Redis is the word "embedded", or how to reach a server.
type Redis struct {
	Embedded     bool   `yaml:"-"`             // the config says `redis: embedded`
	URL          string `yaml:"url"`           // redis:// or rediss://, without a password
	Username     string `yaml:"username"`      // of Redis' ACL
	PasswordFile Path   `yaml:"password_file"` // 0600
	CA           Path   `yaml:"ca"`            // PEM; default: the system's
	TLSProxy     string `yaml:"tls_proxy"`     // what protects the way to a plaintext Redis off loopback
}

// Audit is the append-only log.
type Audit struct {
	Dir             Path          `yaml:"dir"`              // default: audit under data_dir
	Origin          string        `yaml:"origin"`           // the log's name in its checkpoints; default: toolbroker/<replica>
	CheckpointEvery time.Duration `yaml:"checkpoint_every"` // how often the tree's head is signed
	SyncOutcomes    bool          `yaml:"sync_outcomes"`    // also wait for the disk before a reply leaves
}

// Policy is the Casbin policy file.
type Policy struct {
	File  Path `yaml:"file"`
	Model Path `yaml:"model"` // the model.conf it was written for; only the built-in one is accepted
	Watch bool `yaml:"watch"` // reload when the file changes; SIGHUP always does
}

// Identity is who may ask.
type Identity struct {
	APIKeys                []APIKey `yaml:"api_keys"`
	Issuers                []Issuer `yaml:"issuers"`                  // who else vouches for workloads
	ActDepth               int      `yaml:"act_depth"`                // how many actors a token may nest
	VerificationsPerSecond int      `yaml:"verifications_per_second"` // of tokens that were not seen before, all callers together
}

// Issuer vouches for workloads: by tokens, by SVIDs, by certificates.
type Issuer struct {
	Name  string `yaml:"name"`  // on record
	Kind  string `yaml:"kind"`  // oidc, kubernetes, spiffe_jwt, spiffe_x509 or mtls
	Bound string `yaml:"bound"` // "require": only credentials that are bound to a key
	Rules []Rule `yaml:"rules"` // whom its credentials stand for

	Audiences   []string      `yaml:"audiences"`    // who we are to it
	Issuer      string        `yaml:"issuer"`       // its URL: iss, exactly
	JWKSURI     string        `yaml:"jwks_uri"`     // where its keys are; default: as its metadata says
	JWKSFile    Path          `yaml:"jwks_file"`    // or a file that holds them
	CA          Path          `yaml:"ca"`           // PEM; default: the system's
	TokenFile   Path          `yaml:"token_file"`   // a token to fetch them with
	Algorithms  []string      `yaml:"algorithms"`   // that tokens may be signed with
	Skew        time.Duration `yaml:"skew"`         // how far clocks may be apart
	MaxLifetime time.Duration `yaml:"max_lifetime"` // of a token; zero for any
	Refresh     time.Duration `yaml:"refresh"`      // how often keys are fetched again
	MaxStale    time.Duration `yaml:"max_stale"`    // how long keys count that cannot be fetched again
	Scopes      []string      `yaml:"scopes"`       // that a token must have, all of them
	RequireTyp  string        `yaml:"require_typ"`  // the typ a token must have

	WorkloadAPI  string          `yaml:"workload_api"`  // where SPIFFE bundles come from
	TrustDomains []string        `yaml:"trust_domains"` // those taken from there
	Bundles      map[string]Path `yaml:"bundles"`       // or files, by trust domain

	CAs   []Path   `yaml:"cas"`   // PEM: whose client certificates are taken
	Allow []string `yaml:"allow"` // if any, only these certificates, by sha256:<hex>
}

// Rule says whom a credential stands for; {claim} inserts a claim.
type Rule struct {
	When        map[string]string `yaml:"when"` // claim: glob; all must match
	Principal   string            `yaml:"principal"`
	Tenant      string            `yaml:"tenant"`
	Owner       string            `yaml:"owner"`        // the operator accountable
	OnBehalfOf  string            `yaml:"on_behalf_of"` // the human it acts for
	Chain       string            `yaml:"chain"`        // how each earlier actor is named
	DefaultTask string            `yaml:"default_task"` // the kind of task it is on where it names none
	Vouches     []string          `yaml:"vouches"`      // which claims about a task its word proves
	StartsFor   []string          `yaml:"starts_for"`   // whom else it may start tasks for
	Bound       string            `yaml:"bound"`        // "require"
}

// APIKey is a workload's credential of its own, known by its hash.
type APIKey struct {
	ID         string    `yaml:"id"`           // its public name, in records
	Hash       string    `yaml:"hash"`         // as `toolbroker key new` prints it
	Tenant     string    `yaml:"tenant"`       // whose world
	Principal  string    `yaml:"principal"`    // the workload it proves
	OnBehalfOf string    `yaml:"on_behalf_of"` // the human it acts for, if one
	Owner      string    `yaml:"owner"`        // the operator accountable for it
	Expires    time.Time `yaml:"expires"`      // required; nothing lives for ever

	DefaultTask string   `yaml:"default_task"` // the kind of task it is on where it names none
	Vouches     []string `yaml:"vouches"`      // which claims about a task its word proves
	StartsFor   []string `yaml:"starts_for"`   // whom else it may start tasks for, as patterns; left out: itself only
}

// Operator is a human who answers, starts, ends or reads.
type Operator struct {
	Name         string   `yaml:"name"`
	PasswordHash string   `yaml:"password_hash"` // as `toolbroker operator hash-password` prints it
	Groups       []string `yaml:"groups"`        // what `group:` in the policy's verdicts names
	Roles        []string `yaml:"roles"`         // viewer, approver, admin, auditor
	Tenants      []string `yaml:"tenants"`       // whose worlds they see; "*" for all
	Identities   []string `yaml:"identities"`    // other names of the same human
	Disabled     bool     `yaml:"disabled"`      // still known, but cannot log in; their votes count no more and their tasks end
}

// TaskKind is the most that a task of it can be.
type TaskKind struct {
	Name    string        `yaml:"name"`
	Purpose string        `yaml:"purpose"` // shown to operators
	TTL     time.Duration `yaml:"ttl"`     // how long one runs, at most
	Tenants []string      `yaml:"tenants"` // who may have one; empty for all
	Scope   []ScopeRow    `yaml:"scope"`   // its widest reach
	Initial []ScopeRow    `yaml:"initial"` // what a task has that asks for no less; nil for scope

	SelfStart      bool          `yaml:"self_start"`      // a workload may start one for itself
	Parallel       bool          `yaml:"parallel"`        // beside its workload's other root tasks
	Bound          bool          `yaml:"bound"`           // only with credentials bound to a key of their holder
	PlainReference bool          `yaml:"plain_reference"` // keep references as given, not hashed
	Budget         Budget        `yaml:"budget"`          // how much may be done
	Delegation     Delegation    `yaml:"delegation"`      // how far it may delegate; left out: not at all
	Escalation     time.Duration `yaml:"escalation"`      // how long scope lasts that is granted on request; 0: none is
}

// Budget is how much may be done on tasks of a kind; zero is no limit.
type Budget struct {
	Calls       int `yaml:"calls"`         // by one task and its descendants together
	CallsPerDay int `yaml:"calls_per_day"` // by one workload for one human, per UTC day
}

// Delegation is how far a task may delegate.
type Delegation struct {
	Depth  int `yaml:"depth"`   // generations below it
	FanOut int `yaml:"fan_out"` // running children of one task
}

// ScopeRow is one row of a scope, in the policy's words.
type ScopeRow struct {
	Tool    string `yaml:"tool"`
	Action  string `yaml:"action"`
	When    string `yaml:"when"`
	Verdict string `yaml:"verdict"`
}

// Approvals is how long a human may take.
type Approvals struct {
	Hold      time.Duration `yaml:"hold"`       // how long a call waits for an answer before it says "pending"
	Expire    time.Duration `yaml:"expire"`     // how long a request waits for an answer
	UseWindow time.Duration `yaml:"use_window"` // how long a granted one may be used
	Link      string        `yaml:"link"`       // what agents are told to show; default: the console's public_url
}

// Limits is how much one caller may do on this replica.
type Limits struct {
	CallsPerSecond   int `yaml:"calls_per_second"`   // per principal
	HeldPerPrincipal int `yaml:"held_per_principal"` // calls waiting for a human
	HeldPerTenant    int `yaml:"held_per_tenant"`
	UnderWay         int `yaml:"calls_under_way"` // of a workload, those that wait for a human among them
	UnderWayTenant   int `yaml:"calls_under_way_per_tenant"`
	Sessions         int `yaml:"sessions"`                 // legacy MCP sessions of a workload, on all replicas
	TenantPerDay     int `yaml:"calls_per_tenant_per_day"` // a tenant's share of the log's disk
}

// Vault is where credentials come from.
type Vault struct {
	Address   string   `yaml:"address"`
	CA        Path     `yaml:"ca"`        // PEM; default: the system's
	Namespace string   `yaml:"namespace"` // Vault Enterprise only
	TokenFile Path     `yaml:"token_file"`
	AppRole   AppRole  `yaml:"approle"`
	TokenRole string   `yaml:"token_role"` // the token role that tasks' child tokens are made from
	Policies  []string `yaml:"policies"`   // of a child token, where token_role leaves them open
}

// AppRole is how the gateway logs in to Vault, if not with a token.
type AppRole struct {
	RoleID       string `yaml:"role_id"`
	SecretIDFile Path   `yaml:"secret_id_file"`
	Wrapped      bool   `yaml:"wrapped"` // the file holds a single-use wrapping token for it
	Mount        string `yaml:"mount"`
}

// Server is one downstream MCP server, reached by URL or run as a child.
type Server struct {
	Name           string            `yaml:"name"`
	Tenants        []string          `yaml:"tenants"` // whose it is; empty for all
	URL            string            `yaml:"url"`
	Command        string            `yaml:"command"` // an executable; there is no shell
	Args           []string          `yaml:"args"`
	Env            map[string]string `yaml:"env"` // nothing secret; a credential's env is for that
	Dir            Path              `yaml:"dir"`
	Protocol       string            `yaml:"protocol"`        // auto, legacy, modern or sse
	Allow          []string          `yaml:"allow"`           // networks that its address may be in, whatever they are
	AllowPrivate   bool              `yaml:"allow_private"`   // its address may be in any private network
	Idempotency    Idempotency       `yaml:"idempotency"`     // where it looks for a key of each call
	Timeout        time.Duration     `yaml:"timeout"`         // of one call
	MaxResponse    Size              `yaml:"max_response"`    // of one answer
	Prefix         string            `yaml:"prefix"`          // before its tools' names, as agents see them; "none" for none
	Meta           []string          `yaml:"meta"`            // keys of an agent's _meta that go to it
	TargetArgument string            `yaml:"target_argument"` // the argument that names what is touched, for the record
	Trust          string            `yaml:"trust"`           // in definitions that no admin accepted: first_use or review
	Digest         string            `yaml:"digest"`          // of the command's program; another one is not started
	User           string            `yaml:"user"`            // whom the child runs as, where we are root
	Unsafe         string            `yaml:"unsafe"`          // "floating": the command may fetch whatever is newest
	Credential     Credential        `yaml:"credential"`
}

// Idempotency is where a server looks for a key that tells whether it has seen a
// call: one of the two.
type Idempotency struct {
	Header string `yaml:"header"` // of the HTTP request
	Meta   string `yaml:"meta"`   // a key of _meta
}

// Credential is what a server is given, and for how long.
type Credential struct {
	Engine  string            `yaml:"engine"`  // kv or leased
	Mount   string            `yaml:"mount"`   // where the engine is mounted
	Path    string            `yaml:"path"`    // what to read there
	Params  map[string]string `yaml:"params"`  // sent along, to engines that are written to
	Class   string            `yaml:"class"`   // revocable or ttl-bound; default by engine
	Mode    string            `yaml:"mode"`    // one per call, or one per task
	Headers map[string]string `yaml:"headers"` // name: template, such as "Bearer {{.token}}"
	Env     map[string]string `yaml:"env"`     // name: template, for a child
	TTL     time.Duration     `yaml:"ttl"`     // how long one lives, at most
}

// IsZero reports whether the server needs no credential.
func (c Credential) IsZero() bool { return c.Engine == "" }

// Default is what a setting is when the file leaves it out.
func Default() *Config {
	return &Config{
		Log:        Log{Level: "info"},
		Agent:      Listener{Listen: "127.0.0.1:8080", MaxBody: 1 << 20, Catalogue: "all"},
		Console:    Console{Listen: "127.0.0.1:8081"},
		Management: Management{Listen: "127.0.0.1:8082"},
		Audit:      Audit{CheckpointEvery: time.Second},
		Policy:     Policy{Watch: true},
		Identity:   Identity{ActDepth: 4, VerificationsPerSecond: 500},
		Approvals:  Approvals{Hold: 25 * time.Second, Expire: time.Hour, UseWindow: 10 * time.Minute},
		Limits:     Limits{CallsPerSecond: 50, HeldPerPrincipal: 16, HeldPerTenant: 256, UnderWay: 256, UnderWayTenant: 4_096, Sessions: 1_000, TenantPerDay: 1_000_000},
		Vault:      Vault{AppRole: AppRole{Mount: "approle"}},
	}
}

// defaults of an element of a list.
func (s *Server) defaults() {
	s.Protocol, s.Timeout, s.MaxResponse, s.Trust = "auto", 60*time.Second, 4<<20, "first_use"
	s.Credential.Mode = "task"
}

func (i *Issuer) defaults() {
	i.Skew, i.Refresh, i.MaxStale = 30*time.Second, 5*time.Minute, time.Hour
}

func (k *TaskKind) defaults() { k.TTL = time.Hour }

// DisabledOperators lists those who are still known, but nobody any more.
func (c *Config) DisabledOperators() []string {
	var names []string
	for _, o := range c.Operators {
		if o.Disabled {
			names = append(names, o.Name)
		}
	}
	return names
}

// Load reads, decodes and checks a file. Where there are problems the config is
// nil and each problem stands at its line, in the file's order.
func Load(path string) (*Config, []Problem) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, []Problem{{File: path, What: fmt.Sprintf("cannot be read: %v", unpath(err))}}
	}
	return Parse(path, text)
}

// Parse is [Load] for bytes already read.
func Parse(path string, text []byte) (*Config, []Problem) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, []Problem{{File: path, What: err.Error()}}
	}
	var doc yaml.Node
	if err := yaml.Load(text, &doc); err != nil {
		return nil, []Problem{syntax(path, err)}
	}
	c := Default()
	d := &decoder{file: path, dir: filepath.Dir(abs), lines: map[string]int{}}
	d.document(&doc, c)
	if len(d.problems) > 0 { // a check of half a config would blame the wrong line
		return nil, d.sorted()
	}
	c.File, c.Hash, c.path, c.lines = abs, hash(text), path, d.lines
	c.fill()
	c.check(d)
	if len(d.problems) > 0 {
		return nil, d.sorted()
	}
	return c, nil
}

func hash(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}
