package servers

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"toolbroker/gateway"
)

func list(n int, one string) string { return "[" + strings.Repeat(one+",", n-1) + one + "]" }

func object1(n int, value string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `"%d":%s,`, i, value)
	}
	return "{" + strings.TrimSuffix(b.String(), ",") + "}"
}

// A reply takes a small multiple of its bytes, whatever is in it: what there is more of
// than anyone reads is refused as it is read.
func TestWhatAReplyTakes(t *testing.T) {
	const text = `{"type":"text","text":"x"}`
	for name, c := range map[string]struct {
		result string
		good   bool
	}{
		"content of no blocks":         {`{"content":` + list(2_000_000, "0") + `}`, false},
		"beside tools":                 {`{"tools":[],"content":` + list(2_000_000, "0") + `}`, false},
		"content of lists":             {`{"content":[` + list(490_000, "0") + `]}`, true},
		"contents":                     {`{"contents":` + list(400_000, "0") + `}`, false},
		"messages":                     {`{"messages":` + list(400_000, "{}") + `}`, false},
		"content of a message":         {`{"messages":[{"content":` + list(400_000, "{}") + `}]}`, false},
		"content of results":           {`{"result":{"result":{"content":` + list(400_000, "{}") + `}}}`, false},
		"members":                      {object1(200_000, "0"), false},
		"members of blocks":            {`{"content":` + list(5, object1(30_000, "0")) + `}`, false},
		"_meta":                        {`{"_meta":` + object1(200_000, "0") + `}`, false},
		"a list in _meta":              {`{"_meta":{"content":` + list(400_000, "0") + `}}`, true},
		"data of many names":           {`{"structuredContent":` + object1(maxNames+1, "0") + `}`, false},
		"data of as many as may be":    {`{"structuredContent":` + object1(maxNames, "0") + `}`, true},
		"data":                         {`{"content":[],"structuredContent":{"content":` + list(490_000, "0") + `}}`, true},
		"too much data":                {`{"content":[],"structuredContent":{"a":` + list(maxValues, "0") + `}}`, false},
		"as many blocks as may be":     {`{"content":` + list(maxBlocks, text) + `}`, true},
		"one more":                     {`{"content":` + list(maxBlocks+1, text) + `}`, false},
		"as many resources as may be":  {`{"contents":` + list(maxBlocks, `{"uri":"a:b","text":"","mimeType":"x","_meta":{"a":1,"b":2}}`) + `}`, true},
		"a long text":                  {`{"content":[{"type":"text","text":"` + strings.Repeat("x", 4<<20) + `"}]}`, true},
		"blocks with annotations each": {`{"content":` + list(5_000, `{"type":"text","text":"x","annotations":{"audience":["user","user"],"priority":1}}`) + `}`, true},
	} {
		frame := []byte(`{"jsonrpc":"2.0","id":1,"result":` + c.result + `}`)
		var m message
		var err error
		took := allocated(func() { m, err = answerTo(1, frame) })
		if (err == nil) != c.good || !c.good && (!errors.Is(err, errTooMany) || !errors.Is(err, gateway.ErrBadAnswer)) {
			t.Errorf("%s: %v", name, err)
		}
		if most := uint64(64 << 20); took > most || len(m.tree.nodes) > maxNodes+1 {
			t.Errorf("%s: %d bytes take %d", name, len(frame), took)
		}
		if nodes := len(m.tree.nodes); strings.Contains(name, "data") && nodes > 10 {
			t.Errorf("%s: %d places of what nobody looks at", name, nodes)
		}
	}
}

// What a server asks is for people to read.
func TestHowMuchIsAsked(t *testing.T) {
	question := func(params string) string { return `{"method":"elicitation/create","params":` + params + `}` }
	f := gateway.Forward{Method: gateway.MethodCall}
	for name, c := range map[string]struct {
		requests string
		good     bool
	}{
		"as many as may be": {object1(maxInputs, question("{}")), true},
		"one more":          {object1(maxInputs+1, question("{}")), false},
		"a long one":        {`{"a":` + question(`{"message":"`+strings.Repeat("x", 1<<20)+`"}`) + `}`, true},
		"many keys":         {`{"a":` + question(object1(maxAsked, "0")) + `}`, false},
	} {
		for _, result := range []string{`"resultType":"input_required"`, `"status":"input_required"`} {
			f := f
			if strings.Contains(result, "status") {
				f.Method = gateway.MethodTaskGet
			}
			m, err := answerTo(1, []byte(`{"jsonrpc":"2.0","id":1,"result":{`+result+`,"inputRequests":`+c.requests+`}}`))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := (&server{}).answer(f, modernEra, m); (err == nil) != c.good || err != nil && !errors.Is(err, gateway.ErrBadAnswer) {
				t.Errorf("%s, %s: %v", name, result, err)
			}
		}
	}
	many := json.RawMessage(object1(maxAsked, "0"))
	if _, err := parse([]byte(`{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"x","data":` + string(many) + `}}`)); !errors.Is(err, errTooMany) {
		t.Errorf("an error: %v", err)
	}
	if readable(message{params: many}) || !readable(message{}) || !readable(message{params: json.RawMessage(`{"a":1}`)}) {
		t.Error("a question during a call has another bound")
	}
	e := &ear{}
	h := &hearing{ctx: t.Context(), out: e, token: "x"}
	for _, params := range []string{string(many), `{"data":1}`} {
		if err := h.note(message{method: "notifications/message", params: json.RawMessage(params)}); err != nil {
			t.Error(err)
		}
	}
	if len(e.heard) != 1 {
		t.Errorf("%d messages were heard", len(e.heard))
	}
}

// What has more members than are looked at keeps no key of ours for that.
func TestScrubbingWhatIsMany(t *testing.T) {
	for _, raw := range []string{
		`{"_meta":{"io.toolbroker/x":1,` + object1(maxNodes+1, "0")[1:] + `}`,
		`{"_meta":{"io.toolbroker/x":1},` + object1(maxNodes+1, "0")[1:],
		`{` + strings.Trim(object1(maxNodes+1, "0"), "{}") + `,"_meta":{"a":1,"io.toolbroker/x":1}}`,
	} {
		out := scrub(json.RawMessage(raw), "_meta")
		if strings.Contains(string(out), "io.toolbroker") || !json.Valid(out) {
			t.Errorf("%.100s", out)
		}
	}
}

// A server's whole list is refused, and a call's answer, and nothing else breaks.
func TestAServerThatAnswersWithManyParts(t *testing.T) {
	var body string
	f := &fake{modern: true, call: func(w http.ResponseWriter, r *http.Request, m fakeMessage) { says(contentJSON, body)(w, r, m) }}
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t)}}})
	for _, c := range []struct {
		body string
		good bool
	}{
		{`{"jsonrpc":"2.0","id":ID,"result":{"content":` + list(20_000, "0") + `}}`, false},
		{`{"jsonrpc":"2.0","id":ID,"result":{"content":[]}}`, true},
	} {
		body = c.body
		if _, err := forward(t, s, "x__act", `{}`); (err == nil) != c.good || err != nil && !errors.Is(err, errTooMany) {
			t.Errorf("%v", err)
		}
	}
}

// Of values with many parts, which take much when they are decoded, few are checked at a
// time; others do not wait for them.
func TestBigValuesAreCheckedInTurn(t *testing.T) {
	check, err := compile(json.RawMessage(`{"type":"object"}`), newRoom())
	if err != nil {
		t.Fatal(err)
	}
	for range cap(checking) {
		checking <- struct{}{}
	}
	big := make(chan error, 1)
	go func() { big <- check(json.RawMessage(object1(manyValues, "0"))) }()
	if err := check(json.RawMessage(`{"a":"` + strings.Repeat("x", 1<<20) + `"}`)); err != nil {
		t.Error(err)
	}
	select {
	case err := <-big:
		t.Errorf("it did not wait: %v", err)
		big <- err
	default:
	}
	for range cap(checking) {
		<-checking
	}
	if err := <-big; err != nil {
		t.Error(err)
	}
}
