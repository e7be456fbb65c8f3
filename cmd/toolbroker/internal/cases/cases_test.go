package cases

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A file of cases that cannot be meant is refused with its line.
func TestCasesThatCannotBeMeant(t *testing.T) {
	const good = "- {name: n, principal: p, tenant: t, tool: s/t, verdict: deny}\n"
	for _, c := range []struct{ name, text, want string }{
		{"nothing", "", "1: error: the file has no cases"},
		{"no cases", "cases: []\n", "1: error: the file has no cases"},
		{"cases that are no list", "cases: {}\n", "1: error: cases is not a list"},
		{"an unknown key", "case:\n" + good, `1: error: unknown key "case"; known are cases, defaults`},
		{"an unknown key of a case", "cases:\n" + good + "- {name: n, principal: p, tenant: t, tols: s/t, tool: s/t, verdict: deny}\n", `3: error: unknown key "tols"`},
		{"a key twice", "cases:\n- {name: n, name: m, principal: p, tenant: t, tool: s/t, verdict: deny}\n", "2: error: name is set twice"},
		{"no verdict", "cases:\n- {name: n, principal: p, tenant: t, tool: s/t}\n", "2: error: the case has no verdict"},
		{"nobody", "cases:\n- {name: n, tenant: t, tool: s/t, verdict: deny}\n", "2: error: the case has no principal"},
		{"another verdict", "cases:\n- {name: n, principal: p, tenant: t, tool: s/t, verdict: maybe}\n", `2: error: verdict "maybe" is none of allow, approve and deny`},
		{"a verdict for all", "defaults: {verdict: deny}\ncases:\n" + good, `1: error: unknown key "verdict"`},
		{"a time that is none", "cases:\n- {name: n, principal: p, tenant: t, tool: s/t, verdict: deny, time: noon}\n", "2: error: time: write it as 2026-11-23T09:00:00Z"},
		{"args that are no mapping", "cases:\n- {name: n, principal: p, tenant: t, tool: s/t, verdict: deny, args: [1]}\n", "2: error: args is not a mapping"},
		{"a number that JSON does not know", "cases:\n- {name: n, principal: p, tenant: t, tool: s/t, verdict: deny, args: {n: 0x10}}\n", "2: error: 0x10 is no number as JSON writes it"},
		{"an argument twice", "cases:\n- {name: n, principal: p, tenant: t, tool: s/t, verdict: deny, args: {n: 1, n: 2}}\n", "2: error: n is set twice"},
		{"args that hold themselves", "cases:\n- {name: n, principal: p, tenant: t, tool: s/t, verdict: deny, args: &a {n: *a}}\n", "2: error: *a cannot be read here"},
		{"a scope that is none", "cases:\n- {name: n, principal: p, tenant: t, tool: s/t, verdict: deny, scope: [{tool: s/t, action: call, verdict: maybe}]}\n", "2: error: scope: row 1: verdict \"maybe\" is unknown"},
		{"what a call is not decided by", "cases:\n- {name: n, principal: p, tenant: t, tool: s/t, verdict: deny, purpose: x}\n", "2: error: only a start or a delegation is decided by what a task is for"},
	} {
		file := filepath.Join(t.TempDir(), "policy_test.yaml")
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, wrong, err := Read(file)
		if err != nil || len(wrong) == 0 || !strings.HasPrefix(wrong[0], file+":"+c.want) {
			t.Errorf("%s: %q %v, want %s", c.name, wrong, err, c.want)
		}
	}
}
