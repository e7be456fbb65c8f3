package identity

import (
	"bytes"
	"encoding/base64"
	"errors"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

const (
	taskType   = "tbtask+jwt"
	maxNesting = 8       // of a header or a payload
	maxNumber  = 1 << 53 // beyond it, two numbers can be one float64
)

// claims is a JSON object after the one strict reading of it: no name stands
// twice, nothing is nested deeper than maxNesting.
type claims map[string]any

// A token is a JWT that was read and not verified.
type token struct {
	claims
	raw    string
	header claims
	alg    string
	kid    string
	typ    string // lower case, without "application/"
}

var strict = base64.RawURLEncoding.Strict() // one reading per signature, not four

// peek reads a compact JWS so that a verifier can be chosen and cheap questions
// asked. It refuses whatever two readers could read differently.
func peek(raw string) (*token, error) {
	parts := strings.Split(raw, ".")
	if len(parts) != 3 || len(raw) > longest {
		return nil, errors.New("neither an API key nor a JWT; opaque tokens are not supported")
	}
	t := &token{raw: raw}
	for n, part := range parts {
		text, err := strict.DecodeString(part)
		if err != nil || strings.ContainsAny(part, "\r\n") { // which base64 would skip
			return nil, errors.New("not base64url")
		}
		switch n {
		case 0:
			t.header, err = readObject(text)
		case 1:
			t.claims, err = readObject(text)
		}
		if err != nil {
			return nil, err
		}
	}
	for _, name := range []string{"crit", "b64", "zip", "enc"} { // each changes what the rest means
		if _, ok := t.header[name]; ok {
			return nil, errors.New("a header that must be understood and is not")
		}
	}
	t.alg, t.kid = t.header.text("alg"), t.header.text("kid")
	if _, ok := t.header["kid"]; ok && t.kid == "" {
		return nil, errors.New("a kid that is no name")
	}
	if _, ok := t.header["typ"]; ok {
		if t.typ = mediaType(t.header.text("typ")); t.typ == "" {
			return nil, errors.New("a typ that is no name")
		}
	}
	return t, nil
}

func mediaType(s string) string { return strings.TrimPrefix(strings.ToLower(s), "application/") }

// readObject reads one JSON object, strictly.
func readObject(text []byte) (claims, error) {
	d := jsontext.NewDecoder(bytes.NewReader(text)) // refuses names that stand twice and bad UTF-8
	for first := true; ; first = false {
		tok, err := d.ReadToken()
		if err != nil || first && tok.Kind() != '{' {
			return nil, errors.New("not a JSON object that reads one way only")
		}
		if d.StackDepth() > maxNesting {
			return nil, errors.New("nested too deeply")
		}
		if d.StackDepth() == 0 {
			break
		}
	}
	var c claims
	if err := json.Unmarshal(text, &c); err != nil { // refuses what follows the object
		return nil, errors.New("not a JSON object that reads one way only")
	}
	return c, nil
}

// text returns a claim that is a string, or "".
func (c claims) text(name string) string {
	s, _ := c[name].(string)
	return s
}

// time returns a claim that is a NumericDate. It is not ok where the claim is
// there and is none; found says whether it is there.
func (c claims) time(name string) (at time.Time, found, ok bool) {
	v, found := c[name]
	if !found {
		return time.Time{}, false, true
	}
	f, ok := v.(float64)
	if !ok || math.IsNaN(f) || f < 0 || f > 253402300799 { // the year 9999
		return time.Time{}, true, false
	}
	whole, part := math.Modf(f)
	return time.Unix(int64(whole), int64(part*1e9)), true, true
}

// list returns a claim that is a string or a list of strings. It is not ok where
// the claim is there and is neither.
func (c claims) list(name string) (all []string, ok bool) {
	switch v := c[name].(type) {
	case nil:
		_, there := c[name]
		return nil, !there
	case string:
		return []string{v}, true
	case []any:
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, false
			}
			all = append(all, s)
		}
		return all, true
	}
	return nil, false
}

// at finds a claim by its path, "act.sub". Names may hold dots themselves
// ("kubernetes.io.namespace"); where a path can be read two ways, there is no
// such claim.
func (c claims) at(path string) (any, bool) {
	found := c.all(path, nil)
	if len(found) != 1 {
		return nil, false
	}
	return found[0], true
}

func (c claims) all(path string, found []any) []any {
	if v, ok := c[path]; ok {
		found = append(found, v)
	}
	for n, r := range path {
		if r != '.' {
			continue
		}
		if inner, ok := c[path[:n]].(map[string]any); ok {
			found = claims(inner).all(path[n+1:], found)
		}
	}
	return found
}

// scalar writes a single value; a number only where it has one spelling.
func scalar(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case bool:
		return strconv.FormatBool(v), true
	case float64:
		if v != math.Trunc(v) || math.Abs(v) >= maxNumber {
			return "", false
		}
		return strconv.FormatInt(int64(v), 10), true
	}
	return "", false
}
