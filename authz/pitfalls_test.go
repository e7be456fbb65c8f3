package authz_test

import (
	"fmt"
	"strings"
	"testing"

	"toolbroker/authz"
)

// What Casbin, its loaders and its expressions make of these files is wrong, and
// was seen to be: a denial typed in capitals that is no row, a file cut off that
// is a policy, a wildcard that covers what follows it. Here each is refused with
// its code, or means what it says.
func TestPitfallsOfCasbin(t *testing.T) {
	bot := func(tool, args string) authz.Request { return ask("bot", "k", tool, args) }
	const grant = "p, bot, acme, k, s/*, call, , allow\n"
	for _, c := range []struct {
		id, name, text string
		refused        string // the code of the error, or empty
		r              authz.Request
		want           string
	}{
		{"P1", "a denial in capitals", grant + "p, *, *, *, s/t, *, , Deny", "unknown-verdict", bot("s/t", ""), ""},
		{"P2", "an approval beside a broad grant", grant + "p, bot, acme, k, s/t, call, , approve", "", bot("s/t", ""), "approve 1 2; 1 of anyone (2)"},
		{"P3", "an empty file and an empty request", "", "no-rows", authz.Request{}, ""},
		{"P3", "an empty request", grant, "", authz.Request{Action: authz.Call}, "deny"},
		{"P4", "a stranger, where rows only deny others", "p, mallory, *, *, *, *, , deny", "", bot("s/t", ""), "deny"},
		{"P5", "a line that is no row", grant + "p bot acme k s/t call deny", "unknown-section", bot("s/t", ""), ""},
		{"P7", "a file cut off within a row", grant + "p, *, *, *, s/t, cal", "columns", bot("s/t", ""), ""},
		{"P7", "a file of no bytes", "", "no-rows", bot("s/t", ""), ""},
		{"P9", "what follows a wildcard", "p, bot, acme, k, github/*.get, call, , allow", "", bot("github/repo.delete", ""), "deny"},
		{"P9", "a wildcard first", "p, bot, acme, k, */delete, call, , allow", "", bot("github/x", ""), "deny"},
		{"P10", "a dot in a name", "p, bot, acme, k, s/a.b, call, , allow", "", bot("s/axb", ""), "deny"},
		{"P10", "a pattern that is none", "p, bot, acme, k, s/t, call, args.a =~ '(', deny\n" + grant, "pattern", bot("s/t", ""), ""},
		{"P10", "a pattern found in the middle does grant, and the file is warned of", "p, bot, acme, k, s/t, call, args.a =~ 'acme/', allow", "", bot("s/t", `{"a":"evil/acme/x"}`), "allow 1"},
		{"P13", "roles in a circle", "g, bot, role:a, *\ng, role:a, role:b, *\ng, role:b, role:a, *\np, role:a, *, *, s/t, *, , allow", "role-cycle", bot("s/t", ""), ""},
		{"P13", "roles deeper than ten", deep(14), "", bot("s/t", ""), "allow 15"},
		{"P15", "rows whose cells join to the same text", "p, bot, acme, k, s/t, call, args.a == 'x', deny\np, bot, acme, k, s/t, call, \"args.a == 'x' && args.b in ('p','q')\", allow\n" + grant, "", bot("s/t", `{"a":"x","b":"p"}`), "deny 1"},
		{"P16", "an empty who", grant + "p, , acme, k, s/t, call, , deny", "empty-cell", bot("s/t", ""), ""},
		{"P16", "a g row with more columns", "g, bot, role:a, acme, x\np, role:a, acme, k, s/t, call, , allow", "columns", bot("s/t", ""), ""},
		{"P16", "an empty verdict", grant + "p, bot, acme, k, s/t, call, , ", "empty-cell", bot("s/t", ""), ""},
		{"P17", "a comment after a row", grant + "p, bot, acme, k, s/t, call, , deny # until Monday", "trailing-comment", bot("s/t", ""), ""},
		{"P18", "a line that begins with a comma", grant + ", alice, x", "unknown-section", bot("s/t", ""), ""},
		{"P19", "a line of 70 kB", grant + "# " + strings.Repeat("x", 70_000), "line-too-long", bot("s/t", ""), ""},
		{"P19", "a byte order mark", "\ufeff" + grant, "byte-order-mark", bot("s/t", ""), ""},
		{"P19", "a cell of two lines", grant + "p, bot, acme, k, s/t, call, \"args.a == 'x'\n\", deny", "quoting", bot("s/t", ""), ""},
		{"P20", "square brackets in a string", "p, bot, acme, k, s/t, call, args.a == 'domain[1]', allow", "", bot("s/t", `{"a":"domain[1]"}`), "allow 1"},
		{"P20", "the same as parentheses", "p, bot, acme, k, s/t, call, args.a == 'domain[1]', allow", "", bot("s/t", `{"a":"domain(1)"}`), "deny"},
		{"P21", "text of the request that looks like a condition", "p, bot, acme, k, s/t, call, args.a == 'x', allow", "", bot("s/t", `{"a":"true"}`), "deny"},
		{"P21", "eval", "p, bot, acme, k, s/t, call, eval(args.a), allow", "condition", bot("s/t", ""), ""},
		{"P22", "a principal that is JSON", grant, "", ask(`{"Name":"bot"}`, "k", "s/t", ""), "deny"},
		{"P23", "a division by zero", "p, bot, acme, k, s/t, call, 1/0 > args.a, allow", "condition", bot("s/t", ""), ""},
		{"P23", "a name with a hyphen is no subtraction", "p, bot, acme, k, s/t, call, args.max-rows == 3, allow", "", bot("s/t", `{"max-rows":3}`), "allow 1"},
		{"P23", "an accessor of another root", "p, bot, acme, k, s/t, call, arg.repo == 'x', allow", "unknown-variable", bot("s/t", ""), ""},
		{"P24", "all rows that decide are named", grant + "p, *, acme, *, s/t, call, , require\np, *, *, *, **, *, , require 2 of group:sre", "", bot("s/t", ""), "approve 1 2 3; 1 of anyone (2) 2 of sre (3)"},
		{"P27", "commas in quoted cells", "p, bot, acme, k, s/t, call, \"args.a in ('x', 'y')\", allow", "", bot("s/t", `{"a":"y"}`), "allow 1"},
	} {
		p, findings := authz.Parse("policy.csv", []byte(c.text))
		code := ""
		for _, f := range findings {
			if f.Severity == authz.SeverityError && code == "" {
				code = f.Code
			}
		}
		if code != c.refused || (p == nil) != (c.refused != "") {
			t.Errorf("%s, %s: refused for %q, want %q: %v", c.id, c.name, code, c.refused, findings)
			continue
		}
		if p == nil {
			continue
		}
		if got := say(p.Decide(c.r)); got != c.want {
			t.Errorf("%s, %s: %s, want %s", c.id, c.name, got, c.want)
		}
	}
}

// deep is a policy whose row is about the last of n roles, each of which holds the next.
func deep(n int) string {
	text := "g, bot, role:r1, *\n"
	for i := 1; i < n; i++ {
		text += fmt.Sprintf("g, role:r%d, role:r%d, *\n", i, i+1)
	}
	return text + fmt.Sprintf("p, role:r%d, acme, k, s/t, call, , allow\n", n)
}
