package authz_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"toolbroker/authz"
)

func TestScopeJSON(t *testing.T) {
	rows := []authz.ScopeRow{{Tool: "github/*", Action: "call", When: "args.repo =~ '^acme/'", Verdict: "allow"}, {Tool: "*", Action: "*", Verdict: "require 2 of group:sre"}}
	s := scope(t, rows...)
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if want := `[{"tool":"github/*","action":"call","when":"args.repo =~ '^acme/'","verdict":"allow"},{"tool":"*","action":"*","verdict":"require 2 of group:sre"}]`; string(text) != want {
		t.Errorf("%s, want %s", text, want)
	}
	var back authz.Scope
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if back.Hash() != s.Hash() || len(back.Rows()) != 2 || back.Rows()[1] != rows[1] {
		t.Errorf("%+v after %+v", back.Rows(), s.Rows())
	}
	// By sha256sum of [{"action":"call","tool":"s/t","verdict":"allow"}].
	if got, want := scope(t, authz.ScopeRow{Tool: "s/t", Action: "call", Verdict: "allow"}).Hash(), "sha256:be168a740063348b072718cf11dcb55b1ebb21fd90550df6d6d5b2842b05dbbb"; got != want {
		t.Errorf("hash %s, want %s", got, want)
	}
	if s.Named("t-1").Hash() != s.Hash() {
		t.Error("a name changed the hash")
	}
	if same := scope(t).Hash(); same != (&authz.Scope{}).Hash() || same == s.Hash() {
		t.Errorf("hash of the empty scope: %s", same)
	}
	s.Rows()[0].Tool = "mallory/*"
	rows[0].Tool = "mallory/*"
	if s.Rows()[0].Tool != "github/*" {
		t.Error("a scope changed")
	}

	// A task without a scope has one that reaches nothing.
	var task struct{ Scope *authz.Scope }
	if err := json.Unmarshal([]byte(`{"Scope":null}`), &task); err != nil || task.Scope != nil {
		t.Error(task.Scope, err)
	}
	text, err = json.Marshal(struct{ A, B *authz.Scope }{nil, &authz.Scope{}})
	if want := `{"A":null,"B":[]}`; err != nil || string(text) != want {
		t.Errorf("%s %v", text, err)
	}
}

func TestBadScopes(t *testing.T) {
	ok := authz.ScopeRow{Tool: "s/t", Action: "call", Verdict: "allow"}
	with := func(change func(*authz.ScopeRow)) []authz.ScopeRow {
		r := ok
		change(&r)
		return []authz.ScopeRow{ok, r}
	}
	for _, c := range []struct {
		name string
		rows []authz.ScopeRow
		want string
	}{
		{"verdict", with(func(r *authz.ScopeRow) { r.Verdict = "Allow" }), `row 2: verdict "Allow" is unknown; want allow, deny, approve or require, the last two perhaps with 'N of group:NAME'; did you mean "allow"?`},
		{"no verdict", with(func(r *authz.ScopeRow) { r.Verdict = "" }), "row 2: column verdict is empty"},
		{"action", with(func(r *authz.ScopeRow) { r.Action = "calls" }), `row 2: action "calls" is unknown`},
		{"no tool", with(func(r *authz.ScopeRow) { r.Tool = "" }), "row 2: column tool is empty"},
		{"group", with(func(r *authz.ScopeRow) { r.Tool = "destructive" }), `row 2: tool "destructive" is not server/tool; a scope names no groups`},
		{"condition", with(func(r *authz.ScopeRow) { r.When = "true" }), "row 2: condition compares nothing"},
		{"long condition", with(func(r *authz.ScopeRow) { r.When = strings.Repeat("(", 1000) }), "row 2: condition is longer than 512 bytes"},
		{"large pattern", with(func(r *authz.ScopeRow) { r.When = "args.a =~ '[ab]{900}[cd]{900}'" }), "row 2: condition has a pattern that is too large"},
		// Text that would be more rows, or other columns, if it were ever a policy file.
		{"newline", with(func(r *authz.ScopeRow) { r.Tool = "s/t\np, *, *, *, *, *, , allow" }), "row 2: the line has the invisible character U+000A"},
		{"newline in a condition", with(func(r *authz.ScopeRow) { r.When = "args.a == 1\ng, *, role:x, *" }), "row 2: the line has the invisible character U+000A"},
		{"comma", with(func(r *authz.ScopeRow) { r.Tool = "s/t, call, , allow" }), "row 2: column tool"},
		{"quote", with(func(r *authz.ScopeRow) { r.Tool = `s/t"` }), "row 2: column tool"},
		{"byte order mark", with(func(r *authz.ScopeRow) { r.Tool = "\ufeffs/t" }), "row 2: the line has the invisible character U+FEFF"},
		{"not UTF-8", with(func(r *authz.ScopeRow) { r.Tool = "s/\xff" }), "scope: "},
		{"too many rows", make([]authz.ScopeRow, 257), "at most 256 rows"},
		{"too many bytes", slicesRepeat(authz.ScopeRow{Tool: "s/t", Action: "call", When: strings.Repeat("args.a && ", 50) + "args.a", Verdict: "allow"}, 200), "at most 65536 bytes"},
	} {
		if s, err := authz.NewScope(c.rows); err == nil || s != nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
	}
	for name, text := range map[string]string{
		"another who":     `[{"who":"bot","tool":"s/t","action":"call","verdict":"allow"}]`,
		"another tenant":  `[{"tenant":"acme","tool":"s/t","action":"call","verdict":"allow"}]`,
		"a role":          `[{"g":"bot, role:x, acme"}]`,
		"a name twice":    `[{"tool":"s/t","tool":"*","action":"call","verdict":"allow"}]`,
		"another case":    `[{"Tool":"s/t","action":"call","verdict":"allow"}]`,
		"text":            `"p, *, *, *, *, *, , allow"`,
		"an object":       `{"rows":[]}`,
		"a list of lists": `[["s/t","call","","allow"]]`,
		"two values":      `[][]`,
		"null":            `null`,
	} {
		before := scope(t, ok)
		if err := before.UnmarshalJSON([]byte(text)); err == nil {
			t.Errorf("%s was taken: %v", name, before.Rows())
		} else if len(before.Rows()) != 1 {
			t.Errorf("%s was refused and changed the scope", name)
		}
	}
}

func slicesRepeat(r authz.ScopeRow, n int) []authz.ScopeRow {
	var rows []authz.ScopeRow
	for i := range n {
		r.Tool = fmt.Sprintf("s/t%d", i)
		rows = append(rows, r)
	}
	return rows
}

// Whatever an API hands over: an error, or a scope that survives its own JSON
// and that narrows.
func FuzzNewScope(f *testing.F) {
	f.Add("s/*", "call", "args.a == 'x'", "approve 2 of group:sre")
	f.Add("*", "*", "", "deny")
	f.Add("s/t\np, *, *, *, *, *, , allow", "call", "\ufeff", "allow\"")
	p := parse(f, "p, bot, acme, k, s/t, call, args.n == 5, allow")
	f.Fuzz(func(t *testing.T, tool, action, when, verdict string) {
		s, err := authz.NewScope([]authz.ScopeRow{{Tool: tool, Action: action, When: when, Verdict: verdict}})
		if err != nil {
			return
		}
		text, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var back authz.Scope
		if err := json.Unmarshal(text, &back); err != nil || back.Hash() != s.Hash() {
			t.Fatalf("%s: %v", text, err)
		}
		for _, args := range []string{`{"n":5}`, `{"n":6}`} {
			r := ask("bot", "k", "s/t", args)
			without := p.Decide(r).Verdict
			r.Scopes = []*authz.Scope{s}
			if d := p.Decide(r); d.Verdict > without {
				t.Fatalf("%s with %s, %s without", d.Verdict, text, without)
			}
		}
	})
}

// Tasks that have the same scope are each cited by their own name, whoever of them
// asks first and whether or not an argument matters.
func TestNamesAreNotShared(t *testing.T) {
	p := parse(t, "p, bot, acme, k, s/*, call, , allow")
	for _, when := range []string{"", "args.n == 5"} {
		rows := scope(t, authz.ScopeRow{Tool: "s/*", Action: "call", When: when, Verdict: "approve"})
		one, two := rows.Named("one"), rows.Named("two")
		for range 2 {
			for _, s := range []*authz.Scope{one, two, rows} {
				q := ask("bot", "k", "s/t", `{"n":5}`)
				q.Scopes = []*authz.Scope{s}
				want := map[*authz.Scope]string{one: "scope of one", two: "scope of two", rows: "scope of a task"}[s]
				if d := p.Decide(q); d.Verdict != authz.Approve || d.Need[0].Rule.File != want || !strings.Contains(d.Reason, want) || !strings.Contains(d.Cited[1], want) {
					t.Errorf("%+v, want %s", d, want)
				}
			}
		}
	}
}

// However deep a task is, every scope counts; beyond a number of them nothing is
// remembered.
func TestManyScopes(t *testing.T) {
	p := parse(t, "p, bot, acme, k, s/*, call, , allow")
	q := ask("bot", "k", "s/t", `{"n":5}`)
	for deep := range 12 {
		q.Scopes = append(q.Scopes, scope(t, authz.ScopeRow{Tool: "s/*", Action: "call", Verdict: "approve"}).Named(strconv.Itoa(deep)))
		for range 2 {
			if d := p.Decide(q); d.Verdict != authz.Approve || len(d.Need) != deep+1 || d.Need[deep].Rule.File != "scope of "+strconv.Itoa(deep) {
				t.Errorf("%d: %+v", deep, d)
			}
		}
		denies := q
		denies.Scopes = append(slices.Clone(q.Scopes), scope(t, authz.ScopeRow{Tool: "s/*", Action: "call", When: "args.n != 5", Verdict: "allow"}))
		if d := p.Decide(denies); d.Verdict != authz.Deny {
			t.Errorf("%d and one that does not grant: %+v", deep, d)
		}
	}
}
