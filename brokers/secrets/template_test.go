package secrets

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestTemplate(t *testing.T) {
	data := map[string]string{"user": "ann", "pass-word_1": "s3cret", "empty": "", "lines": "a\r\nX: y"}
	for _, c := range []struct{ template, want, says string }{
		{"Bearer {{.user}}", "Bearer ann", ""},
		{"{{.user}}:{{.pass-word_1}}@host", "ann:s3cret@host", ""},
		{"plain", "plain", ""},
		{"{ .user } {{.user}}", "{ .user } ann", ""},
		{"{{.nosuch}}", "", "no field"},
		{"{{.empty}}", "", "no field"},
		{"{{.lines}}", "", "control character"},
		{"{{ .user }}", "", "only {{.field}}"},
		{"{{user}}", "", "only {{.field}}"},
		{"{{.a.b}}", "", "only {{.field}}"},
		{"{{.}}", "", "only {{.field}}"},
		{"{{.user", "", "only {{.field}}"},
		{"user}}", "", "}} without {{"},
		{"{{if .user}}x{{end}}", "", "only {{.field}}"},
		{"{{{{.user}}}}", "", "only {{.field}}"},
	} {
		parsed, err := parse(c.template)
		got := ""
		if err == nil {
			s, ferr := parsed.fill(data)
			got, err = s.Reveal(), ferr
		}
		if got != c.want || (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %q %v, want %q %s", c.template, got, err, c.want, c.says)
		}
		if err != nil && strings.Contains(err.Error(), "X: y") {
			t.Error("an error holds a value")
		}
	}
}

// A value is put in as it is: nothing in it is read as a template again.
func TestTemplateIsOnePass(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.StringMatching(`[ -~]{1,40}`).Draw(t, "value")
		before := rapid.StringMatching(`[a-zA-Z0-9 :=]{0,9}`).Draw(t, "before")
		parsed, err := parse(before + "{{.f}}")
		if err != nil {
			t.Fatal(err)
		}
		if s, err := parsed.fill(map[string]string{"f": value, "other": "x"}); err != nil || s.Reveal() != before+value {
			t.Fatalf("%q %v", s.Reveal(), err)
		}
	})
}

func FuzzTemplate(f *testing.F) {
	f.Add("Bearer {{.token}}")
	f.Fuzz(func(t *testing.T, s string) {
		parsed, err := parse(s)
		if err != nil {
			return
		}
		data := map[string]string{}
		for _, n := range parsed.fields() {
			data[n] = "{{." + n + "}}"
		}
		if got, err := parsed.fill(data); err != nil || got.Reveal() != s {
			t.Errorf("%q became %q: %v", s, got.Reveal(), err)
		}
	})
}
