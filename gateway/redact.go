package gateway

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// Blank is what stands where a secret was.
const Blank = "[redacted]"

// shortest is the length below which a value is too common to look for.
const shortest = 8

// A Secret is a value that does not print: fmt, slog and JSON show [Blank].
type Secret struct{ value string }

// NewSecret wraps a value.
func NewSecret(value string) Secret { return Secret{value} }

// Reveal returns the value, for the one who sends it and the one who blanks it out.
func (s Secret) Reveal() string { return s.value }

// IsZero reports whether there is no value.
func (s Secret) IsZero() bool { return s.value == "" }

// String returns [Blank].
func (Secret) String() string { return Blank }

// GoString returns [Blank].
func (Secret) GoString() string { return Blank }

// Format prints [Blank], whatever the verb.
func (Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, Blank) }

// LogValue returns [Blank].
func (Secret) LogValue() slog.Value { return slog.StringValue(Blank) }

// MarshalJSON returns [Blank].
func (Secret) MarshalJSON() ([]byte, error) { return json.Marshal(Blank) }

// MarshalText returns [Blank].
func (Secret) MarshalText() ([]byte, error) { return []byte(Blank), nil }

// A mesh blanks secrets out of what comes back from a server: each literal
// occurrence, and each in base64, hex or URL encoding, also where JSON escapes
// hide it. A server that transforms a secret otherwise is bounded by the
// secret's short life only.
type mesh struct{ forms [][]byte }

// newMesh makes the mesh for these secrets; those shorter than 8 bytes are too
// common to look for.
func newMesh(secrets []Secret) *mesh {
	n := &mesh{}
	seen := map[string]bool{}
	add := func(form string) {
		if len(form) >= shortest && !seen[form] {
			seen[form] = true
			n.forms = append(n.forms, []byte(form))
		}
	}
	for _, s := range secrets {
		// "Bearer abc" hides abc: look for the words, too.
		for _, v := range append(strings.Fields(s.value), s.value) {
			if len(v) < shortest {
				continue
			}
			add(v)
			add(url.QueryEscape(v))
			add(url.PathEscape(v))
			add(hex.EncodeToString([]byte(v)))
			add(strings.ToUpper(hex.EncodeToString([]byte(v))))
			for shift := range 3 {
				// The middle of the encoding does not depend on what stands around it.
				padded := append(make([]byte, shift), v...)
				for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
					e := enc.EncodeToString(padded)
					add(e[(shift*8+5)/6 : len(padded)*8/6])
				}
			}
		}
	}
	// Longest first, so that no shorter form leaves part of a longer one behind.
	slices.SortFunc(n.forms, func(a, b []byte) int { return cmp.Compare(len(b), len(a)) })
	return n
}

var errUnblankable = errors.New("a secret stands where blanking it would break the answer")

// result blanks a whole answer.
func (n *mesh) result(r Result) (Result, int, error) {
	raw, a, err := n.json(r.Raw)
	if err != nil {
		return Result{}, 0, err
	}
	failed, b, err := n.json(r.Error)
	return Result{Raw: raw, Error: failed}, a + b, err
}

// json blanks one JSON value and leaves every other byte as it is.
func (n *mesh) json(raw json.RawMessage) (json.RawMessage, int, error) {
	if len(n.forms) == 0 || len(raw) == 0 {
		return raw, 0, nil
	}
	out, count := n.text(raw)
	if bytes.IndexByte(out, '\\') >= 0 {
		var more int
		out, more = n.escaped(out)
		count += more
	}
	if count > 0 && !jsontext.Value(out).IsValid() {
		return nil, count, errUnblankable
	}
	return out, count, nil
}

func (n *mesh) text(raw []byte) ([]byte, int) {
	count := 0
	for _, form := range n.forms {
		if c := bytes.Count(raw, form); c > 0 {
			raw, count = bytes.ReplaceAll(raw, form, []byte(Blank)), count+c
		}
	}
	return raw, count
}

// escaped looks into the strings that JSON escapes, and rewrites those that hold
// a secret.
func (n *mesh) escaped(raw []byte) ([]byte, int) {
	dec := jsontext.NewDecoder(bytes.NewReader(raw), jsontext.AllowDuplicateNames(true))
	var out []byte
	done, count := 0, 0
	for {
		tok, err := dec.ReadToken()
		if err != nil {
			return append(out, raw[done:]...), count // not JSON further on: the caller's check decides
		}
		end := int(dec.InputOffset())
		if tok.Kind() != '"' {
			continue
		}
		if text, c := n.text([]byte(tok.String())); c > 0 {
			start := stringStart(raw, done, end)
			quoted, err := jsontext.AppendQuote(nil, text)
			if err != nil {
				quoted = []byte(`"` + Blank + `"`)
			}
			out = append(append(out, raw[done:start]...), quoted...)
			done, count = end, count+c
		}
	}
}

// stringStart finds where the string literal that ends at end begins.
func stringStart(raw []byte, from, end int) int {
	for i := end - 2; i >= from; i-- {
		if raw[i] != '"' {
			continue
		}
		slashes := 0
		for j := i - 1; j >= 0 && raw[j] == '\\'; j-- {
			slashes++
		}
		if slashes%2 == 0 {
			return i
		}
	}
	return from
}

// meshStream blanks each frame before it leaves.
type meshStream struct {
	Stream
	mesh *mesh
}

func (s meshStream) Notify(ctx context.Context, method string, params json.RawMessage) error {
	if s.Stream == nil {
		return nil
	}
	params, _, err := s.mesh.json(params)
	if err != nil {
		return nil // a frame that cannot be blanked is not sent; the call goes on
	}
	return s.Stream.Notify(ctx, method, params)
}
