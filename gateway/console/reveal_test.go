package console_test

import (
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"toolbroker/gateway"
	"toolbroker/gateway/console"
)

var tags = regexp.MustCompile(`<[^>]*>`)

// visible is what a page says once its markup is gone.
func visible(page string) string { return html.UnescapeString(tags.ReplaceAllString(page, "")) }

func TestRevealNamesWhatCannotBeSeen(t *testing.T) {
	for _, c := range []struct{ in, out string }{
		{"plain text, 123 €", "plain text, 123 €"},
		{"pay\u202e001\u202c", "pay⟦U+202E⟧001⟦U+202C⟧"},
		{"a\u200bb\u200d\ufeff", "a⟦U+200B⟧b⟦U+200D⟧⟦U+FEFF⟧"},
		{"\x1b[31mred", "⟦U+001B⟧[31mred"},
		{"nul\x00del\x7fc1\u0085", "nul⟦U+0000⟧del⟦U+007F⟧c1⟦U+0085⟧"},
		{"tab\tcr\r", "tab⟦U+0009⟧cr⟦U+000D⟧"},
		{"two\nlines", "two↵ lines"},
		{"\U000E0041\U000E007F", "⟦U+E0041⟧⟦U+E007F⟧"},
		{"❤\ufe0f\U000E0100", "❤⟦U+FE0F⟧⟦U+E0100⟧"},
		{"a\u00a0b\u3000c\u2028d\u2029", "a⟦U+00A0⟧b⟦U+3000⟧c⟦U+2028⟧d⟦U+2029⟧"},
		{"\u115f\u3164\uffa0\u2800\u034f\u00ad", "⟦U+115F⟧⟦U+3164⟧⟦U+FFA0⟧⟦U+2800⟧⟦U+034F⟧⟦U+00AD⟧"},
		{"\ue000\U0010fffd\u0378\ufdd0", "⟦U+E000⟧⟦U+10FFFD⟧⟦U+0378⟧⟦U+FDD0⟧"},
		{"bad\xffutf8\xc3", "bad⟦byte FF⟧utf8⟦byte C3⟧"},
		{"⟦U+202E⟧ ↵", "⟦U+27E6⟧U+202E⟦U+27E7⟧ ⟦U+21B5⟧"}, // our own signs cannot be forged
		{"\u0301x", "⟦U+0301⟧x"},
		{"z" + strings.Repeat("\u0300", 6), "z" + strings.Repeat("\u0300", 4) + "⟦U+0300⟧⟦U+0300⟧"},
		{"", ""},
	} {
		if got := console.Reveal(c.in).String(); got != c.out {
			t.Errorf("Reveal(%+q) = %q, want %q", c.in, got, c.out)
		}
	}
}

func TestRevealNotesWhatLooksLikeSomethingElse(t *testing.T) {
	for in, want := range map[string]string{
		"p\u0430ypal.com":         "mixes Cyrillic and Latin",
		"аррӏе.com":               "looks Latin but is Cyrillic",
		"ＡＢＣ１２":                   "special form",
		"𝐚dmin":                   "special form",
		"/etc\u2215passwd":        "U+2215",
		"evil\uff0ecom":           "U+FF0E",
		"שלום":                    "right-to-left",
		"e\u0301":                 "normal form",
		"p\u200b\u0430ypal":       "“p⟦U+200B⟧аypal” mixes", // a hidden character neither ends a word nor hides in a note
		"a\u202eb":                "1 hidden character made visible",
		"Ωmega \u202e\u202e":      "2 hidden characters",
		"日本語テスト":                  "",
		"Straße, naïve, Ελληνικά": "",
		"Привет, мир":             "",
		"plain":                   "",
	} {
		got := strings.Join(console.Reveal(in).Notes, "; ")
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("Reveal(%+q) notes %q, want %q", in, got, want)
		}
		if strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("a note on %+q has a hidden character", in)
		}
	}
}

// Whatever the text, nothing hidden is left, nothing is lost, and what was
// hidden is counted.
func FuzzReveal(f *testing.F) {
	for _, s := range []string{"", "a\u202eb", "⟦↵⟧", "\xff\xfe", "p\u0430y", "e\u0301\u0301\u0301\u0301\u0301\u0301", "a\nb", "\U000E0041", "שלום ABC"} {
		f.Add(s)
	}
	back := regexp.MustCompile(`⟦(U\+|byte )([0-9A-F]+)⟧`)
	f.Fuzz(func(t *testing.T, in string) {
		out := console.Reveal(in)
		marks := 0
		var again strings.Builder
		for _, p := range out.Parts {
			for _, r := range p.Text {
				if r != ' ' && !unicode.IsPrint(r) || unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) {
					t.Fatalf("%+q is left in %+q", r, out.Parts)
				}
			}
			switch p.Kind {
			case console.Mark:
				for _, m := range back.FindAllStringSubmatch(p.Text, -1) {
					var r rune
					fmt.Sscanf(m[2], "%X", &r)
					if m[1] == "byte " {
						again.WriteByte(byte(r))
					} else {
						again.WriteRune(r)
					}
					marks++
				}
			case console.Break:
				again.WriteByte('\n')
			default:
				if strings.ContainsAny(p.Text, "⟦⟧↵") {
					t.Fatalf("a sign of ours stands in the text's own part: %q", p.Text)
				}
				again.WriteString(p.Text)
			}
		}
		if again.String() != in {
			t.Fatalf("%+q came back as %+q", in, again.String())
		}
		if marks != out.Hidden {
			t.Fatalf("%d marks, %d counted", marks, out.Hidden)
		}
		if out.Runes != utf8.RuneCountInString(in) {
			t.Fatalf("%d runes, counted %d", utf8.RuneCountInString(in), out.Runes)
		}
	})
}

func TestArguments(t *testing.T) {
	rows := func(a console.Arguments) string {
		var b strings.Builder
		for _, r := range a.Rows {
			name := ""
			if r.Name != nil {
				name = r.Name.String()
			} else if r.Index > 0 {
				name = fmt.Sprintf("#%d", r.Index)
			}
			value := r.Size
			if r.Value != nil {
				value = r.Value.String()
			}
			fmt.Fprintf(&b, "%s%s %s=%s; ", strings.Repeat(">", r.Depth), name, r.Kind, value)
		}
		return strings.TrimSuffix(b.String(), "; ")
	}
	for in, want := range map[string]string{
		`{}`:            "",
		``:              "",
		`{"z":1,"a":2}`: "z number=1; a number=2",
		`{"n":1e400,"m":-0,"d":0.10,"big":90071992547409930}`: "n number=1e400; m number=-0; d number=0.10; big number=90071992547409930",
		`{"s":"A\u202e\n","t":"\u0000"}`:                      "s text=A⟦U+202E⟧↵ ; t text=⟦U+0000⟧",
		`{"o":{"l":[1,{"x":true}],"e":{}},"n":null}`:          "o object=2 members; >l list=2 items; >>#1 number=1; >>#2 object=1 member; >>>x true/false=true; >e object=empty; n null=null",
		`{"":"","\u200b":[]}`:                                 " empty text=; ⟦U+200B⟧ list=empty",
		`[1,"2"]`:                                             " list=2 items; #1 number=1; #2 text=2",
		`"x"`:                                                 " text=x",
	} {
		if got := console.ShowArguments([]byte(in)); rows(got) != want || got.Problem != "" {
			t.Errorf("%s:\n got %q %s\nwant %q", in, rows(got), got.Problem, want)
		}
	}
	for _, in := range []string{`{"a":1,"a":2}`, `{"a":`, `{} {}`, `{}{"a":1}`, `1 2`, "{\"a\":\"\xff\"}", `{"a":"\ud800"}`, `{a:1}`, `]`} {
		a := console.ShowArguments([]byte(in))
		if !a.Unclear || len(a.Rows) > 0 || a.Raw.Runes == 0 {
			t.Errorf("%.30s: taken for clear: %+v", in, rows(a))
		}
	}
	if a := console.ShowArguments([]byte(strings.Repeat("[", 20000))); a.Problem == "" || a.Raw.Runes != 20000 {
		t.Errorf("deep nesting: %+v", a.Problem)
	}
	many := console.ShowArguments([]byte("[" + strings.Repeat("0,", 50_000) + "0]"))
	if many.Problem == "" || many.Unclear || many.Raw.Runes != 100_003 {
		t.Errorf("too many values: %q", many.Problem)
	}
}

// The spoof corpus: each of these as a name, as a value and as a purpose. None
// reaches the page as markup, and every hidden code point has its escape.
func TestSpoofCorpus(t *testing.T) {
	corpus := map[string]string{
		"bidi":         "invoice\u202efdp.exe \u2066x\u2069 \u061c",
		"zero width":   "admin\u200b\u200c\u200d\u2060\ufeff",
		"tags":         "hi\U000E0069\U000E0067\U000E006E\U000E006F\U000E0072\U000E0065",
		"ANSI":         "\x1b[2J\x1b]8;;https://evil.test\x07click\x1b]8;;\x07",
		"homoglyph":    "p\u0430yp\u0430l",
		"C1":           "a\u009b31mb",
		"separators":   "one\u2028two\u2029three\u0085four",
		"private":      "\ue000\uf8ff\U000f0000",
		"variation":    "x\ufe0f\U000e0101\u180b",
		"script":       `</script><script>alert(1)</script>`,
		"attribute":    `" autofocus onfocus="alert(1)`,
		"attribute2":   `' onmouseover='alert(1)`,
		"textarea":     `</textarea></bdi></title><svg/onload=alert(1)>`,
		"polyglot":     "jaVasCript:/*-/*`/*\\`/*'/*\"/**/(/* */oNcliCk=alert() )//%0D%0A%0d%0a//</stYle/</titLe/</teXtarEa/</scRipt/--!>\\x3csVg/<sVg/oNloAd=alert()//>\\x3e",
		"template":     `{{.Op.CSRF}} ${7*7} <%= 1 %>`,
		"comment":      `--><img src=x onerror=alert(1)><!--`,
		"entities":     `&lt;script&gt; &#x202e; &amp;`,
		"markdown":     `[click](https://evil.test) ![](https://evil.test/x.png) https://evil.test`,
		"one megabyte": strings.Repeat("lorem ipsum ", 87_381) + "\u202e",
	}
	for name, s := range corpus {
		t.Run(name, func(t *testing.T) {
			quoted, err := json.Marshal(s)
			if err != nil {
				t.Fatal(err)
			}
			h := newHouse(t)
			h.ask("apr-1", func(r *gateway.ApprovalRequest) {
				r.Args = fmt.Appendf(nil, `{%s:%s}`, quoted, quoted)
				r.Purpose, r.Principal, r.OnBehalfOf, r.TaskKind, r.Server, r.Tool, r.Class = s, s, s, s, s, s, s
				r.Rules[0].Text, r.Rules[0].File = s, s
				r.Votes = []gateway.Vote{{By: s, Reason: s, Approve: true}}
				r.Need[0].N = 2
			})
			h.tasks = append(h.tasks, &gateway.Task{ID: "task-1", Tenant: "acme", Kind: s, Purpose: s, Owner: s, Principal: s, OnBehalfOf: s, StartedBy: s, EndedBy: s})
			handler := console.New(console.Config{Gateway: h})
			token, _, err := h.Login(t.Context(), "alice", gateway.NewSecret("correct horse"), "")
			if err != nil {
				t.Fatal(err)
			}
			for _, path := range []string{"/approvals/acme/apr-1", "/", "/tasks"} {
				r := httptest.NewRequest("GET", "http://localhost"+path, nil)
				r.AddCookie(&http.Cookie{Name: "toolbroker", Value: token.Reveal()})
				w := httptest.NewRecorder()
				handler.ServeHTTP(w, r)
				page := w.Body.String()
				if w.Code != 200 {
					t.Fatalf("%s: %d", path, w.Code)
				}
				text := visible(page)
				for _, c := range s {
					esc := fmt.Sprintf("⟦U+%04X⟧", c)
					if c != '\n' && !unicode.IsPrint(c) && !strings.Contains(text, esc) {
						t.Errorf("%s: no %s in the text", path, esc)
					}
				}
				for i, c := range page {
					if c != '\n' && !unicode.IsPrint(c) {
						t.Fatalf("%s: %+q stands in the page at %d", path, c, i)
					}
				}
				for _, bad := range []string{"<script>", "<svg/", "<sVg", "<img src=x", "onfocus=\"", "onmouseover='", "</textarea></bdi>", `href="https://evil`, `src="https://evil`} {
					if strings.Contains(page, bad) {
						t.Errorf("%s: %q came through as markup", path, bad)
					}
				}
			}
		})
	}
}
