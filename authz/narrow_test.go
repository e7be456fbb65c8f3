package authz_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"toolbroker/authz"
)

func scopeOf(t *testing.T, text string) *authz.Scope {
	t.Helper()
	var rows []authz.ScopeRow
	for row := range strings.FieldsSeq(text) {
		cells := strings.Split(row, ",")
		rows = append(rows, authz.ScopeRow{Tool: cells[0], Action: cells[1], Verdict: cells[2]})
	}
	s, err := authz.NewScope(rows)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestNarrow(t *testing.T) {
	max := "tracker/*,call,allow notes/**,*,approve task:sub,delegate,allow"
	for _, c := range []struct{ name, asked, got string }{
		{"what is within stays", "tracker/read,call,allow", "tracker/read,call,allow"},
		{"a narrower pattern stays", "tracker/read*,call,allow notes/a/**,read,allow", "tracker/read*,call,allow notes/a/**,read,allow"},
		{"a wider pattern is cut", "**,call,allow", "notes/**,call,allow tracker/*,call,allow"},
		{"a wider action is cut", "tracker/read,*,allow", "tracker/read,call,allow"},
		{"restrictions stay", "tracker/*,call,allow shell/*,*,deny **,call,require", "tracker/*,call,allow shell/*,*,deny **,call,require"},
		{"a kind to delegate", "task:sub,delegate,allow", "task:sub,delegate,allow"},
		{"nothing is nothing", "", ""},
		{"a foreign tool", "shell/run,call,allow", "wider"},
		{"a foreign action", "tracker/read,read,allow", "wider"},
		{"another kind", "task:other,delegate,allow", "wider"},
		{"one good row does not carry a bad one", "tracker/read,call,allow shell/run,call,allow", "wider"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := scopeOf(t, c.asked).Narrow(scopeOf(t, max))
			if (c.got == "wider") != (err != nil) {
				t.Fatalf("%v, %v", got, err)
			}
			if err == nil && got.Hash() != scopeOf(t, c.got).Hash() {
				t.Errorf("got %v", got.Rows())
			}
		})
	}
	if _, err := scopeOf(t, "a/b,call,allow").Narrow(nil); err == nil {
		t.Error("something lies within nothing")
	}
}

func TestPlus(t *testing.T) {
	p, _ := authz.Parse("p.csv", []byte("p, *, *, *, **, *, , allow\n"))
	sum, err := scopeOf(t, "a/b,call,allow a/c,call,deny").Plus([]authz.ScopeRow{{Tool: "a/d", Action: "call", Verdict: "allow"}, {Tool: "a/c", Action: "call", Verdict: "allow"}})
	if err != nil {
		t.Fatal(err)
	}
	for tool, want := range map[string]authz.Verdict{"a/b": authz.Allow, "a/c": authz.Deny, "a/d": authz.Allow, "a/e": authz.Deny} {
		d := p.Decide(authz.Request{Subject: authz.Subject{Principal: "x", Tenant: "y"}, Tool: tool, Action: authz.Call, Scopes: []*authz.Scope{sum}})
		if d.Verdict != want {
			t.Errorf("%s: %v", tool, d.Verdict)
		}
	}
}

// What lies within both stands alone: no condition, no denial and no agreement of
// either is lost, also where max is not asked beside it.
func TestWithin(t *testing.T) {
	row := func(tool, action, when, verdict string) authz.ScopeRow {
		return authz.ScopeRow{Tool: tool, Action: action, When: when, Verdict: verdict}
	}
	max := scope(t, row("tracker/*", "call", "args.n < 5", "allow"), row("tracker/close", "*", "", "deny"), row("notes/**", "*", "", "approve 1 of group:leads"))
	for _, c := range []struct {
		name  string
		asked authz.ScopeRow
		tool  string
		args  string
		want  authz.Verdict
	}{
		{"under its condition", row("tracker/*", "call", "", "allow"), "tracker/get", `{"n":4}`, authz.Allow},
		{"beyond its condition", row("tracker/*", "call", "", "allow"), "tracker/get", `{"n":5}`, authz.Deny},
		{"beyond the asker's own", row("tracker/get", "call", "args.n > 3", "allow"), "tracker/get", `{"n":3}`, authz.Deny},
		{"what it denies by name", row("tracker/*", "call", "", "allow"), "tracker/close", `{"n":1}`, authz.Deny},
		{"what it asks a human for", row("notes/read", "call", "", "allow"), "notes/read", `{}`, authz.Approve},
		{"all that there is", row("**", "*", "", "allow"), "notes/a/b", `{}`, authz.Approve},
		{"a foreign tool", row("**", "*", "", "allow"), "shell/run", `{}`, authz.Deny},
	} {
		p, _ := authz.Parse("p.csv", []byte("p, *, *, *, **, *, , allow\n"))
		got, err := scope(t, c.asked).Within(max)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		q := ask("a", "work", c.tool, c.args)
		q.Scopes = []*authz.Scope{got}
		if d := p.Decide(q); d.Verdict != c.want {
			t.Errorf("%s: %v under %v", c.name, d.Verdict, got.Rows())
		}
	}
	for name, foreign := range map[string]authz.ScopeRow{"a tool": row("shell/run", "call", "", "allow"), "an action": row("tracker/get", "read", "", "allow")} {
		if _, err := scope(t, foreign).Within(max); err == nil || !strings.Contains(err.Error(), "wider than the scope of a task") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := scope(t, row("a/b", "call", "", "allow")).Within(scope(t)); err == nil {
		t.Error("something lies within nothing")
	}
	// Patterns can overlap where neither holds the other; who must agree there must agree still.
	got, err := scope(t, row("**/b", "call", "", "approve"), row("s/*", "call", "", "allow")).Within(scope(t, row("u/b", "call", "", "allow"), row("s/b*", "call", "", "allow")))
	if err != nil {
		t.Fatal(err)
	}
	p, _ := authz.Parse("p.csv", []byte("p, *, *, *, **, *, , allow\n"))
	q := ask("a", "work", "s/b", `{}`)
	q.Scopes = []*authz.Scope{got}
	if d := p.Decide(q); d.Verdict != authz.Approve {
		t.Errorf("where patterns overlap: %v under %v", d.Verdict, got.Rows())
	}
	plain := scope(t, row("a/*", "call", "", "allow"))
	if got, err := scope(t, row("a/b", "call", "args.n == 1", "allow")).Within(plain); err != nil || len(got.Rows()) != 1 {
		t.Errorf("what is within stays as it was asked for: %v, %v", got.Rows(), err)
	}
}

func TestWithinIsNeverWiderThanBoth(t *testing.T) {
	everything, _ := authz.Parse("p.csv", []byte("p, *, *, *, **, *, , allow\n"))
	genScope := rapid.Custom(func(t *rapid.T) *authz.Scope {
		var rows []authz.ScopeRow
		for i := range rapid.IntRange(1, 4).Draw(t, "rows") {
			rows = append(rows, authz.ScopeRow{
				Tool:   rapid.SampledFrom([]string{"*", "s/*", "s/b*", "u/b", "**", "**/b", "s/a"}).Draw(t, fmt.Sprint("tool", i)),
				Action: genAction.Draw(t, "action"), When: genWhen.Draw(t, "when"), Verdict: genVerdict.Draw(t, "verdict"),
			})
		}
		s, err := authz.NewScope(rows)
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
	granted := 0
	rapid.Check(t, func(t *rapid.T) {
		asked, max := genScope.Draw(t, "asked"), genScope.Draw(t, "max")
		got, err := asked.Within(max)
		if err != nil {
			return
		}
		for i := range 10 {
			q := genRequest.Draw(t, fmt.Sprint("request", i))
			q.Scopes = []*authz.Scope{asked, max}
			both := everything.Decide(q)
			q.Scopes = []*authz.Scope{got}
			alone := everything.Decide(q)
			if alone.Verdict > both.Verdict {
				t.Fatalf("%s %s %s: both say %s, what lies within both says %s\n%v\n%v\n%v", q.Action, q.Tool, q.Args, both.Verdict, alone.Verdict, asked.Rows(), max.Rows(), got.Rows())
			}
			if alone.Verdict == authz.Deny {
				continue
			}
			granted++
			for _, n := range both.Need {
				if !slices.ContainsFunc(alone.Need, func(o authz.Requirement) bool { return o.N == n.N && o.Group == n.Group }) {
					t.Fatalf("%d of %q was dropped", n.N, n.Group)
				}
			}
		}
	})
	if granted == 0 {
		t.Error("nothing was ever granted: it tests nothing")
	}
}
