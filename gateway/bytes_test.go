package gateway_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"log/slog"
	"net/url"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"toolbroker/gateway"
	"toolbroker/gateway/gatewaytest"
)

// What one reader could read differently from another is refused, at any depth.
func TestArgumentsReadOneWay(t *testing.T) {
	h := gatewaytest.New(t)
	deep := strings.Repeat(`{"a":`, 80) + "1" + strings.Repeat("}", 80)
	for args, ok := range map[string]bool{
		`{}`:           true,
		``:             true,
		`{"path":"é"}`: true,
		`{"amount":0.1,"n":1e3,"m":100000000000000000000}`: true,
		`{"n":1.0}`:                    true,
		`[]`:                           false,
		`null`:                         false,
		`"x"`:                          false,
		`{} {}`:                        false,
		`{"a":1,"a":2}`:                false,
		`{"x":{"a":1,"a":2}}`:          false,
		`{"Path":"x"}`:                 false, // a variant of a declared name
		`{"x":1,"X":2}`:                false,
		`{"to":{"IBAN":"x"}}`:          false,
		`{"x":[{"k":1,"K":2}]}`:        false, // the Kelvin sign folds to k
		`{"x":"\u0000"}`:               false,
		`{"\u0000":1}`:                 false,
		`{"x":"\ud800"}`:               false,
		"{\"x\":\"\xff\"}":             false,
		`{"n":9007199254740993}`:       false,
		`{"n":0.1000000000000000055}`:  false,
		`{"n":1e400}`:                  false,
		`{"n":-0}`:                     false,
		`{"n":-0.0}`:                   false,
		`{"n":12345678901234567890}`:   false,
		`{"n":01}`:                     false,
		`{"n":NaN}`:                    false,
		`{"a":1,}`:                     false,
		`{'a':1}`:                      false,
		deep:                           false,
		"\ufeff{}":                     false,
		`{"x":"` + "\x00" + `"}`:       false,
		`{"n":1.7976931348623157e308}`: true,
		`{"n":5e-324}`:                 true,
	} {
		_, err := h.Call(t.Context(), "files__read", args)
		if (err == nil) != ok {
			t.Errorf("%.60q: %v", args, err)
		}
		if err != nil && gateway.CodeOf(err) != gateway.BadArguments {
			t.Errorf("%.60q: %v", args, err)
		}
	}
}

// Whatever is let through is one object to encoding/json too, and means the same
// after a reader that takes numbers for float64 has written it again.
func FuzzArguments(f *testing.F) {
	for _, s := range []string{`{"path":"x"}`, `{"a":{"b":[1,2.50,"\u00e9"]}}`, `{"A":1,"a":2}`, `{"n":-0}`, `{"n":1e-7}`, `{"n":100000000000000000000}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, args string) {
		if gateway.CheckArguments(args) != nil {
			return
		}
		if args == "" {
			args = "{}"
		}
		var v map[string]any
		if err := json.Unmarshal([]byte(args), &v); err != nil {
			t.Fatalf("encoding/json cannot read %q: %v", args, err)
		}
		again, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		a, b := jsontext.Value(args), jsontext.Value(again)
		if a.Canonicalize() != nil || b.Canonicalize() != nil || !bytes.Equal(a, b) {
			t.Fatalf("%q becomes %q", a, b)
		}
	})
}

// However a server writes JSON around a secret, what leaves does not hold it.
func FuzzSecretNeverReturns(f *testing.F) {
	f.Add(`a`, "canary-canary", `b"\`)
	f.Add("\u2028", `s3"cr\et-ü`, "\x00")
	f.Fuzz(func(t *testing.T, before, secret, after string) {
		if len(secret) < 8 || strings.ToValidUTF8(secret, "") != secret || strings.Contains(gateway.Blank, secret) {
			return
		}
		text := strings.ToValidUTF8(before, "") + secret + strings.ToValidUTF8(after, "")
		raw, err := json.Marshal(map[string]string{"x": text})
		if err != nil {
			t.Fatal(err)
		}
		out, err := gateway.BlankOut(raw, secret)
		if err != nil {
			return // withheld
		}
		var v map[string]string
		if err := json.Unmarshal(out, &v); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		for k, s := range v {
			if strings.Contains(k+s, secret) && !strings.Contains(strings.ReplaceAll(text, secret, gateway.Blank), secret) {
				t.Fatalf("%q still holds %q", s, secret)
			}
		}
	})
}

// A secret comes back in no common form.
func TestSecretNeverReturns(t *testing.T) {
	const secret = `s3cr3t-"quo\te"/ünï+&=value`
	quoted, _ := json.Marshal(secret)
	var unicode strings.Builder
	for _, r := range secret {
		fmt.Fprintf(&unicode, `\u%04x`, r)
	}
	forms := map[string]string{
		"plain":                 strings.Trim(string(quoted), `"`),
		"escaped":               unicode.String(),
		"url":                   url.QueryEscape(secret),
		"path":                  url.PathEscape(secret),
		"hex":                   hex.EncodeToString([]byte(secret)),
		"HEX":                   strings.ToUpper(hex.EncodeToString([]byte(secret))),
		"base64":                base64.StdEncoding.EncodeToString([]byte(secret)),
		"base64 url":            base64.RawURLEncoding.EncodeToString([]byte(secret)),
		"base64 of user:secret": base64.StdEncoding.EncodeToString([]byte("user:" + secret + ":x")),
		"base64, third":         base64.StdEncoding.EncodeToString([]byte("us" + secret)),
	}
	for name, form := range forms {
		t.Run(name, func(t *testing.T) {
			h := gatewaytest.New(t)
			h.Leases.Secret = secret
			frames := &frames{}
			h.Servers.Answer = func(ctx context.Context, _ gateway.Forward, s gateway.Stream) (gateway.Result, error) {
				_ = s.Notify(ctx, "notifications/progress", json.RawMessage(`{"progress":1,"message":"`+form+`"}`))
				return gateway.Result{Raw: json.RawMessage(`{"content":[{"type":"text","text":"before ` + form + ` after"}],"k":"\n"}`)}, nil
			}
			r, err := h.Handle(t.Context(), gatewaytest.Call("a", "files__read", `{}`), frames)
			if err != nil {
				t.Fatal(err)
			}
			for _, out := range append(frames.all, r.Raw) {
				if !jsontext.Value(out).IsValid() || !bytes.Contains(out, []byte(gateway.Blank)) {
					t.Errorf("not blanked: %s", out)
				}
				core := form[4 : len(form)-4]
				if bytes.Contains(out, []byte(core)) {
					t.Errorf("still there: %s", out)
				}
			}
			if !bytes.Contains(r.Raw, []byte("before ")) || !bytes.Contains(r.Raw, []byte(" after")) {
				t.Errorf("too much is gone: %s", r.Raw)
			}
			for _, e := range h.Lines() {
				if line, _ := json.Marshal(e); bytes.Contains(line, []byte("s3cr3t")) {
					t.Errorf("on record: %s", line)
				}
			}
		})
	}
}

type frames struct {
	gatewaytest.Unasked
	all []json.RawMessage
}

func (f *frames) Notify(_ context.Context, _ string, params json.RawMessage) error {
	f.all = append(f.all, params)
	return nil
}

// One encoding inside another hides nothing; the string that holds it goes whole.
func TestSecretInOtherClothes(t *testing.T) {
	const secret = `pa&ss<w>or'd"/\(x)`
	percent := func(keep, digits string) string {
		var b strings.Builder
		for _, c := range []byte(secret) {
			if strings.IndexByte(keep, c) >= 0 || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' {
				b.WriteByte(c)
			} else {
				fmt.Fprintf(&b, "%%"+digits, c)
			}
		}
		return b.String()
	}
	plain, _ := json.Marshal(map[string]string{"password": secret})
	var unescaped bytes.Buffer
	enc := json.NewEncoder(&unescaped)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(map[string]string{"password": secret})
	twice, _ := json.Marshal(map[string]string{"inner": string(plain)})
	for name, form := range map[string]string{
		"encodeURIComponent":      percent("-_.!~*'()", "%02X"),
		"Python's quote":          percent("-_.~/", "%02X"),
		"lower-case percent":      percent("-_.~", "%02x"),
		"HTML":                    html.EscapeString(secret),
		"HTML, by number":         strings.NewReplacer("&", "&#38;", "<", "&#x3c;", "'", "&#39;", `"`, "&#34;").Replace(secret),
		"JSON in text, by Go":     string(plain),
		"JSON in text, by others": unescaped.String(),
		"JSON in JSON in text":    string(twice),
		"percent of HTML":         url.QueryEscape(html.EscapeString(secret)),
	} {
		text, _ := json.Marshal("before " + form + " after")
		out, err := gateway.BlankOut([]byte(`{"content":[{"type":"text","text":`+string(text)+`},{"type":"text","text":"100% & more"}]}`), secret)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !bytes.Contains(out, []byte(gateway.Blank)) || bytes.Contains(out, []byte("ss")) && bytes.Contains(out, []byte("or")) && bytes.Contains(out, []byte("pa")) {
			t.Errorf("%s: %s", name, out)
		}
		if !bytes.Contains(out, []byte("100% & more")) {
			t.Errorf("%s: too much is gone: %s", name, out)
		}
	}
}

// A server that has learnt another's credential cannot hand it on while that
// lives, in a result or in progress.
func TestAnotherLeasesSecret(t *testing.T) {
	h := gatewaytest.New(t)
	h.Leases.Secret = "first-secret-value"
	var inner gateway.Result
	h.Servers.Answer = func(ctx context.Context, f gateway.Forward, _ gateway.Stream) (gateway.Result, error) {
		if f.Tool.Name == "slow" {
			h.Leases.Secret = "second-secret-value"
			var err error
			if inner, err = h.Call(ctx, "files__read", `{}`); err != nil {
				t.Error(err)
			}
		}
		return gateway.Result{Raw: json.RawMessage(`{"content":[{"type":"text","text":"first-secret-value second-secret-value"}]}`)}, nil
	}
	if _, err := h.Call(t.Context(), "files__slow", `{}`); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(inner.Raw), "secret-value") {
		t.Errorf("the agent reads %s", inner.Raw)
	}
}

// Only what a schema declares is declared.
func TestDeclared(t *testing.T) {
	for _, row := range []struct{ schema, args, want string }{
		{`{"properties":{"a":{}}}`, `{"a":1}`, ""},
		{`{"properties":{"a":{}}}`, `{"a":1,"b":2}`, "b"},
		{`{"properties":{"a":{}},"patternProperties":{"^x-":{}}}`, `{"a":1,"x-b":2}`, ""},
		{`{"properties":{"a":{}},"patternProperties":{"^x-":{}}}`, `{"a":1,"force":true}`, "force"},
		{`{"properties":{"a":{}},"patternProperties":{"(?=x)":{}}}`, `{"a":1,"x":true}`, "x"},
		{`{"properties":{"a":{}},"additionalProperties":{"type":"string"}}`, `{"b":"x"}`, "b"},
		{`{"properties":{"labels":{"additionalProperties":{"type":"string"}}}}`, `{"labels":{"any":"x"}}`, ""},
		{`{"properties":{"o":{"properties":{"a":{}}}}}`, `{"o":{"b":1}}`, "b"},
		{`{"properties":{"l":{"items":{"properties":{"a":{}}}}}}`, `{"l":[{"a":1},{"b":1}]}`, "b"},
		{`{"allOf":[{"properties":{"a":{}}},{"$ref":"#/$defs/x"}],"$defs":{"x":{"properties":{"b":{}}}}}`, `{"a":1,"b":2,"c":3}`, "c"},
		{`{"properties":{"t":{"$ref":"#"}}}`, `{"t":{"t":{"u":1}}}`, "u"},
		{`{}`, `{"a":1}`, "a"},
	} {
		if got, err := gateway.Undeclared(row.schema, row.args); err != nil || got != row.want {
			t.Errorf("%s with %s: %q %v, want %q", row.schema, row.args, got, err, row.want)
		}
	}
}

// Trace context passes, and stands on record; nothing else of _meta does.
func TestTraceContext(t *testing.T) {
	h := gatewaytest.New(t)
	c := gatewaytest.Call("a", "files__read", `{}`)
	c.Meta = json.RawMessage(`{"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","tracestate":"a=b","io.toolbroker/x":1,"other":2}`)
	if _, err := h.Handle(t.Context(), c, nil); err != nil {
		t.Fatal(err)
	}
	if got := string(h.Servers.Sent()[0].Meta); got != `{"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","tracestate":"a=b"}` {
		t.Errorf("sent %s", got)
	}
	if e := h.Lines()[0]; e.Call.TraceID != "0af7651916cd43dd8448eb211c80319c" {
		t.Errorf("on record: %+v", e.Call)
	}
}

// A secret that stands as a number cannot be blanked; the answer is withheld.
func TestSecretAsNumber(t *testing.T) {
	h := gatewaytest.New(t)
	h.Leases.Secret = "123456789012"
	h.Servers.Answer = func(context.Context, gateway.Forward, gateway.Stream) (gateway.Result, error) {
		return gateway.Result{Raw: json.RawMessage(`{"content":[],"n":123456789012}`)}, nil
	}
	if _, err := h.Call(t.Context(), "files__read", `{}`); gateway.CodeOf(err) != gateway.Downstream {
		t.Fatalf("%v", err)
	}
}

// Without a secret in them, results pass byte for byte.
func TestResultsPassUntouched(t *testing.T) {
	const raw = "{ \"content\":[ ] , \"x\":1.50, \"y\":\"\\u0041\\/\" }"
	h := gatewaytest.New(t)
	h.Leases.Secret = "canary-canary"
	h.Servers.Answer = func(context.Context, gateway.Forward, gateway.Stream) (gateway.Result, error) {
		return gateway.Result{Raw: json.RawMessage(raw)}, nil
	}
	r, err := h.Call(t.Context(), "files__read", `{}`)
	if err != nil || string(r.Raw) != raw {
		t.Fatalf("%s %v", r.Raw, err)
	}
}

// A Secret does not print.
func TestSecretDoesNotPrint(t *testing.T) {
	s := gateway.NewSecret("canary-canary")
	var b strings.Builder
	slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "s", s, "in", struct{ S gateway.Secret }{s})
	asJSON, _ := json.Marshal(map[string]any{"s": s, "p": &s})
	for _, out := range []string{fmt.Sprint(s), fmt.Sprintf("%v %+v %#v %s %q %x %d", s, s, s, s, s, s, s), fmt.Sprintf("%v", struct{ S gateway.Secret }{s}), b.String(), string(asJSON)} {
		if strings.Contains(out, "canary") || strings.Contains(out, hex.EncodeToString([]byte("canary"))) {
			t.Errorf("printed: %s", out)
		}
	}
}

// Arguments hold so many values and no more, however they are nested, and who sends
// more hears how many that is before the schema is asked.
func TestHowManyArguments(t *testing.T) {
	h := gatewaytest.New(t)
	list := func(n int, one string) string { return "[" + strings.Repeat(one+",", n-1) + one + "]" }
	keys := make([]string, 20_000)
	for i := range keys {
		keys[i] = fmt.Sprintf(`"k%d":0`, i)
	}
	for about, row := range map[string]struct {
		args string
		fine bool
	}{
		"as many as go":   {`{"x":` + list(20_000-2, "0") + `}`, true},
		"one more":        {`{"x":` + list(20_000-1, "0") + `}`, false},
		"pairs":           {`{"x":` + list(10_000, "[0]") + `}`, false},
		"names":           {"{" + strings.Join(keys, ",") + "}", false},
		"a long text":     {`{"x":"` + strings.Repeat("[0],", 100_000) + `"}`, true},
		"and it is wrong": {`{"path":` + list(20_000, "0") + `}`, false},
	} {
		_, err := h.Call(t.Context(), "files__read", row.args)
		r, refused := errors.AsType[*gateway.Refusal](err)
		switch {
		case row.fine && err != nil:
			t.Errorf("%s: %v", about, err)
		case !row.fine && (!refused || r.Code != gateway.BadArguments || !strings.Contains(r.Say, "more than 20000 values")):
			t.Errorf("%s: %v, %+v", about, err, r)
		}
	}
}
