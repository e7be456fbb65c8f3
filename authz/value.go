package authz

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	strict "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// An input is what conditions read of one request. It serves one goroutine.
type input struct {
	raw  json.RawMessage
	at   time.Time
	args map[string]jsontext.Value // of raw, once read
	err  error
}

type kind uint8

const (
	absentKind kind = iota
	nullKind
	boolKind
	numberKind
	stringKind
	arrayKind
	objectKind
)

func (k kind) String() string {
	return [...]string{"missing", "null", "true or false", "a number", "a string", "a list", "an object"}[k]
}

// A value is an argument or a literal.
type value struct {
	kind   kind
	truth  bool
	number float64
	text   string
	raw    jsontext.Value // of a list or an object
}

// arg finds an argument. An absent one is a value; arguments that are no
// object, name anything twice or are not JSON are an error.
func (in *input) arg(path []string) (value, error) {
	if in.args == nil && in.err == nil {
		in.args, in.err = object(jsontext.Value(in.raw))
	}
	if in.err != nil {
		return value{}, fmt.Errorf("args cannot be read")
	}
	at := in.args
	for i, name := range path {
		raw, ok := at[name]
		if !ok {
			return value{}, nil
		}
		if i == len(path)-1 {
			v, err := parseValue(raw)
			if err != nil {
				err = fmt.Errorf("args.%s: %w", strings.Join(path, "."), err)
			}
			return v, err
		}
		if raw.Kind() == 'n' {
			return value{}, nil
		}
		var err error
		if at, err = object(raw); err != nil {
			return value{}, fmt.Errorf("args.%s is not an object", strings.Join(path[:i+1], "."))
		}
	}
	return value{}, nil
}

func object(raw jsontext.Value) (map[string]jsontext.Value, error) {
	if len(raw) == 0 {
		return map[string]jsontext.Value{}, nil
	}
	if raw.Kind() != '{' {
		return nil, errors.New("not an object")
	}
	var members map[string]jsontext.Value
	if err := strict.Unmarshal(raw, &members); err != nil {
		return nil, err
	}
	return members, nil
}

func parseValue(raw jsontext.Value) (value, error) {
	switch raw.Kind() {
	case 'n':
		return value{kind: nullKind}, nil
	case 't', 'f':
		return value{kind: boolKind, truth: raw.Kind() == 't'}, nil
	case '0':
		n, err := parseNumber(string(raw))
		return value{kind: numberKind, number: n}, err
	case '"':
		var s string
		err := strict.Unmarshal(raw, &s)
		return value{kind: stringKind, text: s}, err
	case '[':
		return value{kind: arrayKind, raw: raw}, nil
	case '{':
		return value{kind: objectKind, raw: raw}, nil
	}
	return value{}, errors.New("is not JSON")
}

// parseNumber reads a JSON number and refuses one that two readers could take
// for different numbers: an integer beyond 2^53, more than 15 digits, and
// whatever is too large or too small.
func parseNumber(text string) (float64, error) {
	inexact := errors.New("cannot be read exactly")
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || strings.ContainsAny(text, "xXpP_nNiI") {
		return 0, inexact
	}
	mantissa, _, scaled := strings.Cut(strings.ToLower(strings.TrimPrefix(text, "-")), "e")
	whole, fraction, point := strings.Cut(mantissa, ".")
	if !scaled && !point {
		i, err := strconv.ParseInt(text, 10, 64)
		if err != nil || i > 1<<53 || i < -1<<53 {
			return 0, inexact
		}
		return float64(i), nil
	}
	digits := strings.Trim(whole+fraction, "0")
	if len(digits) > 15 || n == 0 && digits != "" {
		return 0, inexact
	}
	return n, nil
}

// compare compares two values of one type. A comparison with null is true of
// what is absent as well; any other that mixes types cannot be evaluated.
func compare(op string, l, r value, left, right string) (bool, error) {
	empty := func(v value) bool { return v.kind == nullKind || v.kind == absentKind }
	if (op == "==" || op == "!=") && (l.kind == nullKind && left == "" || r.kind == nullKind && right == "") {
		return (empty(l) && empty(r)) == (op == "=="), nil
	}
	for _, side := range []struct {
		name string
		v    value
	}{{left, l}, {right, r}} {
		if side.v.kind < boolKind || side.v.kind > stringKind {
			return false, fmt.Errorf("%s is %s", side.name, side.v.kind)
		}
	}
	if l.kind != r.kind {
		if left == "" {
			left, l, r = right, r, l
		}
		return false, fmt.Errorf("%s is %s, not %s", left, l.kind, r.kind)
	}
	switch op {
	case "==":
		return l.truth == r.truth && l.number == r.number && l.text == r.text, nil
	case "!=":
		return l.truth != r.truth || l.number != r.number || l.text != r.text, nil
	}
	if l.kind == boolKind {
		return false, fmt.Errorf("%s is %s, which has no order", left, l.kind)
	}
	order := strings.Compare(l.text, r.text)
	if l.kind == numberKind {
		order = int(math.Copysign(1, l.number-r.number))
		if l.number == r.number {
			order = 0
		}
	}
	switch op {
	case "<":
		return order < 0, nil
	case "<=":
		return order <= 0, nil
	case ">":
		return order > 0, nil
	}
	return order >= 0, nil
}

// contains reports whether v is a list that holds want. Every element must be
// of want's type.
func (v value) contains(want value, name string) (bool, error) {
	if v.kind != arrayKind {
		return false, fmt.Errorf("%s is %s, not a list", name, v.kind)
	}
	var items []jsontext.Value
	if err := strict.Unmarshal(v.raw, &items); err != nil {
		return false, fmt.Errorf("%s cannot be read", name)
	}
	found := false
	for _, raw := range items {
		item, err := parseValue(raw)
		if err != nil {
			return false, fmt.Errorf("%s holds what cannot be read exactly", name)
		}
		same, err := compare("==", item, want, "an element of "+name, "")
		if err != nil {
			return false, err
		}
		found = found || same
	}
	return found, nil
}
