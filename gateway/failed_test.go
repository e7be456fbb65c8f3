package gateway_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"toolbroker/gateway"
)

// readSlowly says what encoding/json makes of a result.
func readSlowly(raw []byte) (failed bool) {
	var body struct {
		IsError bool `json:"isError"`
	}
	return json.Unmarshal(raw, &body) != nil || body.IsError
}

var verdicts = []string{
	``, ` `, `null`, `[]`, `7`, `{}`, ` { } `, `{}x`, `{} {}`, `{"isError":true}`, `{"isError":false}`, `{"isError":null}`, `{"isError":"true"}`, `{"isError":1}`, `{"isError":{}}`, `{"isError":[true]}`, `{"isError":truE}`, `{"isError":true`, `{"isError":true,}`, `{"isError" : true , "a":1}`,
	`{"content":[{"type":"text","text":"isError"}],"isError":false}`, `{"content":[{"isError":true}]}`, `{"a":{"isError":true}}`, `{"a":"\"isError\":true"}`, `{"isError":true,"isError":false}`, `{"isError":false,"ISERROR":true}`, `{"isError":true,"iserror":null}`, `{"iserror":true}`, `{"iſError":true}`, `{"i\u0073Error":true}`, `{"i\u017fError":true}`, `{"\u0069sError":false}`, `{"isErrоr":true}`, "{\"isError\xff\":true}", "{\"\xff\":1}", "{\"a\":\"\xff\"}", "{\"a\":\"\x01\"}", "{\"a\x00\":1}", "{\"a\":1}\x00",
	`{"a":"\ud800"}`, `{"a":"\u12"}`, `{"a":"\x"}`, `{"a":"\u12Fg"}`, `{"a":"é日"}`, `{"a":"\n\t\"\\\/"}`, `{"a":"`, `{"a":"\`, `{"a":[1,2,]}`, `{"a":[1 2]}`, `{"a":{"b"}}`, `{"a":{"b":}}`, `{"a":{"b":1,}}`, `{"a":{b:1}}`, `{"a":[}}`, `{"a":{]}`, `{"a":tru}`, `{"a":nul`, `{"a":-}`, `{"a":01}`, `{"a":-0}`, `{"a":1.}`, `{"a":.1}`, `{"a":1e}`, `{"a":1e+5}`, `{"a":1E-}`, `{"a":0.0e0}`, `{"a":1x}`, `{"a":+1}`, `{"a":[[],{},[{}],{"b":[]}]}`, `{"a"}`, `{a:1}`, `{"a" 1}`, `{,}`, "{\v}", "\ufeff{}",
}

// A result's failure is read in the one look that each result gets: of one that is
// read strictly before, as Result's are, it says what encoding/json says, or that it
// failed where that could be read in two ways.
func sameFailure(t *testing.T, raw []byte) {
	t.Helper()
	if !jsontext.Value(raw).IsValid() {
		return
	}
	got, want := (gateway.Result{Raw: raw}).Failed(), readSlowly(raw)
	if gateway.Readable(raw) != nil {
		want = true
	}
	if got != want {
		t.Fatalf("%.300q failed: %v, want %v", raw, got, want)
	}
}

func TestFailed(t *testing.T) {
	for _, s := range verdicts {
		for pad := range 9 {
			p := strings.Repeat("p", pad)
			sameFailure(t, []byte(strings.Repeat(" ", pad)+s))
			sameFailure(t, []byte(`{"`+p+`":`+s+`}`))
			sameFailure(t, []byte(`{"x":["`+p+`",`+s+`],"isError":true}`))
			sameFailure(t, []byte(`{"x":"`+p+strings.Trim(s, `{}`)+`"}`))
		}
	}
	for raw, want := range map[string]bool{
		`{"content":[{"type":"text","text":"Üben\n\u00e9 \"isError\":true"}],"structuredContent":{"isError":true},"_meta":{"é":{}}}`: false,
		`{"content":[],"isError":false}`:                                false,
		`{"resultType":"complete", "isError" :\n true , "content":[] }`: true,
		`{"i\u0073Error":true}`:                                         true,
		`{"isError":false,"ISERROR":true}`:                              true,
	} {
		if got := (gateway.Result{Raw: json.RawMessage(raw)}).Failed(); got != want {
			t.Errorf("%s failed: %v", raw, got)
		}
	}
	if !(gateway.Result{Error: json.RawMessage(`{}`), Raw: json.RawMessage(`{}`)}).Failed() {
		t.Error("an error is no failure")
	}
}

func FuzzFailed(f *testing.F) {
	for _, s := range verdicts {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) { sameFailure(t, raw) })
}
