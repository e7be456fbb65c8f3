package authz_test

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"toolbroker/authz"
)

var update = flag.Bool("update", false, "write what is found beside the broken policies; then read it")

// Every mistake of testdata/broken is found, at its line and with what to do; no
// other is. A file's name begins with the code of its finding. Beside NAME.csv lie
// NAME.want, and perhaps the tools there are or the file before.
func TestBrokenPolicies(t *testing.T) {
	files, err := filepath.Glob("testdata/broken/*.csv")
	if err != nil || len(files) < 90 {
		t.Fatal(len(files), err)
	}
	var found []string
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".csv")
		t.Run(name, func(t *testing.T) {
			beside := authz.Beside{Now: noon}
			base := strings.TrimSuffix(file, ".csv")
			if text, err := os.ReadFile(base + ".tools.json"); err == nil {
				if err := json.Unmarshal(text, &beside.Tools); err != nil {
					t.Fatal(err)
				}
			}
			if text, err := os.ReadFile(base + ".before"); err == nil {
				beside.Before = parse(t, string(text))
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			p, findings := authz.Parse(name+".csv", text)
			if p != nil {
				findings = append(findings, p.Lint(beside)...)
			}
			var got strings.Builder
			its := false
			for _, f := range findings {
				got.WriteString(f.String() + "\n")
				found = append(found, f.Code)
				its = its || f.Code == name || strings.HasPrefix(name, f.Code+"-")
				if want, ok := authz.Severities[f.Code]; !ok || f.Severity != want {
					t.Errorf("%s is %s, and %q in the table", f.Code, f.Severity, want)
				}
			}
			if !its {
				t.Errorf("no finding is what the file is named for: %v", findings)
			}
			if *update {
				if err := os.WriteFile(base+".want", []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(base + ".want")
			if err != nil || got.String() != string(want) {
				t.Errorf("got\n%swant\n%s%v", got.String(), want, err)
			}
		})
	}
	for code := range authz.Severities {
		// These are of no policy file that a corpus could hold.
		if !slices.Contains(found, code) && !slices.Contains([]string{"too-large", "unreadable", "scope-tool", "case"}, code) {
			t.Errorf("no file is broken in the way of %s", code)
		}
	}
}
