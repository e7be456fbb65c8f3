package gateway_test

import (
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"

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

func TestFailed(t *testing.T) {
	same := func(raw string) {
		if got, want := (gateway.Result{Raw: json.RawMessage(raw)}).Failed(), readSlowly([]byte(raw)); got != want {
			t.Fatalf("%.300q failed: %v, encoding/json says %v", raw, got, want)
		}
	}
	for _, s := range verdicts {
		for pad := range 9 {
			p := strings.Repeat("p", pad)
			same(s)
			same(strings.Repeat(" ", pad) + s)
			same(`{"` + p + `":` + s + `}`)
			same(`{"x":["` + p + `",` + s + `],"isError":true}`)
			same(`{"x":"` + p + strings.Trim(s, `{}`) + `"}`)
		}
	}
	for _, n := range []int{1, 254, 255, 256, 257, 9998, 9999, 10000, 10001} {
		same(`{"a":` + strings.Repeat("[", n) + strings.Repeat("]", n) + `,"isError":true}`)
		same(`{"a":` + strings.Repeat(`{"isError":`, n) + `1` + strings.Repeat("}", n) + `}`)
	}
	// Broken in every way.
	parts := []string{`"`, `\`, `{`, `}`, `[`, `]`, `,`, `:`, ` `, `isError`, `"isError":true,`, `"ISERROR":null`, `null`, `1`, `-`, `e`, `.`, "\xff", "ſ", "\x01", `\u017f`}
	r := rand.New(rand.NewPCG(1, 2))
	for range 200_000 {
		s := verdicts[r.IntN(len(verdicts))]
		for range r.IntN(4) {
			at := r.IntN(len(s) + 1)
			s = s[:at] + parts[r.IntN(len(parts))] + s[min(len(s), at+r.IntN(3)*r.IntN(4)):]
		}
		same(s)
	}
	if (gateway.Result{Error: json.RawMessage(`{}`), Raw: json.RawMessage(`{}`)}).Failed() != true {
		t.Error("an error is no failure")
	}
}

// What tools answer is read quickly; else it would cost more to ask whether a call
// failed than to make it.
func TestFailedIsQuick(t *testing.T) {
	for raw, want := range map[string]bool{
		`{"content":[{"type":"text","text":"Üben\n\u00e9 \"isError\":true"}],"structuredContent":{"n":[1.5e3,-0,true,null]},"_meta":{"é":{}}}`: false,
		`{"content":[],"isError":false}`:                              false,
		`{"resultType":"complete", "isError" : true , "content":[] }`: true,
	} {
		if failed, sure := gateway.Skim(raw); failed != want || !sure {
			t.Errorf("%s: %v, sure: %v", raw, failed, sure)
		}
	}
}

// FuzzFailed holds the quick reading to encoding/json.
func FuzzFailed(f *testing.F) {
	for _, s := range verdicts {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if got, want := (gateway.Result{Raw: raw}).Failed(), readSlowly(raw); got != want {
			t.Fatalf("%q failed: %v, encoding/json says %v", raw, got, want)
		}
	})
}
