package audit

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"unicode/utf8"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

const (
	maxLine = 32 << 10 // bytes of a line, with its newline
	maxText = 2 << 10  // bytes of one string

	// Where a line is too long all the same, it is tried once more with these.
	tightText = 256
	tightList = 32
)

// timeFormat has one width, so that times compare as text.
const timeFormat = "2006-01-02T15:04:05.000000Z"

// An encoder turns events into lines, one at a time.
type encoder struct{ buf line }

func newEncoder() *encoder { return new(encoder) }

// line returns e as a canonical line with its newline. It is valid until the
// next call. Strings that are too long are cut short; a line that stays too
// long is an error.
func (c *encoder) line(e *Event) ([]byte, error) {
	if err := exact(e); err != nil {
		return nil, err
	}
	line := c.encode(e)
	if c.buf.longest > maxText || len(line) > maxLine {
		cut := *e
		if shorten(reflect.ValueOf(&cut).Elem(), maxText, 0) {
			line = c.encode(&cut)
		}
		if len(line) > maxLine {
			shorten(reflect.ValueOf(&cut).Elem(), tightText, tightList)
			line = c.encode(&cut)
		}
	}
	if len(line) > maxLine {
		return nil, fmt.Errorf("audit: a %s event of %d bytes is over the limit of %d", e.Type, len(line), maxLine)
	}
	return line, nil
}

func (c *encoder) encode(e *Event) []byte {
	c.buf.b, c.buf.longest = c.buf.b[:0], 0
	e.json(&c.buf)
	c.buf.b[len(c.buf.b)-1] = '\n'
	return c.buf.b
}

// exact refuses numbers that a JSON reader would round (RFC 8785 counts in
// doubles).
func exact(e *Event) error {
	bad, ok := int64(0), true
	check := func(n int64) {
		if n > 1<<53 || n < -1<<53 {
			bad, ok = n, false
		}
	}
	check(e.Count)
	check(e.Integrity.Index)
	if e.Approval != nil {
		check(e.Approval.Seq)
	}
	if e.Outcome != nil {
		check(e.Outcome.LatencyUS)
		check(int64(e.Outcome.ResultBytes))
		check(int64(e.Outcome.Redacted))
	}
	if e.Secret != nil {
		check(e.Secret.TTLS)
	}
	if e.Args != nil {
		check(int64(e.Args.Bytes))
	}
	if !ok {
		return fmt.Errorf("audit: %d in a %s event is beyond what JSON keeps exactly", bad, e.Type)
	}
	return nil
}

// shorten cuts the strings under v to text bytes and, where list is not zero,
// lists of strings to list elements, and reports whether it did. The events'
// parts are shared with their makers, so whatever changes is copied first.
func shorten(v reflect.Value, text, list int) (changed bool) {
	switch v.Kind() {
	case reflect.String:
		if s := v.String(); len(s) > text {
			v.SetString(cutText(s, text))
			return true
		}
	case reflect.Pointer:
		if !v.IsNil() {
			p := reflect.New(v.Type().Elem())
			p.Elem().Set(v.Elem())
			if shorten(p.Elem(), text, list) {
				v.Set(p)
				return true
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			changed = shorten(v.Field(i), text, list) || changed
		}
	case reflect.Slice:
		n := v.Len()
		if n == 0 {
			return false
		}
		if v.Type().Elem().Kind() == reflect.String && list > 0 && n > list {
			short := reflect.MakeSlice(v.Type(), list, list)
			reflect.Copy(short, v)
			short.Index(list - 1).SetString(fmt.Sprintf("… and %d more", n-list+1))
			shorten(short, text, 0)
			v.Set(short)
			return true
		}
		s := reflect.MakeSlice(v.Type(), n, n)
		reflect.Copy(s, v)
		for i := range n {
			changed = shorten(s.Index(i), text, list) || changed
		}
		if changed {
			v.Set(s)
		}
	}
	return changed
}

// cutText cuts s to n bytes or a little less, between characters, and says so.
func cutText(s string, n int) string {
	const mark = "…"
	n -= len(mark)
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + mark
}

// A head is what checking and finding need of a line. It points into the line.
type head struct {
	index, version                        int64
	log, prev, id, time, key, typ, tenant []byte
	task, call, approval                  []byte // their ids
}

var errNotCanonical = errors.New("not in canonical form (RFC 8785)")

// parse reads a line, without its newline, strictly: valid JSON in canonical
// form with the members that every event has.
func (h *head) parse(line []byte) error {
	*h = head{}
	if s := (scanner{in: line, h: h}); !s.value(secTop, nil) || s.at != len(line) {
		// Not plain enough for the scanner: the library decides.
		if err := h.parseSlow(line); err != nil {
			return err
		}
	}
	switch {
	case h.prev == nil || h.log == nil:
		return errors.New("no integrity member")
	case !validTime(h.time):
		return errors.New("no time of the form " + timeFormat)
	case h.typ == nil:
		return errors.New("no type")
	case h.version != 1:
		return fmt.Errorf("version %d, not 1", h.version)
	}
	return nil
}

// validTime checks the form only.
func validTime(t []byte) bool {
	if len(t) != len(timeFormat) {
		return false
	}
	for i := range t {
		digit, want := t[i] >= '0' && t[i] <= '9', timeFormat[i] >= '0' && timeFormat[i] <= '9'
		if digit != want || !want && t[i] != timeFormat[i] {
			return false
		}
	}
	return true
}

func (h *head) parseSlow(line []byte) error {
	v := jsontext.Value(bytes.Clone(line))
	if err := v.Canonicalize(); err != nil {
		return fmt.Errorf("not JSON: %w", err)
	}
	if !bytes.Equal(v, line) {
		return errNotCanonical
	}
	type withID struct {
		ID string `json:"id"`
	}
	var e struct {
		Approval  withID     `json:"approval"`
		Call      withID     `json:"call"`
		ID        string     `json:"id"`
		Integrity *Integrity `json:"integrity"`
		Key       string     `json:"key"`
		Task      withID     `json:"task"`
		Tenant    string     `json:"tenant"`
		Time      string     `json:"time"`
		Type      string     `json:"type"`
		V         int64      `json:"v"`
	}
	// Not encoding/json: that would take "TIME" for "time".
	if err := jsonv2.Unmarshal(line, &e); err != nil {
		return fmt.Errorf("not an event: %w", err)
	}
	*h = head{
		version: e.V,
		id:      []byte(e.ID), time: []byte(e.Time), key: []byte(e.Key), typ: []byte(e.Type), tenant: []byte(e.Tenant),
		task: []byte(e.Task.ID), call: []byte(e.Call.ID), approval: []byte(e.Approval.ID),
	}
	if e.Integrity != nil {
		h.index, h.log, h.prev = e.Integrity.Index, []byte(e.Integrity.Log), []byte(e.Integrity.Prev)
	}
	return nil
}
