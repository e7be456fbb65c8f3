package authz_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"toolbroker/authz"
)

const (
	first  = "p, bot, acme, k, s/t, call, , allow\n"
	second = "p, bot, acme, k, s/t, call, , approve\n"
	broken = "p, bot, acme, k, s/t, call, , Allow\n"
)

// heard is what a store told, in order.
type heard struct {
	mu     sync.Mutex
	events []string
	more   chan string
}

func (h *heard) say(s string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, s)
	if h.more != nil {
		h.more <- s
	}
}

func (h *heard) all() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(h.events, "\n")
}

func config(dir string, h *heard) authz.StoreConfig {
	return authz.StoreConfig{
		File: filepath.Join(dir, "policy.csv"), LastGood: filepath.Join(dir, "data", "policy.last"), Settle: time.Millisecond,
		OnLoad:   func(p *authz.Policy) { h.say("loaded " + filepath.Base(p.File()) + " " + p.Revision()[:13]) },
		OnReject: func(f []authz.Finding) { h.say("refused " + strings.TrimPrefix(f[0].String(), dir+"/")) },
	}
}

func write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func verdict(s *authz.Store) string { return s.Decide(ask("bot", "k", "s/t", "")).Verdict.String() }

func TestReload(t *testing.T) {
	dir, h := t.TempDir(), &heard{}
	cfg := config(dir, h)
	write(t, cfg.File, first)
	s, err := authz.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	was := s.Current()
	for _, c := range []struct {
		name, text string // no text: the file is gone
		verdict    string
		err        string
		heard      string
	}{
		{"unchanged", first, "allow", "", ""},
		{"changed", second, "approve", "", "loaded policy.csv sha256:"},
		{"broken", broken, "approve", "verdict \"Allow\" is unknown", "refused policy.csv:1: error: verdict \"Allow\" is unknown"},
		{"broken still, and asked again", broken, "approve", "verdict \"Allow\" is unknown", "refused policy.csv:1: error: verdict \"Allow\" is unknown"},
		{"emptied", "", "approve", "no p row", "refused policy.csv: error: no p row"},
		{"gone", "-", "approve", "no such file", "refused policy.csv: error: open"},
		{"back", first, "allow", "", "loaded policy.csv sha256:"},
		{"too large", "#" + strings.Repeat("\n", 33<<20), "allow", "larger than 32 MiB", "refused policy.csv: error: is larger than 32 MiB"},
	} {
		if c.text == "-" {
			if err := os.Remove(cfg.File); err != nil {
				t.Fatal(err)
			}
		} else {
			write(t, cfg.File, c.text)
		}
		before := h.all()
		err := s.Reload()
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.err)
		}
		if news := strings.TrimPrefix(h.all()[len(before):], "\n"); !strings.HasPrefix(news, c.heard) || news != "" && c.heard == "" {
			t.Errorf("%s: heard %q, want %q", c.name, news, c.heard)
		}
		if verdict(s) != c.verdict {
			t.Errorf("%s: %s, want %s", c.name, verdict(s), c.verdict)
		}
	}
	if d := was.Decide(ask("bot", "k", "s/t", "")); d.Verdict != authz.Allow || d.Revision != was.Revision() {
		t.Errorf("a policy out of force changed: %+v", d)
	}
	if s.Revision() != s.Current().Revision() || s.Current().Rows() != 1 || s.Current().File() != cfg.File {
		t.Errorf("%s %d %s", s.Revision(), s.Current().Rows(), s.Current().File())
	}
}

func TestOpen(t *testing.T) {
	for _, c := range []struct {
		name, file, kept, model string // no text: not there
		verdict, err, heard     string
	}{
		{"good", first, "", authz.Model, "allow", "", "loaded policy.csv"},
		{"good, and the copy is old", first, second, authz.Model, "allow", "", "loaded policy.csv"},
		{"bad", broken, "", authz.Model, "", "verdict \"Allow\"", "refused policy.csv:1"},
		{"bad, with a copy", broken, second, authz.Model, "approve", "", "refused policy.csv:1"},
		{"gone, with a copy", "", second, authz.Model, "approve", "", "refused policy.csv: error: open"},
		{"gone", "", "", authz.Model, "", "no such file", "refused policy.csv: error: open"},
		{"bad, with a bad copy", broken, broken, authz.Model, "", "policy.last:1", "refused policy.csv:1"},
		{"another model", first, second, strings.Replace(authz.Model, "deny > require", "allow > require", 1), "", "not the model", "refused policy.csv: error:"},
		{"no model", first, second, "", "", "model.conf: no such file", "refused policy.csv: error: open"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, h := t.TempDir(), &heard{}
			cfg := config(dir, h)
			cfg.Model = filepath.Join(dir, "model.conf")
			for name, text := range map[string]string{cfg.File: c.file, cfg.LastGood: c.kept, cfg.Model: c.model} {
				if text != "" {
					write(t, name, text)
				}
			}
			s, err := authz.Open(cfg)
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Fatalf("error %v, want %q", err, c.err)
			}
			if !strings.HasPrefix(h.all(), c.heard) {
				t.Errorf("heard %q, want %q", h.all(), c.heard)
			}
			if err != nil {
				return
			}
			if verdict(s) != c.verdict {
				t.Errorf("%s, want %s", verdict(s), c.verdict)
			}
			kept, err := os.ReadFile(cfg.LastGood)
			info, _ := os.Stat(cfg.LastGood)
			if err != nil || info.Mode().Perm() != 0o600 || c.kept == "" && string(kept) != c.file {
				t.Errorf("kept %q, %v, %v", kept, info, err)
			}
		})
	}
	if !strings.HasPrefix(authz.ModelHash(), "sha256:") || len(authz.ModelHash()) != 71 {
		t.Error(authz.ModelHash())
	}
}

// A file that is still being written is good, line by line, long before it is whole.
func TestHalfAFileIsNotLoaded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, h := t.TempDir(), &heard{}
		cfg := config(dir, h)
		cfg.Settle = time.Second
		write(t, cfg.File, first)
		go func() {
			if _, err := authz.Open(cfg); err != nil {
				t.Error(err)
			}
		}()
		synctest.Wait() // it has read once
		write(t, cfg.File, first+"p, *, *, *, s/*, call, args.n > 9, deny\n")
		time.Sleep(1500 * time.Millisecond) // it has read twice
		write(t, cfg.File, first+"p, *, *, *, s/*, call, , deny\n")
		time.Sleep(time.Minute)
		synctest.Wait()
		sum := sha256.Sum256([]byte(first + "p, *, *, *, s/*, call, , deny\n"))
		if want := fmt.Sprintf("loaded policy.csv sha256:%x", sum[:3]); h.all() != want {
			t.Errorf("heard %q, want %q", h.all(), want)
		}
	})
}

// A file put in place of another, one written over, one that appears again: each
// is seen, and a bad one is told once however often it is read.
func TestWatch(t *testing.T) {
	dir, h := t.TempDir(), &heard{more: make(chan string, 100)}
	cfg := config(dir, h)
	cfg.Poll = time.Hour // so that only events make it look
	write(t, cfg.File, first)
	s, err := authz.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Watch(ctx) }()
	next := func(want string) {
		t.Helper()
		select {
		case got := <-h.more:
			if !strings.HasPrefix(got, want) {
				t.Fatalf("heard %q, want %q", got, want)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("heard nothing, want %q", want)
		}
	}
	next("loaded")
	// Whether or not the watch had begun, the first look comes after it began.
	aside := filepath.Join(dir, "new")
	write(t, aside, second)
	if err := os.Rename(aside, cfg.File); err != nil {
		t.Fatal(err)
	}
	next("loaded")
	if verdict(s) != "approve" {
		t.Error(verdict(s))
	}
	write(t, aside, broken)
	if err := os.Rename(aside, cfg.File); err != nil {
		t.Fatal(err)
	}
	next("refused policy.csv:1")
	for range 5 {
		write(t, filepath.Join(dir, "neighbour"), "x")
	}
	if err := os.Remove(cfg.File); err != nil {
		t.Fatal(err)
	}
	next("refused policy.csv: error: open")
	write(t, aside, first)
	if err := os.Rename(aside, cfg.File); err != nil {
		t.Fatal(err)
	}
	next("loaded")
	if verdict(s) != "allow" {
		t.Error(verdict(s))
	}
	cancel()
	if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Where no events come, looking now and then is enough.
func TestWatchPolls(t *testing.T) {
	dir, h := t.TempDir(), &heard{more: make(chan string, 100)}
	real := t.TempDir() // events come for the folder of the link only
	cfg := config(dir, h)
	cfg.Poll = time.Millisecond
	write(t, filepath.Join(real, "p"), first)
	if err := os.Symlink(filepath.Join(real, "p"), cfg.File); err != nil {
		t.Fatal(err)
	}
	s, err := authz.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Watch(ctx) }()
	<-h.more
	// The first may be seen as the watch begins; the second only by looking again.
	for _, c := range []struct{ text, verdict string }{{second, "approve"}, {first, "allow"}} {
		aside := filepath.Join(real, "new")
		write(t, aside, c.text)
		if err := os.Rename(aside, filepath.Join(real, "p")); err != nil {
			t.Fatal(err)
		}
		<-h.more
		if verdict(s) != c.verdict {
			t.Errorf("%s, want %s", verdict(s), c.verdict)
		}
	}
	cancel()
	<-done
}

// While policies are swapped, every decision is wholly one policy's.
func TestReloadWhileDeciding(t *testing.T) {
	dir, h := t.TempDir(), &heard{}
	cfg := config(dir, h)
	texts := []string{
		"g, b*, role:x, acme\np, role:x, acme, k, s/t, call, args.n == 5, allow\np, *, *, *, s/*, call, args.n > 9, deny\n",
		"g, b*, role:y, acme\np, role:y, acme, k, s/t, call, args.n == 5, approve 2 of group:one\np, *, *, *, s/*, call, , require 3 of group:two\n",
	}
	write(t, cfg.File, texts[0])
	s, err := authz.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	zero := s.Revision()
	within := []*authz.Scope{scope(t,
		authz.ScopeRow{Tool: "s/*", Action: "call", Verdict: "allow"},
		authz.ScopeRow{Tool: "s/t", Action: "call", When: "args.n >= 5", Verdict: "require 1 of group:three"}).Named("k1")}
	// Three questions at each policy: a call, the same on a task, and what a list shows.
	want := map[bool][]string{
		true:  {"allow 2", "approve 2 k1:1 k1:2; 1 of three (k1:2)", "allow 2"},
		false: {"approve 2 3; 2 of one (2) 3 of two (3)", "approve 2 3 k1:1 k1:2; 2 of one (2) 3 of two (3) 1 of three (k1:2)", "allow 2"},
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var deciders sync.WaitGroup
	decided := make(chan struct{}, 1)
	for i := range 4 {
		deciders.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				r := ask(fmt.Sprintf("b%d-%d", i, n%50), "k", "s/t", `{"n":5}`)
				switch n % 3 {
				case 1:
					r.Scopes = within
				case 2:
					r.Action, r.Args = authz.List, nil
				}
				if d := s.Decide(r); say(d) != want[d.Revision == zero][n%3] {
					t.Errorf("%s: %s, want %s", d.Revision, say(d), want[d.Revision == zero][n%3])
					cancel()
				}
				select {
				case decided <- struct{}{}:
				default:
				}
			}
		})
	}
	for i := range 30 {
		select {
		case <-decided:
		case <-ctx.Done():
			return
		}
		write(t, filepath.Join(dir, "new"), texts[(i+1)%2])
		if err := os.Rename(filepath.Join(dir, "new"), cfg.File); err != nil {
			t.Fatal(err)
		}
		if err := s.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	deciders.Wait()
}

// A file that lost half of its rows takes the place of one that is in force, or was
// before the start, only where it names that one.
func TestShrunkFile(t *testing.T) {
	const whole = first + "p, bot, acme, k, s/u, call, , allow\np, bot, acme, k, s/v, call, , allow\np, bot, acme, k, s/w, call, , allow\n"
	dir, h := t.TempDir(), &heard{}
	cfg := config(dir, h)
	write(t, cfg.File, whole)
	s, err := authz.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	good := s.Revision()
	for _, text := range []string{second, second + "# toolbroker: replaces sha256:000000000000\n", second + "# toolbroker: replaces " + good[:12] + "\n"} {
		write(t, cfg.File, text)
		if err := s.Reload(); err == nil || !strings.Contains(err.Error(), "[shrunk]") || !strings.Contains(err.Error(), "# toolbroker: replaces "+good[:19]) || s.Revision() != good || s.Refused() == nil {
			t.Errorf("%q: %v, %s in force, refused %v", text, err, s.Revision(), s.Refused())
		}
		if again, err := authz.Open(cfg); err != nil || again.Revision() != good || again.Refused() == nil {
			t.Errorf("started anew it has another policy in force: %v", err)
		}
	}
	write(t, cfg.File, whole)
	if err := s.Reload(); err != nil || s.Refused() != nil {
		t.Errorf("%v, refused %v", err, s.Refused())
	}
	write(t, cfg.File, "# toolbroker: replaces "+good[:19]+"\n"+second)
	if err := s.Reload(); err != nil || verdict(s) != "approve" || s.Refused() != nil || len(s.Current().Warnings()) != 1 || s.Current().Warnings()[0].Code != "shrunk-meant" {
		t.Errorf("%v, %s, refused %v, %v", err, verdict(s), s.Refused(), s.Current().Warnings())
	}
	if again, err := authz.Open(cfg); err != nil || again.Revision() != s.Revision() || again.Refused() != nil {
		t.Errorf("started anew it has another policy in force: %v", err)
	}
}

// What is wrong beside the file refuses it like what is wrong in it, and a change
// beside it makes it be looked at again.
func TestCheckBesideTheFile(t *testing.T) {
	dir, h := t.TempDir(), &heard{more: make(chan string, 100)}
	cfg := config(dir, h)
	cases := filepath.Join(dir, "policy_test.yaml")
	cfg.Beside = []string{cases}
	cfg.Poll = 5 * time.Millisecond
	cfg.Check = func(p *authz.Policy) []authz.Finding {
		if want, _ := os.ReadFile(cases); len(want) > 0 && p.Decide(ask("bot", "k", "s/t", "")).Verdict.String() != string(want) {
			return []authz.Finding{{File: cases, Line: 7, Severity: authz.SeverityError, Code: "case", Text: "not what was wanted"}}
		}
		return nil
	}
	write(t, cases, "allow")
	write(t, cfg.File, first)
	s, err := authz.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Watch(ctx) }()
	for _, step := range []struct{ file, text, heard string }{
		{"", "", "loaded"},
		{cfg.File, second, "refused policy_test.yaml:7: error: not what was wanted [case]"},
		{cases, "approve", "loaded"},
	} {
		if step.file != "" {
			write(t, step.file, step.text)
		}
		select {
		case got := <-h.more:
			if !strings.HasPrefix(got, step.heard) {
				t.Fatalf("heard %q, want %q", got, step.heard)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("heard nothing, want %q", step.heard)
		}
	}
	if verdict(s) != "approve" {
		t.Error(verdict(s))
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
