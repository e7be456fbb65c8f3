package authz_test

import (
	"strings"
	"testing"

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
