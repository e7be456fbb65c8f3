package edge

import (
	"bytes"
	"errors"

	"github.com/go-json-experiment/json/jsontext"

	"toolbroker/gateway"
)

// A walker goes through JSON that was read strictly before, by its brackets and
// quotes alone: results are large, and are read once. On anything that is not JSON
// it stops with an error or goes past what is wrong; it never goes past the end.
type walker struct {
	raw []byte
	i   int
}

var errWalk = errors.New("not JSON")

// next is the byte that the next token begins with, or 0 at the end.
func (w *walker) next() byte {
	for w.i < len(w.raw) {
		switch c := w.raw[w.i]; c {
		case ' ', '\t', '\r', '\n':
			w.i++
		default:
			return c
		}
	}
	return 0
}

// take goes over a token of one byte, if it is the next one.
func (w *walker) take(c byte) bool {
	if w.next() != c {
		return false
	}
	w.i++
	return true
}

// string goes over a string, and returns it as it is written.
func (w *walker) string() ([]byte, error) {
	if w.next() != '"' {
		return nil, errWalk
	}
	start, end := w.i, gateway.StringEnd(w.raw, w.i+1)
	if end >= len(w.raw) {
		return nil, errWalk
	}
	w.i = end + 1
	return w.raw[start:w.i], nil
}

// name goes over a member's name and its colon.
func (w *walker) name() (string, error) {
	s, err := w.string()
	if err != nil || !w.take(':') {
		return "", errWalk
	}
	if bytes.IndexByte(s, '\\') >= 0 {
		return unquote(jsontext.Value(s)), nil
	}
	return string(s[1 : len(s)-1]), nil
}

// value goes over a value, and returns it as it is written.
func (w *walker) value() (jsontext.Value, error) {
	switch w.next() {
	case 0, ',', ':', '}', ']':
		return nil, errWalk
	case '"':
		s, err := w.string()
		return s, err
	case '{', '[':
		start := w.i
		for depth := 0; w.i < len(w.raw); w.i++ {
			switch w.raw[w.i] {
			case '"':
				w.i = gateway.StringEnd(w.raw, w.i+1)
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					w.i++
					return w.raw[start:w.i], nil
				}
			}
		}
		w.i = len(w.raw)
		return nil, errWalk
	}
	start := w.i
	for w.i < len(w.raw) && bytes.IndexByte([]byte(" \t\r\n,:{}[]\""), w.raw[w.i]) < 0 {
		w.i++
	}
	return w.raw[start:w.i], nil
}
