package operators_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alexedwards/argon2id"

	"toolbroker/brokers/internal/redis/redistest"
	"toolbroker/brokers/operators"
	"toolbroker/gateway"
)

const password = "correct horse battery"

var hash = sync.OnceValue(func() string {
	h, err := operators.HashPassword(gateway.NewSecret(password))
	if err != nil {
		panic(err)
	}
	return h
})

func alice() operators.Operator {
	return operators.Operator{PasswordHash: hash(), Operator: gateway.Operator{
		Name: "alice", Roles: []string{"approver"}, Groups: []string{"sre"}, Tenants: []string{"acme"}, Identities: []string{"alice@acme"},
	}}
}

type rig struct {
	*operators.Operators
	server *redistest.Server
	now    time.Time
}

func open(t *testing.T, server *redistest.Server, ops ...operators.Operator) *rig {
	t.Helper()
	r := &rig{server: server, now: time.Now()}
	var err error
	r.Operators, err = operators.New(operators.Config{Store: server.Open(t, "acme"), Operators: ops, Now: func() time.Time { return r.now }})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) login(t *testing.T, name, password, source string) (gateway.Secret, error) {
	t.Helper()
	token, _, err := r.Login(t.Context(), name, gateway.NewSecret(password), source)
	return token, err
}

func TestLogin(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		r := open(t, start(t), alice())
		token, op, err := r.Login(t.Context(), "alice", gateway.NewSecret(password), "192.0.2.1:1")
		if err != nil || op.Name != "alice" || op.Source != "192.0.2.1:1" || op.CSRF.IsZero() {
			t.Fatalf("%+v %v", op, err)
		}
		again, err := r.Session(t.Context(), token)
		if err != nil || again.Name != "alice" || again.CSRF.Reveal() != op.CSRF.Reveal() || again.Groups[0] != "sre" {
			t.Fatalf("%+v %v", again, err)
		}
		for _, wrong := range [][2]string{{"alice", "wrong"}, {"alice", ""}, {"mallory", password}, {"alice@acme", password}, {"", ""}} {
			if _, err := r.login(t, wrong[0], wrong[1], "192.0.2.2:1"); !errors.Is(err, gateway.ErrLogin) {
				t.Errorf("%q: %v", wrong, err)
			}
		}
		for _, bad := range []string{"", "x", token.Reveal() + "x", strings.ToUpper(token.Reveal()), strings.Repeat("a", 1000)} {
			if _, err := r.Session(t.Context(), gateway.NewSecret(bad)); !errors.Is(err, gateway.ErrLogin) {
				t.Errorf("session %.10q: %v", bad, err)
			}
		}
		for _, key := range r.server.Keys(t, "*") {
			if strings.Contains(key, token.Reveal()) {
				t.Errorf("the token is a key: %s", key)
			}
		}
		if err := r.Logout(t.Context(), token); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Session(t.Context(), token); !errors.Is(err, gateway.ErrLogin) {
			t.Errorf("after logout: %v", err)
		}
	})
}

// A guesser runs out of tries on every replica at once; others do not.
func TestTries(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		server := start(t)
		a, b := open(t, server, alice()), open(t, server, alice())
		for i, r := range []*rig{a, b, a, b, a} {
			if _, err := r.login(t, "alice", "wrong", fmt.Sprintf("192.0.2.1:%d", i)); !errors.Is(err, gateway.ErrLogin) {
				t.Fatalf("try %d: %v", i, err)
			}
		}
		for _, r := range []*rig{a, b} {
			if _, err := r.login(t, "alice", password, "192.0.2.1:9"); !errors.Is(err, gateway.ErrTooMany) {
				t.Errorf("a sixth try: %v", err)
			}
		}
		if _, err := a.login(t, "alice", password, "192.0.2.7:1"); err != nil {
			t.Errorf("alice from elsewhere: %v", err)
		}
	})
}

func TestSessionEnds(t *testing.T) {
	server := redistest.Embedded(t)
	for name, after := range map[string]func(r *rig) *rig{
		"idle":             func(r *rig) *rig { r.now = r.now.Add(30 * time.Minute); return r },
		"another password": func(r *rig) *rig { o := alice(); o.PasswordHash = other(t); return open(t, server, o) },
		"disabled":         func(*rig) *rig { o := alice(); o.Disabled = true; return open(t, server, o) },
		"removed":          func(*rig) *rig { o := alice(); o.Name, o.Identities = "bob", nil; return open(t, server, o) },
	} {
		r := open(t, server, alice())
		token, err := r.login(t, "alice", password, "192.0.2.1:1")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := after(r).Session(t.Context(), token); !errors.Is(err, gateway.ErrLogin) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r := open(t, server, alice())
	token, err := r.login(t, "alice", password, "192.0.2.1:1")
	if err != nil {
		t.Fatal(err)
	}
	for end := r.now.Add(12 * time.Hour); r.now.Before(end); r.now = r.now.Add(20 * time.Minute) {
		if _, err := r.Session(t.Context(), token); err != nil {
			t.Fatalf("busy, but ended: %v", err)
		}
	}
	if _, err := r.Session(t.Context(), token); !errors.Is(err, gateway.ErrLogin) {
		t.Errorf("older than its lifetime: %v", err)
	}
}

func other(t *testing.T) string {
	t.Helper()
	h, err := operators.HashPassword(gateway.NewSecret("another long password"))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestHuman(t *testing.T) {
	r := open(t, redistest.Embedded(t), alice())
	for name, ok := range map[string]bool{"alice": true, "alice@acme": true, "Alice": true, " ALICE@Acme ": true, "mailto:alice@acme": true, "operator:alice": true, "malice": false, "alice@acme.example": false, "": false} {
		if op, found := r.Human(name); found != ok || ok && op.Name != "alice" {
			t.Errorf("%q: %v %v", name, op.Name, found)
		}
	}
}

// One who was disabled cannot log in, learns no more than a stranger does, and is
// still known by every name, so that what they were behind stays theirs.
func TestDisabled(t *testing.T) {
	o := light(t)
	o.Disabled = true
	r := open(t, redistest.Embedded(t), o)
	for _, pw := range []string{password, "wrong"} {
		if token, err := r.login(t, "alice", pw, "192.0.2.1:1"); !errors.Is(err, gateway.ErrLogin) || !token.IsZero() {
			t.Errorf("%s: %v", pw, err)
		}
	}
	for _, name := range []string{"alice", "alice@acme"} {
		if op, known := r.Human(name); !known || op.Name != "alice" || !op.Disabled {
			t.Errorf("%s: %+v %v", name, op, known)
		}
	}
	for range 3 {
		_, _ = r.login(t, "alice", password, "192.0.2.1:1")
	}
	if _, err := r.login(t, "alice", password, "192.0.2.1:1"); !errors.Is(err, gateway.ErrTooMany) {
		t.Errorf("a sixth try: %v", err)
	}
}

func TestOperatorsThatAreNone(t *testing.T) {
	store := redistest.Embedded(t).Open(t, "acme")
	for name, change := range map[string]func(*operators.Operator){
		"a name with a space": func(o *operators.Operator) { o.Name = "al ice" },
		"an unknown role":     func(o *operators.Operator) { o.Roles = []string{"root"} },
		"a plain password":    func(o *operators.Operator) { o.PasswordHash = "secret" },
	} {
		o := alice()
		change(&o)
		if _, err := operators.New(operators.Config{Store: store, Operators: []operators.Operator{o}}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	twin := alice()
	twin.Name = "bob" // under alice's other name
	if _, err := operators.New(operators.Config{Store: store, Operators: []operators.Operator{alice(), twin}}); err == nil {
		t.Error("two humans under one identity: accepted")
	}
	if _, err := operators.HashPassword(gateway.NewSecret("short")); err == nil {
		t.Error("a short password: accepted")
	}
}

var cheap = sync.OnceValue(func() string {
	h, err := argon2id.CreateHash(password, &argon2id.Params{Memory: 64, Iterations: 1, Parallelism: 1, SaltLength: 16, KeyLength: 32})
	if err != nil {
		panic(err)
	}
	return h
})

// light is alice with a hash that costs little, for tests that log in often.
func light(t *testing.T) operators.Operator {
	t.Helper()
	o := alice()
	o.PasswordHash = cheap()
	return o
}

// A log out while the session is being renewed elsewhere holds: the other
// replica reads its clock between looking at the session and renewing it.
func TestLoggedOutStaysLoggedOut(t *testing.T) {
	redistest.Each(t, func(t *testing.T, start func(testing.TB) *redistest.Server) {
		server := start(t)
		a := open(t, server, light(t))
		token, err := a.login(t, "alice", password, "192.0.2.1:1")
		if err != nil {
			t.Fatal(err)
		}
		later := a.now.Add(2 * time.Minute) // so that it renews
		b, err := operators.New(operators.Config{
			Store: server.Open(t, "acme"), Operators: []operators.Operator{light(t)}, Now: func() time.Time {
				if err := a.Logout(t.Context(), token); err != nil {
					t.Error(err)
				}
				return later
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Session(t.Context(), token); !errors.Is(err, gateway.ErrLogin) && err != nil {
			t.Error(err)
		}
		if _, err := a.Session(t.Context(), token); !errors.Is(err, gateway.ErrLogin) {
			t.Errorf("the session came back: %v", err)
		}
	})
}

// An office behind one address may log in as often as it likes; only what fails
// is counted, and a login that works forgives nobody else's guesses.
func TestGoodLoginsAreNotCounted(t *testing.T) {
	ops := []operators.Operator{light(t)}
	for i := range 40 {
		o := light(t)
		o.Name, o.Identities = fmt.Sprint("other-", i), nil
		ops = append(ops, o)
	}
	r := open(t, redistest.Embedded(t), ops...)
	for i := range 100 {
		if _, err := r.login(t, "alice", password, "192.0.2.1:1"); err != nil {
			t.Fatalf("login %d: %v", i, err)
		}
	}
	refused := 0
	for i := range 40 {
		if _, err := r.login(t, "alice", password, "192.0.2.1:1"); errors.Is(err, gateway.ErrTooMany) {
			refused++
		}
		if _, err := r.login(t, fmt.Sprint("other-", i), "wrong", "192.0.2.1:1"); errors.Is(err, gateway.ErrTooMany) {
			refused++
		}
	}
	if refused == 0 {
		t.Error("forty guesses were hidden behind good logins")
	}
}
