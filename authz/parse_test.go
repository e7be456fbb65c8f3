package authz_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"toolbroker/authz"
)

// good stands around a row under test, so that nothing else is wrong.
const good = "p, bot, acme, k, s/t, call, , allow"

func TestFindings(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string // findings, without the file's name; none: the file is good
	}{
		{"good", good, nil},
		{"comments and blank lines", "# who may do what – “notes”, in any language\n\n   # indented, with a\ttab\n" + good + "\n\n", nil},
		{"ends of line as Windows writes them", "# x\r\n" + good + "\r\n", nil},
		{"cells in quotes", `"p", "bot" ,"acme", "k" , "s/t", "call", "args.a in ('x', 'y') && args.b == ""z""", "allow"`, nil},
		{"double quotes within a cell", `p, bot, acme, k, s/t, call, args.b == "z", allow`, nil},

		{"empty", "", []string{": error: no p row; a policy that grants nothing must still say so, for example: p, *, *, *, *, *, , deny"}},
		{"only comments", "# nothing\n", []string{": error: no p row; a policy that grants nothing must still say so, for example: p, *, *, *, *, *, , deny"}},
		{"only g rows", "g, bot, role:x, acme", []string{
			": error: no p row; a policy that grants nothing must still say so, for example: p, *, *, *, *, *, , deny",
			":1: warning: no row is about role:x"}},
		{"only denials", "p, *, *, *, *, *, , deny", []string{": warning: no row grants anything: every call will be denied"}},

		{"verdict in capitals", "p, bot, acme, k, s/t, call, , Deny", []string{`:1: error: verdict "Deny" is unknown; want allow, deny, approve or require, the last two perhaps with 'N of group:NAME'; did you mean "deny"?`}},
		{"verdict misspelt", "p, bot, acme, k, s/t, call, , aprove", []string{`:1: error: verdict "aprove" is unknown; want allow, deny, approve or require, the last two perhaps with 'N of group:NAME'; did you mean "approve"?`}},
		{"a group without group:", "p, bot, acme, k, s/t, call, , approve 2 of sre", []string{`:1: error: verdict "approve 2 of sre" is unknown; want allow, deny, approve or require, the last two perhaps with 'N of group:NAME'; did you mean "approve 2 of group:sre"?`}},
		{"a role where a group belongs", "p, bot, acme, k, s/t, call, , require 2 of role:sre", []string{`:1: error: verdict "require 2 of role:sre" is unknown; want allow, deny, approve or require, the last two perhaps with 'N of group:NAME'; did you mean "require 2 of group:sre"?`}},
		{"nobody is asked", "p, bot, acme, k, s/t, call, , approve 0 of group:sre", []string{`:1: error: verdict "approve 0 of group:sre" is unknown; want allow, deny, approve or require, the last two perhaps with 'N of group:NAME'`}},
		{"everybody is asked", "p, bot, acme, k, s/t, call, , approve 99 of group:sre", []string{`:1: error: verdict "approve 99 of group:sre" asks for more than 16 operators`}},
		{"confirm", "p, bot, acme, k, s/t, call, , confirm", []string{`:1: error: verdict "confirm" is not in this version yet; a "require" asks an operator instead`}},
		{"no verdict", "p, bot, acme, k, s/t, call, , ", []string{`:1: error: column verdict is empty; want allow, deny, approve or require, the last two perhaps with 'N of group:NAME'`}},
		{"a comment after a row", good + " # for now", []string{`:1: error: verdict "allow # for now": a comment needs a line of its own; did you mean "allow"?`}},
		{"an allow that counts", "p, bot, acme, k, s/t, call, , allow 2 of group:sre", []string{`:1: error: verdict "allow 2 of group:sre" is unknown; want allow, deny, approve or require, the last two perhaps with 'N of group:NAME'`}},

		{"too many columns", "p, bot, acme, k, s/t, call, args.a in ('x', 'y'), allow", []string{`:1: error: 8 columns, want 7: who, tenant, task, tool, action, when, verdict; a condition that contains a comma must stand in double quotes`}},
		{"too few columns", "p, bot, acme, k, allow", []string{`:1: error: 4 columns, want 7: who, tenant, task, tool, action, when, verdict`}},
		{"a g row with more", "g, bot, role:x, acme, more\n" + good, []string{`:1: error: 4 columns, want 3: workload, role, tenant`}},
		{"a g2 row with less", "g2, s/t\n" + good, []string{`:1: error: 1 columns, want 2: tool, group`}},
		{"another section", "p2, bot, acme, k, s/t, call, , allow\n" + good, []string{`:1: error: the line starts with "p2", want p, g or g2; did you mean "p"?`}},
		{"a line without a section", ", alice, x\n" + good, []string{`:1: error: the line starts with "", want p, g or g2`}},
		{"a quote left open", `p, bot, acme, k, s/t, call, "args.a == 'x', allow`, []string{`:1: error: a double quote is not closed on its line`}},
		{"text after a quote", `p, "bot"x, acme, k, s/t, call, , allow`, []string{`:1: error: text follows a closing double quote`}},
		{"a quoted comma is no column", "p, \"bot,acme\", k, s/t, call, , allow", []string{`:1: error: 6 columns, want 7: who, tenant, task, tool, action, when, verdict`}},

		{"empty who", "p, , acme, k, s/t, call, , allow", []string{`:1: error: column who is empty; write * for any`}},
		{"empty tool and action", "p, bot, acme, k, , , , allow", []string{`:1: error: column tool is empty; write * for any`, `:1: error: column action is empty; write * for any`}},
		{"an unknown action", "p, bot, acme, k, s/t, cal, , allow", []string{`:1: error: action "cal" is unknown; want * or one of list, call, read, get, complete, subscribe, elicit, sample, roots, start, delegate, escalate; did you mean "call"?`}},
		{"a byte order mark", "\ufeff" + good, []string{`:1: error: the file begins with a byte order mark; save it as plain UTF-8`}},
		{"a byte order mark further down", good + "\n\ufeffp, bot, acme, k, s/u, call, , deny", []string{`:2: error: the line has the invisible character U+FEFF`}},
		{"a tab", "p,\tbot, acme, k, s/t, call, , allow\n" + good, []string{`:1: error: the line has a tab; write spaces`}},
		{"a control character", "p, bot\x01, acme, k, s/t, call, , allow\n" + good, []string{`:1: error: the line has the invisible character U+0001`}},
		{"a carriage return within a line", "p, bot, acme, k, s/t, call, , deny\rp, x\n" + good, []string{`:1: error: the line has the invisible character U+000D`}},
		{"text that shows in another order", "# \u202e yned\n" + good, []string{`:1: error: the line has the invisible character U+202E`}},
		{"a space that does not break", "p, bot,\u00a0acme, k, s/t, call, , allow\n" + good, []string{`:1: error: the line has the invisible character U+00A0`}},
		{"not UTF-8", "p, b\xf6t, acme, k, s/t, call, , allow\n" + good, []string{`:1: error: the line is not UTF-8`}},
		{"a letter of another alphabet", "p, bоt, acme, k, s/t, call, , allow\n" + good, []string{`:1: error: column who has the character 'о' (U+043E), which is not ASCII; did you mean "bot"?`}},
		{"a letter of another alphabet in a condition", "p, bot, acme, k, s/t, call, args.a == 'bоt', allow", []string{`:1: warning: condition has 'о' (U+043E), which looks like 'o'`}},
		{"curly quotes", "p, bot, acme, k, s/t, call, args.a == ‘x’, allow\n" + good, []string{`:1: error: condition has '‘' (U+2018), which is not '\''`}},
		{"a space in a name", "p, my bot, acme, k, s/t, call, , allow\n" + good, []string{`:1: error: column who: "my bot" holds a space, a quote, a backslash, a comma or a semicolon`}},
		{"a line without end", "# " + strings.Repeat("x", 5000) + "\n" + good, []string{`:1: error: the line is longer than 4096 bytes`}},
		{"three stars", "p, bot, acme, k, s/***, call, , allow\n" + good, []string{`:1: error: column tool: "s/***" has three stars in a row; did you mean "s/**"?`}},
		{"another language's wildcards", "p, bot, acme, k, s/[ab]?, call, , allow", []string{`:1: warning: column tool: in "s/[ab]?" only * and ** are wildcards; other signs stand for themselves`}},

		{"twice the same", good + "\n# x\n" + good, []string{`:3: error: same as line 1`}},
		{"twice the same, written differently", good + "\n" + `p,bot,"acme",k,s/t,call,"",allow`, []string{`:2: error: same as line 1`}},
		{"cells that join to the same text", "p, bot, acme, k, s/t, call, args.a == 'x', allow\n" + `p, bot, acme, k, s/t, call, "args.a == 'x'", allow`, []string{`:2: error: same as line 1`}},

		{"a role nobody holds", "g, bot, role:triage, acme\np, role:triage, acme, k, s/t, call, , allow\np, role:traige, acme, k, s/u, call, , allow", []string{`:3: warning: nobody holds role:traige; did you mean "role:triage"?`}},
		{"a role only a role holds", "g, role:a, role:b, acme\np, role:b, acme, k, s/t, call, , allow", []string{`:2: warning: nobody holds role:b`}},
		{"a role no row is about", "g, bot, role:x, acme\n" + good, []string{`:1: warning: no row is about role:x`}},
		{"roles in a circle", "g, bot, role:a, acme\ng, role:a, role:b, acme\ng, role:b, role:a, acme\np, role:a, acme, k, s/t, call, , allow", []string{`:2: error: role cycle through role:a`, `:3: error: role cycle through role:b`}},
		{"a role beside a circle", "g, bot, role:a, acme\ng, role:a, role:b, acme\ng, role:b, role:a, acme\ng, role:b, role:c, acme\ng, role:d, role:a, acme\np, role:c, acme, k, s/t, call, , allow", []string{`:2: error: role cycle through role:a`, `:3: error: role cycle through role:b`}},
		{"a role that holds itself", "g, bot, role:a, acme\ng, role:a, role:a, acme\np, role:a, acme, k, s/t, call, , allow", []string{`:2: error: role cycle through role:a`}},
		{"a role without role:", "g, bot, triage, acme\n" + good, []string{`:1: error: column role: "triage" is no role; a role is role:NAME, of small letters, digits, '.', '_' and '-', without wildcards; did you mean "role:triage"?`}},
		{"a role with a wildcard", "p, role:*, acme, k, s/t, call, , allow\n" + good, []string{`:1: error: column who: "role:*" is no role; a role is role:NAME, of small letters, digits, '.', '_' and '-', without wildcards`}},
		{"a role in capitals", "p, Role:x, acme, k, s/t, call, , allow\n" + good, []string{`:1: error: column who: "Role:x" is no role; role: is written in small letters; did you mean "role:x"?`}},
		{"an operators' group as who", "p, group:sre, acme, k, s/t, call, , allow\n" + good, []string{`:1: error: column who: group: names operators, not workloads; did you mean "role:sre"?`}},
		{"an operators' group as workload", "g, group:sre, role:x, acme\np, role:x, acme, k, s/t, call, , allow", []string{`:1: error: column workload: group: names operators, not workloads`}},

		{"a group no row makes", "g2, s/t, risky\np, bot, acme, k, riksy, call, , allow\np, bot, acme, k, risky, call, , allow", []string{`:2: error: column tool: "riksy" is neither server/tool nor a group of a g2 row; did you mean "risky"?`}},
		{"a glob that no tool can match", "p, bot, acme, k, git*, call, , deny\n" + good, []string{`:1: error: column tool: "git*" is neither server/tool nor a group of a g2 row`}},
		{"a group no row is about", "g2, s/t, risky\n" + good, []string{`:1: warning: no row is about the group risky`}},
		{"a group within a group", "g2, s/t, risky\ng2, risky, worse\np, bot, acme, k, worse, call, , deny\np, bot, acme, k, risky, call, , allow", []string{`:2: error: column tool: "risky" is not server/tool; groups do not nest`}},
		{"a label nobody gave", "p, *, *, *, sends:external, call, , require\n" + good, []string{`:1: warning: no g2 row labels a tool sends:external; only tools without any label count as it`}},
		{"a grant by a label nobody gave", "p, bot, acme, k, destructive, call, , allow\n" + good, []string{`:1: warning: no g2 row labels a tool destructive, so this grants nothing`}},

		{"everything for everybody", "p, *, *, *, *, *, , allow", []string{`:1: warning: this lets everybody do this to every tool`}},
		{"everything for one", "p, bot, acme, *, *, *, , allow", []string{`:1: warning: this lets bot do everything to every tool, and start every kind of task`}},
		{"a pattern that is found anywhere", "p, bot, acme, k, s/t, call, args.repo =~ 'acme/', allow", []string{`:1: warning: the pattern 'acme/' is found anywhere in the value; begin it with ^ or end it with $`}},
		{"the same, denying", good + "\np, bot, acme, k, s/t, call, args.repo =~ 'evil', deny", nil},
		{"a row that a denial covers", "p, bot, acme, k, s/t, call, , allow\np, *, *, *, s/*, *, , deny\np, bot, acme, k, u/t, call, , allow", []string{`:1: warning: this can never decide: line 2 denies all of it`}},
		{"two denials, one within the other", good + "\np, *, *, *, u/**, call, , deny\np, bot, acme, *, u/x, call, args.a == 1, deny", []string{`:3: warning: this can never decide: line 2 denies all of it`}},
		{"a denial under a condition covers nothing", good + "\np, *, *, *, s/*, *, args.a == 1, deny", nil},
		{"a condition that never matters", "p, bot, acme, k, s/t, call, args.a == 1, allow\np, bot, acme, *, s/**, call, , allow", []string{`:1: warning: the condition never matters: line 2 allows all of it without one`}},
		{"a start that waits", good + "\np, bot, acme, *, task:x, start, , approve", []string{`:2: warning: a start or a delegation cannot wait for an operator: where this row matches one, the task does not start`}},
		{"a guardrail over everything", good + "\np, *, *, *, *, *, , require", []string{`:2: warning: a start or a delegation cannot wait for an operator: where this row matches one, the task does not start`}},
		{"a start of a tool", good + "\np, bot, acme, *, s/t, start, , allow", []string{`:2: warning: this can never match: what a start is about is a task, not s/t; did you mean "task:KIND"?`}},
		{"a delegation of a tool", good + "\np, bot, acme, *, s/t, delegate, , allow", []string{`:2: warning: this can never match: what a delegation is about is a task, not s/t; did you mean "task:KIND"?`}},
		{"a call of a task", good + "\np, bot, acme, *, task:x, call, , allow", []string{`:2: warning: this can never match: task:x is started or delegated, nothing else; did you mean "start"?`}},
		{"a list that waits", good + "\np, bot, acme, k, s/u, list, , require", []string{`:2: warning: a list never waits for an operator; this row does nothing`}},

		{"one mistake is not ten", "g, bot, role:x, acme me\np, role:x, acme, k, s/t, call, , allow", []string{`:1: error: column tenant: "acme me" holds a space, a quote, a backslash, a comma or a semicolon`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, findings := authz.Parse("policy.csv", []byte(c.text))
			var got []string
			for _, f := range findings {
				got = append(got, strings.TrimSuffix(strings.TrimPrefix(f.String(), "policy.csv"), " ["+f.Code+"]"))
			}
			if g, w := strings.Join(got, "\n"), strings.Join(c.want, "\n"); g != w {
				t.Errorf("got\n%s\nwant\n%s", g, w)
			}
			if refused := strings.Contains(strings.Join(c.want, ""), ": error: "); (p == nil) != refused {
				t.Errorf("policy %v, refused %v", p, refused)
			}
		})
	}
}

// A flood of findings is cut short, and what is kept still refuses the file.
func TestFindingsAreBounded(t *testing.T) {
	var text strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&text, "p, bot, acme, k, s/[%d], call, , allow\n", i)
	}
	text.WriteString("p, bot, acme, k, s/t, call, , Deny\n")
	p, findings := authz.Parse("policy.csv", []byte(text.String()))
	if p != nil || len(findings) > 300 || !authz.HasErrors(findings) {
		t.Errorf("policy %v, %d findings", p, len(findings))
	}
}

// A file in which everything is wrong, or everything is wide, is read in about
// the time of a good one: held against one another row by row, these would take
// minutes.
func TestLintIsBounded(t *testing.T) {
	var bad, wide strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&bad, "g, role:r%d, role:r%d, *\n", i, i+1)
	}
	for i := range 50_000 {
		fmt.Fprintf(&bad, "p, role:x%d, acme, k, s/t, call, , allow\n", i)
		fmt.Fprintf(&wide, "p, agent:*, t%d, k*, s%d/t*, call, , %s\n", i, i%100, []string{"allow", "deny"}[i%2])
	}
	for name, text := range map[string]string{"bad": bad.String(), "wide": wide.String()} {
		if p, findings := authz.Parse("policy.csv", []byte(text)); p == nil || len(findings) > 300 {
			t.Errorf("%s: %v with %d findings", name, p, len(findings))
		}
	}
}

func TestLint(t *testing.T) {
	p := parse(t, "g2, mail/send, sends:external\ng2, db/*, reads:private\ng2, db/drp, destructive\n"+
		"p, bot, acme, k, mail/send, call, , allow\np, bot, acme, k, mial/read, call, , allow\np, bot, acme, *, task:k, start, , allow\np, *, *, *, destructive, call, , require")
	var got []string
	for _, f := range p.Lint(authz.Beside{Tools: []authz.Tool{{Name: "mail/send"}, {Name: "mail/read"}, {Name: "db/drop"}, {Name: "db/query"}}}) {
		got = append(got, f.String())
	}
	want := []string{
		"policy.csv: warning: mail/read has no label, so it counts as reads:private, reads:untrusted, sends:external, changes:permissions, destructive wherever a row restricts [unlabelled]",
		`policy.csv:3: warning: no known tool matches "db/drp"; did you mean "db/drop"? [unknown-tool]`,
		`policy.csv:5: warning: no known tool matches "mial/read"; did you mean "mail/read"? [unknown-tool]`,
	}
	if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
		t.Errorf("got\n%s\nwant\n%s", g, w)
	}
}

// The policies we show people have nothing wrong with them.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../examples/policies/*.csv")
	if err != nil || len(files) < 3 {
		t.Fatal(files, err)
	}
	for _, file := range append(files, "testdata/policy.csv") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, findings := authz.Parse(file, text); len(findings) > 0 {
			t.Error(findings)
		}
	}
}

// Whatever the file holds: no panic, a policy or an error, and a policy that
// knows its own name.
func FuzzParse(f *testing.F) {
	text, err := os.ReadFile("testdata/policy.csv")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("g, a, role:b, *\ng2, a/b, c\np, role:b, *, *, c, *, \"args.a in ('x', \"\"y\"\")\", require 2 of group:z\n"))
	f.Add([]byte(", x\n\"\n\"\"\"\np,\xff,,,,,,\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, findings := authz.Parse("f", text)
		if (p == nil) != authz.HasErrors(findings) {
			t.Fatalf("policy %v with %v", p, findings)
		}
		for _, f := range findings {
			if f.Text == "" || f.Line < 0 || strings.ContainsAny(f.String(), "\n\x00") {
				t.Fatalf("finding %+v", f)
			}
		}
		if p == nil {
			return
		}
		if d := p.Decide(ask("a", "k", "a/b", `{"a":"x"}`)); d.Revision != p.Revision() || d.Verdict == authz.Approve && len(d.Need) == 0 || d.Verdict != authz.Deny && len(d.Rules) == 0 {
			t.Fatalf("%+v", d)
		}
		p.Explain(ask("a", "k", "a/b", `{"a":"x"}`))
		p.Lint(authz.Beside{Tools: []authz.Tool{{Name: "a/b", Schema: []byte(`{"properties":{"a":{"type":"string"}},"additionalProperties":false}`)}}, Now: noon})
	})
}
