package secrets

import (
	"errors"
	"fmt"
	"strings"

	"toolbroker/gateway"
)

// A template is literal text with {{.field}} in it. There is nothing else to
// it: no function, no pipe, no condition that a secret's content could steer.
type template []part

type part struct {
	text  string
	field bool // text names a field
}

// parse refuses whatever is not text or {{.field}}.
func parse(s string) (template, error) {
	var t template
	for {
		text, rest, open := strings.Cut(s, "{{")
		if strings.Contains(text, "}}") {
			return nil, errors.New("}} without {{ before it")
		}
		if text != "" {
			t = append(t, part{text, false})
		}
		if !open {
			return t, nil
		}
		inside, after, closed := strings.Cut(rest, "}}")
		name, dot := strings.CutPrefix(inside, ".")
		if !closed || !dot || !fieldName(name) {
			return nil, errors.New("only {{.field}} may stand in braces, a field of letters, digits, _ and -")
		}
		t = append(t, part{name, true})
		s = after
	}
}

var errField = errors.New("the secret cannot be used")

func fieldName(s string) bool {
	for _, r := range s {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '-') {
			return false
		}
	}
	return s != ""
}

func (t template) fields() (names []string) {
	for _, p := range t {
		if p.field {
			names = append(names, p.text)
		}
	}
	return names
}

// fill puts the fields in. What cannot stand in a header or an environment
// variable, and a field that is missing or empty, is an error that names the
// field only.
func (t template) fill(data map[string]string) (gateway.Secret, error) {
	var b strings.Builder
	for _, p := range t {
		s := p.text
		if p.field {
			if s = data[p.text]; s == "" {
				return gateway.Secret{}, fmt.Errorf("%w: no field %q, or it is empty", errField, p.text)
			}
			if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
				return gateway.Secret{}, fmt.Errorf("%w: field %q holds a line break or another control character", errField, p.text)
			}
		}
		b.WriteString(s)
	}
	return gateway.NewSecret(b.String()), nil
}
