package secrets

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"toolbroker/brokers/internal/redis/redistest"
	"toolbroker/gateway"
	"toolbroker/gateway/audit"
)

// A kill at any request to Vault, before Vault has it or before its answer is
// back, leaves nothing alive after the next start, nothing in the ledger, and
// every lease with one end on record.
func TestKilledAnywhere(t *testing.T) {
	for n := 1; n <= 6; n++ { // token, secret; revoke, look up, revoke the token, look it up
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("request %d after=%v", n, after), func(t *testing.T) {
				w := newWorld(t, standIn(t), redistest.Embedded(t))
				p := w.start(t)
				redistest.Await(t, "ready", func() bool { return p.Ready(t.Context()) == nil })
				hangs := w.proxy.hang(n, after)
				go func() {
					l, err := p.Lease(context.Background(), "acme", "task-1", "call-1", "call")
					if err == nil {
						_ = p.GiveBack(context.Background(), l)
					}
				}()
				<-hangs
				p.kill()
				w.start(t)
				redistest.Await(t, "nothing in the ledger", func() bool {
					return w.redis.Do(t, "ZCARD", "tb:{acme}:leases-due") == int64(0)
				})
				leases, tokens := w.live(t)
				if leases != 0 || tokens != 0 && !(n == 1 && after) { // that token's answer was all that named it
					t.Errorf("alive: %d leases and %d tokens", leases, tokens)
				}
				ends := 0
				for _, f := range w.facts.Of("") {
					if f.LeaseEnd != nil && f.LeaseEnd.Kind != "failed" || f.Type == audit.SecretRefused {
						ends++
					}
				}
				if ends != 1 {
					t.Errorf("ends on record: %q", w.facts.Story(""))
				}
				if story := w.facts.Story(""); n > 2 && story != "requested revoked!" || n == 2 && story != "requested revoked" {
					t.Errorf("on record: %q", story)
				}
			})
		}
	}
}

// The leases of a replica that is not heard of any more are ended by another.
func TestDeadReplica(t *testing.T) {
	w := newWorld(t, standIn(t), redistest.Embedded(t))
	one := w.start(t)
	l, err := one.Lease(t.Context(), "acme", "task-1", "call-1", "task")
	if err != nil {
		t.Fatal(err)
	}
	one.kill()
	two := w.start(t, func(c *Config) { c.Replica = "r2" })
	if err := two.reap(t.Context()); err != nil {
		t.Fatal(err)
	}
	if leases, _ := w.live(t); leases != 1 {
		t.Fatal("a replica that was heard of just now lost its lease")
	}
	w.redis.Do(t, "ZADD", "tb:{_}:leases-alive", time.Now().Add(-deadAfter-time.Second).UnixMilli(), "r1/boot-1")
	if err := two.reap(t.Context()); err != nil {
		t.Fatal(err)
	}
	if story := w.facts.Story(l.ID); story != "requested revoked!" {
		t.Errorf("on record: %q", story)
	}
	if n := w.redis.Do(t, "ZCARD", "tb:{_}:leases-alive"); n != int64(1) {
		t.Errorf("remembered as alive: %v", n)
	}
	// Should it come back after all, it hands its lease out no more.
	again, err := one.Lease(t.Context(), "acme", "task-1", "call-2", "task")
	if err != nil || again.ID == l.ID {
		t.Errorf("handed out after its end: %v %v", again.ID, err)
	}
}

// A task that ends on one replica ends the leases that another issued for it.
func TestEndTaskElsewhere(t *testing.T) {
	w := newWorld(t, standIn(t), redistest.Embedded(t))
	one, two := w.start(t), w.start(t, func(c *Config) { c.Replica = "r2" })
	a, err := one.Lease(t.Context(), "acme", "task-1", "call-1", "task")
	b, err2 := two.Lease(t.Context(), "acme", "task-1", "call-2", "task")
	if err != nil || err2 != nil || a.ID == b.ID {
		t.Fatal(err, err2, "values are not shared between replicas")
	}
	errs := make(chan error, 2)
	for _, p := range []process{one, two} { // both hear of it at once
		go func() { _, err := p.EndTask(t.Context(), "acme", "task-1"); errs <- err }()
	}
	if err := errors.Join(<-errs, <-errs); err != nil {
		t.Error(err)
	}
	for _, l := range []gateway.Lease{a, b} {
		if story := w.facts.Story(l.ID); story != "requested revoked!" {
			t.Errorf("on record: %q", story)
		}
	}
	for _, p := range []process{one, two} {
		if _, err := p.Lease(t.Context(), "acme", "task-1", "call-3", "task"); err == nil {
			t.Error("an ended task got a lease")
		}
	}
}

// A record that somebody changed in Redis is alerted and not acted on.
func TestChangedLedger(t *testing.T) {
	w := newWorld(t, standIn(t), redistest.Embedded(t))
	p := w.start(t)
	l, err := p.Lease(t.Context(), "acme", "task-1", "call-1", "call")
	if err != nil {
		t.Fatal(err)
	}
	p.kill()
	w.redis.Do(t, "HSET", "tb:{acme}:lease:"+l.ID, "record", "another")
	w.redis.Do(t, "ZADD", "tb:{acme}:leases-due", "1", l.ID)
	w.start(t)
	redistest.Await(t, "alerted", func() bool { return strings.HasSuffix(w.facts.Story(l.ID), "revoke_failed") })
}

// fixedTasks knows one task, which expires in a while.
type fixedTasks struct{ left time.Duration }

func (f fixedTasks) Running(_ context.Context, tenant, id string) (gateway.Task, error) {
	if id != "task-1" {
		return gateway.Task{}, gateway.ErrNoTask
	}
	return gateway.Task{ID: id, Tenant: tenant, Kind: "triage", Purpose: "close stale issues", Owner: "ann", State: gateway.TaskRunning,
		Expires: time.Now().Add(f.left)}, nil
}

func TestTaskBoundsItsLeases(t *testing.T) {
	w := newWorld(t, standIn(t), redistest.Embedded(t))
	p := w.start(t, func(c *Config) { c.Tasks, c.Bindings[1].TTL = fixedTasks{90 * time.Second}, time.Hour })
	l, err := p.Lease(t.Context(), "acme", "task-1", "call-1", "task")
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(l.Expires); left > 91*time.Second {
		t.Errorf("lives %v, its task 90s", left)
	}
	if f := w.facts.Of(l.ID)[0]; f.Task == nil || f.Task.Kind != "triage" || f.Task.Owner != "ann" {
		t.Error("the record does not say what the task is")
	}
	if _, err := p.Lease(t.Context(), "acme", "task-9", "call-1", "task"); !errors.Is(err, gateway.ErrNoCredential) {
		t.Errorf("a task that does not run: %v", err)
	}
	late := w.start(t, func(c *Config) { c.Replica, c.Tasks = "r2", fixedTasks{time.Millisecond} })
	if _, err := late.Lease(t.Context(), "acme", "task-1", "call-1", "task"); !errors.Is(err, errOver) {
		t.Errorf("a task that ends now: %v", err)
	}
}

// A lease that lives shorter than its task is renewed, up to its token's end.
func TestRenew(t *testing.T) {
	w := newWorld(t, standIn(t), redistest.Embedded(t))
	p := w.start(t, func(c *Config) { c.Bindings[1].Path, c.Bindings[1].TTL = "short", time.Minute }) // a role of 2 s
	l, err := p.Lease(t.Context(), "acme", "task-1", "call-1", "task")
	if err != nil {
		t.Fatal(err)
	}
	redistest.Await(t, "well past its first expiry", func() bool { return time.Now().After(l.Expires.Add(2 * time.Second)) })
	again, err := p.Lease(t.Context(), "acme", "task-1", "call-2", "task")
	if err != nil || again.ID != l.ID || again.Fresh || !again.Expires.After(l.Expires) {
		t.Errorf("not renewed: %+v %v", again, err)
	}
	if !w.works(t, again.Values[0].Reveal()) {
		t.Error("the credential does not work")
	}
	if _, err := p.EndTask(t.Context(), "acme", "task-1"); err != nil {
		t.Error(err)
	}
	if story := w.facts.Story(l.ID); story != "requested revoked!" {
		t.Errorf("on record: %q", story)
	}
}

// What nothing can take back is never called revoked: it ends when it expires.
func TestTTLBound(t *testing.T) {
	w := newWorld(t, standIn(t), redistest.Embedded(t))
	p := w.start(t, func(c *Config) { c.Bindings[0].Class, c.Bindings[0].TTL = TTLBound, 2*time.Second })
	l, err := p.Lease(t.Context(), "acme", "task-1", "call-1", "call")
	if err != nil || l.Class != TTLBound {
		t.Fatal(l.Class, err)
	}
	if err := p.GiveBack(t.Context(), l); err != nil {
		t.Error(err)
	}
	if story := w.facts.Story(l.ID); story != "requested" || !p.inLedger(t, l.ID) {
		t.Errorf("ended before its time: %q", story)
	}
	redistest.Await(t, "its end", func() bool { return w.facts.Story(l.ID) == "requested expired" })
	if time.Now().Before(l.Expires) {
		t.Error("called expired before it was")
	}
}

// When the gateway's own token is taken away its children fall: their leases are
// not handed out any more, are said to have ended, and a new login takes over.
func TestOwnTokenTakenAway(t *testing.T) {
	w := newWorld(t, standIn(t), redistest.Embedded(t))
	p := w.start(t)
	l, err := p.Lease(t.Context(), "acme", "task-1", "call-1", "task")
	if err != nil {
		t.Fatal(err)
	}
	own, err := p.vault.own(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.standin.RevokeToken(own.value)
	other, err := p.Lease(t.Context(), "acme", "task-1", "call-2", "call") // which notices
	if err != nil {
		t.Fatal(err)
	}
	redistest.Await(t, "another for the task", func() bool {
		again, err := p.Lease(t.Context(), "acme", "task-1", "call-3", "task")
		return err == nil && again.ID != l.ID
	})
	redistest.Await(t, "the end of the first", func() bool { return w.facts.Story(l.ID) == "requested revoked!" })
	if err := errors.Join(p.GiveBack(t.Context(), other), endTask(t, p)); err != nil {
		t.Error(err)
	}
	if leases, tokens := w.live(t); leases+tokens != 0 {
		t.Errorf("alive: %d leases and %d tokens", leases, tokens)
	}
}

// What will fall with a login that was replaced is handed out no more even
// before it falls, and the calls that have it may finish.
func TestReplacedLogin(t *testing.T) {
	w := newWorld(t, standIn(t), redistest.Embedded(t))
	p := w.start(t)
	l, err := p.Lease(t.Context(), "acme", "task-1", "call-1", "task")
	if err != nil {
		t.Fatal(err)
	}
	p.supersede(p.live[l.ID].gen, time.Now().Add(time.Hour))
	again, err := p.Lease(t.Context(), "acme", "task-1", "call-2", "task")
	if err != nil || again.ID == l.ID || !again.Fresh {
		t.Errorf("handed out: %v %v", again.ID, err)
	}
	if !w.works(t, l.Values[0].Reveal()) {
		t.Error("taken from a call that has it")
	}
}

// A token that is renewed lives on; one that cannot be is replaced before it ends.
func TestOwnTokenIsKept(t *testing.T) {
	for _, periodic := range []bool{true, false} {
		t.Run(fmt.Sprintf("periodic=%v", periodic), func(t *testing.T) {
			b := standIn(t)
			b.standin.AppRole("gateway", "gateway-secret", 4*time.Second, periodic, "toolbroker")
			w := newWorld(t, b, redistest.Embedded(t))
			p := w.start(t)
			redistest.Await(t, "ready", func() bool { return p.Ready(t.Context()) == nil })
			first, err := p.vault.own(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			long := time.Now().Add(5 * time.Second)
			redistest.Await(t, "its second life, or another", func() bool {
				p.vault.mu.Lock()
				now := p.vault.token // nobody asks: it is kept all the same
				p.vault.mu.Unlock()
				if now == nil {
					return false
				}
				if now.value != first.value && periodic {
					t.Fatal("a token that can be renewed was replaced")
				}
				return periodic && time.Now().After(long) && !now.over() || !periodic && now.value != first.value
			})
		})
	}
}

func TestLogin(t *testing.T) {
	t.Run("a token file, read again", func(t *testing.T) {
		w := newWorld(t, standIn(t), redistest.Embedded(t))
		file := t.TempDir() + "/token"
		p := w.start(t, func(c *Config) { c.Vault.Auth = Auth{TokenFile: file} })
		if _, err := p.Lease(t.Context(), "acme", "task-1", "call-1", "call"); !errors.Is(err, gateway.ErrNoCredential) {
			t.Fatal("issued without a token")
		}
		if p.Ready(t.Context()) == nil {
			t.Error("ready without a token")
		}
		if err := os.WriteFile(file, []byte(w.standin.Token(time.Hour, true, "toolbroker")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		redistest.Await(t, "logged in", func() bool { return p.Ready(t.Context()) == nil })
		l, err := p.Lease(t.Context(), "acme", "task-1", "call-1", "call")
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if story := w.facts.Story(l.ID); story != "requested revoked!" {
			t.Errorf("on record: %q", story)
		}
		b, _ := os.ReadFile(file)
		if _, err := w.start(t, func(c *Config) { c.Vault.Auth = Auth{Token: gateway.NewSecret(strings.TrimSpace(string(b)))} }).vault.own(t.Context()); err != nil {
			t.Error("a token that was not ours to end was ended")
		}
	})
	t.Run("a namespace that would be ignored is refused", func(t *testing.T) {
		w := newWorld(t, standIn(t), redistest.Embedded(t))
		p := w.start(t, func(c *Config) { c.Vault.Namespace = "team-a" })
		if err := p.Ready(t.Context()); reasonOf(err) != reasonConfig {
			t.Errorf("ready: %v", err)
		}
		if _, err := p.Lease(t.Context(), "acme", "task-1", "call-1", "call"); err == nil {
			t.Error("issued from a namespace that is not there")
		}
	})
	t.Run("an environment for other programs changes nothing", func(t *testing.T) {
		t.Setenv("VAULT_TOKEN", "somebody-elses")
		t.Setenv("VAULT_NAMESPACE", "elsewhere")
		t.Setenv("VAULT_ADDR", "https://vault.example.com")
		t.Setenv("VAULT_HEADERS", `{"X-Other":"header"}`)
		w := newWorld(t, standIn(t), redistest.Embedded(t))
		p := w.start(t)
		l, err := p.Lease(t.Context(), "acme", "task-1", "call-1", "call")
		if err != nil {
			t.Fatal(err)
		}
		if h := w.proxy.seen; h.Get("X-Vault-Namespace")+h.Get("X-Other") != "" || h.Get("X-Vault-Token") == "somebody-elses" {
			t.Error("the environment speaks to Vault")
		}
		if h := w.proxy.seen; h.Get("X-Correlation-Id") != l.ID {
			t.Errorf("correlation id is %q, want the lease's", h.Get("X-Correlation-Id"))
		}
	})
}

func TestRealVault(t *testing.T) {
	b, r := realVault(t), redistest.Embedded(t)
	w := newWorld(t, b, r)
	for _, role := range []string{"orphans", "batch"} {
		t.Run("children that could not be ended are refused: "+role, func(t *testing.T) {
			b.ask(t, "POST", "sys/policies/acl/toolbroker", map[string]any{"policy": documented(t)["gateway"] + `
				path "auth/token/create/*" { capabilities = ["update"] }`})
			p := w.start(t, func(c *Config) { c.Vault.TokenRole = role })
			if _, err := p.Lease(t.Context(), "acme", "task-1", "call-1", "call"); err == nil || w.proxy.last == "PUT /v1/ssh/creds/otp" {
				t.Error("a secret was read under one")
			}
			if leases, tokens := b.live(t); leases+tokens != 0 {
				t.Errorf("alive: %d leases and %d tokens", leases, tokens)
			}
		})
	}
	t.Run("plain children without a role", func(t *testing.T) {
		b.ask(t, "POST", "sys/policies/acl/plain", map[string]any{"policy": documented(t)["gateway"] + `
			path "auth/token/create" { capabilities = ["update"] }`})
		w := newWorld(t, b, r)
		token := b.read(t, "POST", "auth/token/create", "auth", "client_token") // root's child
		p := w.start(t, func(c *Config) {
			c.Vault.Auth, c.Vault.TokenRole, c.Vault.Policies = Auth{Token: gateway.NewSecret(token)}, "", []string{"toolbroker-tools"}
		})
		l, err := p.Lease(t.Context(), "acme", "task-1", "call-1", "call")
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if story := w.facts.Story(l.ID); story != "requested revoked!" {
			t.Errorf("on record: %q", story)
		}
	})
	t.Run("a wrapped secret id works once, and is kept for the next login", func(t *testing.T) {
		w := newWorld(t, b, r)
		if err := os.WriteFile(w.secret, []byte(b.wrapped(t)), 0o600); err != nil {
			t.Fatal(err)
		}
		p := w.start(t, func(c *Config) { c.Vault.Auth.AppRole.Wrapped = true })
		own, err := p.vault.own(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		p.vault.lost(own)
		if again, err := p.vault.own(t.Context()); err != nil || again.value == own.value {
			t.Errorf("no second login: %v", err)
		}
		if _, err := w.start(t, func(c *Config) { c.Vault.Auth.AppRole.Wrapped = true }).vault.own(t.Context()); err == nil {
			t.Error("a wrapping token was used twice")
		}
	})
}

func (b *backend) wrapped(t *testing.T) string {
	t.Helper()
	b.wrap = "5m"
	defer func() { b.wrap = "" }()
	return b.read(t, "POST", "auth/approle/role/toolbroker/secret-id", "wrap_info", "token")
}

func TestConfig(t *testing.T) {
	w := newWorld(t, standIn(t), redistest.Embedded(t))
	for _, c := range []struct {
		fact   string
		change func(*Config)
		says   string
	}{
		{"http off loopback", func(c *Config) { c.Vault.Address = "http://vault.example.com:8200" }, "loopback only"},
		{"a password in the address", func(c *Config) { c.Vault.Address = "https://u:hunter2@vault.example.com" }, "without a user"},
		{"no login", func(c *Config) { c.Vault.Auth = Auth{} }, "exactly one way"},
		{"two logins", func(c *Config) { c.Vault.Auth.TokenFile = "f" }, "exactly one way"},
		{"neither role nor policies", func(c *Config) { c.Vault.TokenRole = "" }, "token role, or policies"},
		{"no Vault", func(c *Config) { c.Vault = Vault{} }, "no Vault"},
		{"no store", func(c *Config) { c.Store = nil }, "a store"},
		{"no boot", func(c *Config) { c.Boot = "" }, "a boot id"},
		{"a CA that is none", func(c *Config) { c.Vault.CAFile = w.secret }, "no certificate"},
		{"two bindings for one", func(c *Config) { c.Bindings[1].Server, c.Bindings[1].Tenants = "call", nil }, "two bindings"},
		{"a path that climbs", func(c *Config) { c.Bindings[0].Path = "creds/../sys" }, "names with slashes"},
		{"a query in a path", func(c *Config) { c.Bindings[0].Path = "creds?x=1" }, "names with slashes"},
		{"a class that was not said", func(c *Config) { c.Bindings[0].Class = "" }, "say a leased secret's class"},
		{"a revocable static secret", func(c *Config) { c.Bindings[3].Class = Revocable }, `class is "static"`},
		{"an unknown engine", func(c *Config) { c.Bindings[0].Engine = "database" }, "engine is"},
		{"an unknown mode", func(c *Config) { c.Bindings[0].Mode = "shared" }, "mode is"},
		{"nothing that carries it", func(c *Config) { c.Bindings[0].Headers = nil }, "carries a field"},
		{"a header that says nothing", func(c *Config) { c.Bindings[0].Headers = map[string]string{"X": "y"} }, "carries a field"},
		{"a header's name", func(c *Config) { c.Bindings[0].Headers = map[string]string{"X Y": "{{.a}}"} }, "no name of a header"},
		{"a variable's name", func(c *Config) { c.Bindings[3].Env = map[string]string{"A=B": "{{.a}}"} }, "no name of a environment variable"},
		{"a template", func(c *Config) { c.Bindings[0].Headers = map[string]string{"X": "{{.a | printf}}"} }, "only {{.field}}"},
	} {
		t.Run(c.fact, func(t *testing.T) {
			_, err := New(w.config(t, c.change))
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("says %v, want %q", err, c.says)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Error("says the password")
			}
		})
	}
	t.Run("no Vault, and nobody needs one", func(t *testing.T) {
		b, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		l, err := b.Lease(t.Context(), "acme", "task-1", "call-1", "any")
		if err = errors.Join(err, b.GiveBack(t.Context(), l), endTask(t, b), b.Ready(t.Context()), b.Close(t.Context())); err != nil {
			t.Error(err)
		}
	})
	t.Run("the stand-in's class is said to be its", func(t *testing.T) {
		b, err := New(w.config(t, func(c *Config) { c.StandIn = true }))
		if err != nil {
			t.Fatal(err)
		}
		if b.Class("acme", "call") != StandIn || b.Class("globex", "call") != "" {
			t.Errorf("class is %q", b.Class("acme", "call"))
		}
	})
}

func endTask(t *testing.T, b interface {
	EndTask(context.Context, string, string) ([]string, error)
}) error {
	_, err := b.EndTask(t.Context(), "acme", "task-1")
	return err
}
