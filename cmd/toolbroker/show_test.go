package main

import (
	"encoding/json"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestVisible(t *testing.T) {
	for in, want := range map[string]string{
		"plain, größer 日本":                    "plain, größer 日本",
		"\x1b[2Jgone":                         `\u{1b}[2Jgone`,
		"a\u202eb":                            `a\u{202e}b`,
		"zero\u200bwidth\ufeff":               `zero\u{200b}width\u{feff}`,
		"line\nbreak\ttab":                    `line\u{a}break\u{9}tab`,
		"no-break\u00a0space":                 `no-break\u{a0}space`,
		"\xff\xfe":                            `\x{ff}\x{fe}`,
		"tag\U000e0041 filler\u3164 vs\ufe0f": `tag\u{e0041} filler\u{3164} vs\u{fe0f}`,
	} {
		if got := visible(in); got != want {
			t.Errorf("%q is shown as %q, want %q", in, got, want)
		}
	}
}

func TestNothingHiddenIsPrinted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.String().Draw(t, "s")
		for _, shown := range []string{visible(s), oneLine(s), strings.ReplaceAll(paragraphs(s), "\n", "")} {
			if strings.ContainsFunc(shown, hidden) {
				t.Fatalf("%q is shown as %q", s, shown)
			}
		}
		var b strings.Builder
		if err := printJSON(&b, s); err != nil {
			t.Fatal(err)
		}
		if strings.ContainsFunc(strings.TrimSuffix(b.String(), "\n"), hidden) {
			t.Fatalf("hidden characters in %q", b.String())
		}
		var back string
		if err := json.Unmarshal([]byte(b.String()), &back); err != nil || back != s {
			t.Fatalf("%q came back as %q (%v)", s, back, err)
		}
	})
}
