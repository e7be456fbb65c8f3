// Package secrets gets tools their credentials from Vault and makes sure that
// each of them ends. It is the gateway's Leases.
//
// Three things hang from one another: the gateway's own token; a child of it per
// lease, which lives no longer than the call or the task it is for; and what
// was issued under the child. So whatever this process forgets, or never
// learnt, falls with its child, with or without us.
//
// A lease is in the ledger (Redis) before it is made, and stays there until its
// end is on record: any replica can end it. Values are in memory only.
//
// The ledger's rules are in ledger.go, a lease's life in lease.go, its end in
// end.go.
package secrets

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"toolbroker/brokers/internal/redis"
	"toolbroker/gateway"
)

// The engines.
const (
	KV     = "kv"     // version 2: a static secret, read and never revoked
	Leased = "leased" // any engine whose answer is a lease
)

// The modes.
const (
	PerCall = "call" // a lease of its own for every call, ended with it
	PerTask = "task" // one lease for a task's calls to a server, ended with the task
)

// The classes: what ending a credential is worth.
const (
	Revocable = "revocable"
	TTLBound  = "ttl-bound"
	Static    = "static"
	StandIn   = "stand-in"
)

// A Vault says which Vault, and as whom.
type Vault struct {
	Address   string   // https, or http on loopback
	CAFile    string   // whom to trust, PEM; empty for the system's
	Namespace string   // of Vault Enterprise; one that would be ignored is refused
	Auth      Auth     // how the gateway logs in
	TokenRole string   // child tokens are made from it; empty for plain children with Policies
	Policies  []string // what a child may; empty for all that TokenRole allows
}

// A Binding says which secret a server needs and how it is handed over.
type Binding struct {
	Server  string
	Tenants []string          // whose calls; empty for every tenant's
	Engine  string            // KV or Leased
	Mount   string            // where the engine is mounted
	Path    string            // what to read there
	Params  map[string]string // sent along; where there are any the secret is written for, not read
	Class   string            // of a leased one: Revocable or TTLBound. Never guessed: a lease id proves nothing
	Mode    string            // PerCall or PerTask
	Headers map[string]string // templates over the secret's fields, for an HTTP server
	Env     map[string]string // the same, for a stdio child
	TTL     time.Duration     // how long one lives, at most; 0 for as long as the task, an hour at most without one

	headers, env map[string]template
}

// Config is everything a Broker is made of.
type Config struct {
	Vault    Vault // the zero Vault where no server needs a credential
	Bindings []Binding
	Store    *redis.Store // the ledger
	Recorder gateway.Recorder
	Replica  string // this replica's name, the same after a restart
	Boot     string // this process's, never the same
	Journal  string // a file (0600) that outlives an embedded store, so that a restart can still revoke
	StandIn  bool   // Vault is the stand-in: every class shown is "stand-in"
	Logger   *slog.Logger

	// Tasks says when a task expires, which bounds its leases, and what the
	// record says of it. Nil: each Binding's TTL is the only bound.
	Tasks interface {
		Running(ctx context.Context, tenant, id string) (gateway.Task, error)
	}
}

// A Broker is the gateway's Leases. It is safe for concurrent use.
type Broker struct {
	Config
	vault  *vault // nil where no server needs a credential
	ledger *ledger
	ends   singleflight.Group // one end per lease at a time
	wake   chan struct{}      // something is due
	issues sync.WaitGroup     // under way

	mu     sync.Mutex // guards all below
	closed bool
	shared map[sharedKey]*shared
	live   map[string]*live // by lease id: what this process issued
	beaten atomic.Bool
}

var _ gateway.Leases = (*Broker)(nil)

// New checks the config. It does not wait for Vault or Redis: Run does, and
// until it is through Ready says why not and every lease is refused.
func New(c Config) (*Broker, error) {
	b := &Broker{Config: c, wake: make(chan struct{}, 1), shared: map[sharedKey]*shared{}, live: map[string]*live{}}
	if b.Logger == nil {
		b.Logger = slog.New(slog.DiscardHandler)
	}
	b.Bindings = slices.Clone(c.Bindings)
	for i := range b.Bindings {
		if err := b.Bindings[i].Check(); err != nil {
			return nil, fmt.Errorf("secrets: server %q: %w", b.Bindings[i].Server, err)
		}
		for j := range i {
			if b.Bindings[i].overlaps(&b.Bindings[j]) {
				return nil, fmt.Errorf("secrets: server %q has two bindings for one tenant", b.Bindings[i].Server)
			}
		}
	}
	if c.Vault.Address == "" {
		if len(b.Bindings) > 0 {
			return nil, errors.New("secrets: servers need credentials, and no Vault is configured")
		}
		return b, nil
	}
	b.Boot = strings.ToLower(c.Boot)
	if c.Store == nil || c.Recorder == nil || !redis.ValidID(c.Replica) || !redis.ValidID(b.Boot) {
		return nil, errors.New("secrets: a store, a recorder, a replica name and a boot id are needed")
	}
	var err error
	if b.vault, err = newVault(c.Vault); err != nil {
		return nil, err
	}
	b.vault.superseded = b.supersede
	b.ledger = &ledger{store: c.Store, replica: c.Replica, boot: b.Boot}
	if c.Journal != "" {
		if b.ledger.journal, err = openJournal(c.Journal); err != nil {
			return nil, fmt.Errorf("secrets: lease journal: %w", err)
		}
	}
	return b, nil
}

// Ready says why no lease can be issued now, if that is so.
func (b *Broker) Ready(ctx context.Context) error {
	if b.vault == nil {
		return nil
	}
	if err := b.vault.health(ctx); err != nil {
		return err
	}
	_, err := b.vault.own(ctx)
	return err
}

// Class is the class of the credential a server's calls carry, "" for none.
func (b *Broker) Class(tenant, server string) string {
	if d := b.binding(tenant, server); d != nil {
		return b.class(d.Class)
	}
	return ""
}

func (b *Broker) class(of string) string {
	if b.StandIn {
		return StandIn
	}
	return of
}

func (b *Broker) binding(tenant, server string) *Binding {
	for i := range b.Bindings {
		if d := &b.Bindings[i]; d.Server == server && (len(d.Tenants) == 0 || slices.Contains(d.Tenants, tenant)) {
			return d
		}
	}
	return nil
}

func (d *Binding) overlaps(e *Binding) bool {
	return d.Server == e.Server && (len(d.Tenants) == 0 || len(e.Tenants) == 0 ||
		slices.ContainsFunc(d.Tenants, func(t string) bool { return slices.Contains(e.Tenants, t) }))
}

// name is what the record calls the binding.
func (d *Binding) name() string { return d.Mount + "/" + d.Path }

// path is where the secret is asked for.
func (d *Binding) path() string {
	if d.Engine == KV {
		return d.Mount + "/data/" + d.Path
	}
	return d.name()
}

var (
	segments = regexp.MustCompile(`^[A-Za-z0-9_.@-]+(/[A-Za-z0-9_.@-]+)*$`)
	header   = regexp.MustCompile(`^[A-Za-z0-9!#$%&'*+.^_|~-]+$`)
	variable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// Check says what is wrong with a binding as it is written; it asks no Vault.
func (d *Binding) Check() error {
	switch {
	case !redis.ValidID(d.Server):
		return errors.New("no server, or not a name of [a-z0-9-]{1,64}")
	case !clean(d.Mount) || !clean(d.Path):
		return errors.New("mount and path are names with slashes between them")
	case d.Mode != PerCall && d.Mode != PerTask:
		return fmt.Errorf("mode is %q or %q", PerCall, PerTask)
	case d.TTL < 0 || d.TTL > 0 && d.TTL < time.Second:
		return errors.New("a ttl is a second or more")
	}
	switch d.Engine {
	case KV:
		if d.Class != "" && d.Class != Static || len(d.Params) > 0 {
			return fmt.Errorf("a kv secret's class is %q, and it takes no params", Static)
		}
		d.Class = Static
	case Leased:
		if d.Class != Revocable && d.Class != TTLBound {
			return fmt.Errorf("say a leased secret's class: %q where revoking it really ends it at the target, else %q", Revocable, TTLBound)
		}
	default:
		return fmt.Errorf("engine is %q or %q", KV, Leased)
	}
	var err error
	if d.headers, err = templates("header", d.Headers, header); err != nil {
		return err
	}
	if d.env, err = templates("environment variable", d.Env, variable); err != nil {
		return err
	}
	for _, all := range []map[string]template{d.headers, d.env} {
		for _, t := range all {
			if len(t.fields()) > 0 {
				return nil
			}
		}
	}
	return errors.New("no header and no environment variable carries a field of the secret")
}

func clean(path string) bool {
	return segments.MatchString(path) && !slices.ContainsFunc(strings.Split(path, "/"), func(s string) bool { return s == "." || s == ".." })
}

func templates(what string, from map[string]string, name *regexp.Regexp) (map[string]template, error) {
	all := map[string]template{}
	for k, s := range from {
		if !name.MatchString(k) {
			return nil, fmt.Errorf("%q is no name of a %s", k, what)
		}
		t, err := parse(s)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", what, k, err)
		}
		all[k] = t
	}
	return all, nil
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}
