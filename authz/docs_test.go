package authz_test

import (
	"maps"
	"os"
	"strings"
	"testing"

	"toolbroker/authz"
)

// What docs/policy.md shows is true.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile("../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	var blocks []string
	for i, block := range strings.Split(string(text), "\n```") {
		if i%2 == 1 {
			blocks = append(blocks, strings.TrimPrefix(block, "\n"))
		}
	}
	if len(blocks) != 8 { // cmd/toolbroker looks at those after the fourth
		t.Fatalf("%d blocks", len(blocks))
	}

	p, findings := authz.Parse("policy.csv", []byte(blocks[0]))
	if len(findings) > 0 {
		t.Fatal(findings)
	}
	for condition := range strings.Lines(blocks[1]) {
		parse(t, "p, bot, acme, k, s/t, call, "+strings.TrimSpace(condition)+", allow")
	}
	r := ask("spiffe://corp/agent/triage-7", "incident", "github/issues.close", `{"repo": "evil/x"}`)
	_, shown, _ := strings.Cut(blocks[3], "'\n")
	if got := p.Explain(r).String(); strings.TrimSpace(got) != strings.TrimSpace(shown) {
		t.Errorf("explain says\n%s\nthe page\n%s", got, shown)
	}

	// The findings it shows are those of a file that has these mistakes.
	_, findings = authz.Parse("policy.csv", []byte("g, bot, role:triage, acme\np, role:triage, acme, k, s/t, call, , allow\n\n\np, bot, acme, k, s/u, call, , Deny\np, role:traige, acme, k, s/u, call, , allow\n\n\np, bot, acme, k, s/t, call, args.a in ('x', 'y'), allow\n"))
	var got []string
	for _, f := range findings {
		got = append(got, f.String())
	}
	if _, shown, _ := strings.Cut(blocks[2], "\n"); strings.Join(got, "\n") != shown {
		t.Errorf("check says\n%s\nthe page\n%s", strings.Join(got, "\n"), shown)
	}
}

// Its table of findings has every code there is, with its severity, and no other.
func TestDocsHaveEveryCode(t *testing.T) {
	text, err := os.ReadFile("../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "\n## What is found\n")
	table, _, _ = strings.Cut(table, "\n## ")
	told := map[string]authz.Severity{}
	for line := range strings.Lines(table) {
		if cells := strings.Split(line, " | "); strings.HasPrefix(line, "| `") && len(cells) >= 4 {
			told[strings.Trim(cells[0], "| `")] = authz.Severity(cells[1])
		}
	}
	if !maps.Equal(told, authz.Severities) {
		t.Errorf("the page has %v, we have %v", told, authz.Severities)
	}
}
