package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"toolbroker/authz"
	"toolbroker/cmd/toolbroker/internal/cases"
)

// The policies we show people answer as their cases say, and no row is without one.
func TestExamplesAnswerTheirCases(t *testing.T) {
	files, err := filepath.Glob("../../examples/policies/*.csv")
	if err != nil || len(files) < 3 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		p, findings := authz.Parse(filepath.Base(file), text)
		if p == nil {
			t.Fatal(findings)
		}
		asked, wrong, err := cases.Read(cases.Beside(file))
		if err != nil || len(wrong) > 0 {
			t.Fatal(err, wrong)
		}
		results := p.Test(asked)
		for _, c := range results.Cases {
			if len(c.Wrong) > 0 {
				t.Errorf("%s:%d: %s: %v", file, c.Line, c.Name, c.Wrong)
			}
		}
		for _, r := range results.Uncovered {
			t.Errorf("%s: no case for %s", file, r)
		}
	}
}

// What docs/policy.md shows of cases and of questions is what the program says.
func TestDocsOfCasesAndQuestions(t *testing.T) {
	text, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	var blocks []string
	for i, block := range strings.Split(string(text), "\n```") {
		if i%2 == 1 {
			blocks = append(blocks, strings.TrimPrefix(block, "\n")+"\n")
		}
	}
	if len(blocks) != 8 {
		t.Fatalf("%d blocks", len(blocks))
	}
	t.Chdir(t.TempDir())
	for name, block := range map[string]string{"policy.csv": blocks[0], "policy_test.yaml": blocks[4]} {
		if err := os.WriteFile(name, []byte(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	next := strings.Replace(strings.Replace(blocks[0], "args.repo =~ '^acme/',  ", ",", 1), "\np, role:triage, acme,  incident, k8s", "\n#", 1)
	if err := os.WriteFile("next.csv", []byte(next), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, block := range blocks[5:] {
		command, want, _ := strings.Cut(block, "\n")
		root, out := newRoot(), &strings.Builder{}
		root.SetArgs(strings.Fields(command)[2:]) // after "$ toolbroker"
		root.SetOut(out)
		if err := root.Execute(); err != nil && err != errSilent {
			t.Errorf("%s: %v", command, err)
		}
		if out.String() != want {
			t.Errorf("%s says\n%s\nthe page\n%s", command, out, want)
		}
	}
}
