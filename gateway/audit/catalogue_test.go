package audit

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// declared reads the Type constants out of types.go, so that none is forgotten.
func declared(t *testing.T) map[string]Type {
	f := must(parser.ParseFile(token.NewFileSet(), "types.go", nil, 0))
	all := make(map[string]Type)
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		for _, s := range g.Specs {
			v := s.(*ast.ValueSpec)
			if id, ok := v.Type.(*ast.Ident); !ok || id.Name != "Type" {
				t.Errorf("%s is no Type", v.Names[0])
				continue
			}
			all[v.Names[0].Name] = Type(must(strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)))
		}
	}
	return all
}

func TestEveryTypeIsInTheCatalogueAndTheDocs(t *testing.T) {
	doc := string(must(os.ReadFile("../../docs/audit-format.md")))
	all := declared(t)
	if len(all) < 40 {
		t.Fatalf("only %d types found", len(all))
	}
	codes := make(map[string]Type)
	for name, typ := range all {
		k, ok := catalogue[typ]
		if !ok {
			t.Errorf("%s (%s) has no row in the catalogue", name, typ)
			continue
		}
		if other, taken := codes[k.code]; taken {
			t.Errorf("%s and %s share the code %s", typ, other, k.code)
		}
		codes[k.code] = typ
		if !regexp.MustCompile(`^TG[0-9]{4}[IWEA]$`).MatchString(k.code) {
			t.Errorf("%s: code %q", typ, k.code)
		}
		if !strings.Contains(" intent decision outcome state ", " "+k.phase+" ") ||
			!strings.Contains(" info low medium high critical ", " "+k.severity+" ") ||
			!strings.Contains(" denial escalation override none ", " "+k.class+" ") {
			t.Errorf("%s: %+v", typ, k)
		}
		row := "| `" + string(typ) + "` | " + k.code + " | " + k.phase + " | " + k.severity + " | " + k.class + " | "
		if !strings.Contains(doc, row) {
			t.Errorf("docs/audit-format.md lacks the line\n%s", row)
		}
	}
	if len(catalogue) != len(all) {
		t.Errorf("%d rows for %d types", len(catalogue), len(all))
	}
}

func TestATypeOutsideTheCatalogueIsRefused(t *testing.T) {
	cfg := config(t)
	l := open(t, cfg)
	if err := l.Append(t.Context(), Event{Type: "made.up"}); err == nil {
		t.Error("taken")
	}
}

// What the docs tell an auditor to run without us does find what it should.
func TestTheDocsChecksWork(t *testing.T) {
	doc := string(must(os.ReadFile("../../docs/audit-format.md")))
	block := func(lang string) string {
		_, code, ok := strings.Cut(doc, "```"+lang+"\n")
		code, _, ok2 := strings.Cut(code, "```")
		if !ok || !ok2 {
			t.Fatalf("no %s in the docs", lang)
		}
		return code
	}
	cfg := config(t)
	cfg.SegmentBytes = 2048
	closed(t, cfg, 10)
	run := func(name string, args ...string) string {
		if _, err := exec.LookPath(name); err != nil {
			t.Logf("skipped: no %s", name)
			return ""
		}
		cmd := exec.Command(name, args...)
		cmd.Dir = filepath.Dir(cfg.Dir)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if out := run("sh", "-c", block("sh")); out != "" {
		t.Errorf("the chain of a whole log: %s", out)
	}
	if out := run("python3", "-c", block("python")); out != "" && out != "True\n" {
		t.Errorf("the root of a whole log: %s", out)
	}
	path := segmentPath(cfg.Dir, 1)
	if err := os.WriteFile(path, forged(must(os.ReadFile(path))), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := run("sh", "-c", block("sh")); !strings.HasPrefix(out, "broken before: ") {
		t.Errorf("the chain of a forged log: %q", out)
	}
	if out := run("python3", "-c", block("python")); out != "" && out != "False\n" {
		t.Errorf("the root of a forged log: %s", out)
	}
}
