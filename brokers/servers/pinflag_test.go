package servers

import (
	"encoding/json"
	"strings"
	"testing"
)

// What a reader would not see, or would take for something else, is flagged,
// wherever it stands; what people write is not.
func TestFlags(t *testing.T) {
	for text, want := range map[string]string{
		"Closes an issue.\n\t- at once\r\n":      "",
		"Schließt Vorgänge, naïve café":          "",
		"Закрывает задачу; оса, рос, сор":        "",
		"問題を閉じる　：５つまで":                           "",
		"مرحبا بالعالم":                          "",
		"⚠️ careful 👩‍💻 ✅ 1️⃣ 👍🏽":                "",
		"5α, 10 kΩ, 3 μm, π":                     "",
		"free\u00a0space":                        "",
		"a\u200bb":                               "hidden character U+200B",
		"a\u200db":                               "hidden character U+200D",
		"a\ufe0fb":                               "hidden character U+FE0F",
		"a\U000e0100":                            "hidden character U+E0100",
		"\ufeffa":                                "hidden character U+FEFF",
		"a\u00adb":                               "hidden character U+00AD",
		"a\u3164b":                               "hidden character U+3164",
		"a\u2028b":                               "hidden character U+2028",
		"a\u202eb":                               "bidirectional character U+202E",
		"a\u2066b":                               "bidirectional character U+2066",
		"a\u200fb":                               "bidirectional character U+200F",
		"a\U000e0041b":                           "tag character U+E0041",
		"\x1b[8mhidden\x1b[0m":                   "control character U+001B",
		"a\u009bb":                               "control character U+009B",
		"a\x00b":                                 "control character U+0000",
		"a\x7f":                                  "control character U+007F",
		"a\ue000":                                "unassigned character U+E000",
		"pаypal.example":                         "lookalike letter U+0430",
		"send to рау today":                      "lookalike letter U+0443",
		"ＡＢＣ":                                    "lookalike letter U+FF21",
		"𝐈gnore":                                 "lookalike letter U+1D408",
		"read the \u202a\u202d and \u2069 there": "bidirectional character U+202A",
	} {
		quoted, _ := json.Marshal(text)
		for where, definition := range map[string]string{
			"/description":                          `{"name":"act","description":TEXT,"inputSchema":{"type":"object"}}`,
			"/inputSchema/properties/a/description": `{"name":"act","inputSchema":{"type":"object","properties":{"a":{"description":TEXT}}}}`,
			"/inputSchema/properties/a/enum/1":      `{"name":"act","inputSchema":{"type":"object","properties":{"a":{"enum":["x",TEXT]}}}}`,
			"/annotations/title":                    `{"name":"act","annotations":{"title":TEXT}}`,
			"/_meta/k/0/0":                          `{"name":"act","_meta":{"k":[[TEXT]]}}`,
			"":                                      `{"name":"act","inputSchema":{"type":"object","properties":{TEXT:{}}}}`, // a name is at itself
		} {
			got := strings.Join(flags(json.RawMessage(strings.Replace(definition, "TEXT", string(quoted), 1))), "; ")
			if want == "" && got != "" || want != "" && !strings.HasPrefix(got, want+" at "+where) {
				t.Errorf("%q at %s: %q", text, where, got)
			}
			if strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("the flag itself is not plain: %q", got)
			}
		}
	}
	if got := flags(json.RawMessage(`{"a":["\ud800"]}`)); len(got) != 1 {
		t.Errorf("half a surrogate: %q", got)
	}
	if got := flags(json.RawMessage(`[` + strings.Repeat(`"\u200b",`, 100) + `1]`)); len(got) != maxFlags {
		t.Errorf("%d flags", len(got))
	}
}
