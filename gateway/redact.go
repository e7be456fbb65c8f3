package gateway

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"unicode/utf8"

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

// A mesh blanks secrets out of what comes back from a server: of every
// credential that is live here, not only of the call's own, because a server
// may have learnt another's. Looked for are literal occurrences and those in
// base64, hex, URL, HTML or JSON encoding, also one inside another. A server
// that transforms a secret otherwise is bounded by the secret's short life only.
//
// It costs the same however many secrets there are: a form is found by its first
// eight bytes. It is safe for concurrent use.
type mesh struct {
	mu     sync.RWMutex
	of     map[string][][]byte   // the forms of each lease, by its id
	starts map[uint64][]*spelled // by first eight bytes
	maybe  [1 << 16]uint32       // how many forms begin with these two bytes
}

// A spelled form is one way to write some secret.
type spelled struct {
	text []byte
	uses int // by how many leases
}

func newMesh() *mesh { return &mesh{of: map[string][][]byte{}, starts: map[uint64][]*spelled{}} }

// meshOf is a mesh for these secrets only.
func meshOf(secrets []Secret) *mesh {
	m := newMesh()
	m.add("", secrets)
	return m
}

// Holds reports whether text repeats one of the secrets.
func Holds(text []byte, secrets []Secret) bool {
	m := meshOf(secrets)
	_, n, err := m.json(text)
	_, plain := m.text(text)
	return n+plain > 0 || err != nil
}

// forms lists the ways to write a value that are looked for byte by byte.
func forms(secrets []Secret) [][]byte {
	var all [][]byte
	seen := map[string]bool{}
	add := func(form string) {
		if len(form) >= shortest && !seen[form] {
			seen[form] = true
			all = append(all, []byte(form))
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
	return all
}

// add looks for a lease's secrets from now on; those shorter than 8 bytes are
// too common to look for.
func (m *mesh) add(lease string, secrets []Secret) {
	all := forms(secrets)
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, known := m.of[lease]; known {
		return
	}
	m.of[lease] = all
	for _, form := range all {
		start := binary.LittleEndian.Uint64(form)
		m.maybe[uint16(start)]++
		m.starts[start] = used(m.starts[start], form)
	}
}

// used counts one more use of a form. Longer forms stand first, so that no
// shorter one leaves part of a longer one behind.
func used(same []*spelled, form []byte) []*spelled {
	at := 0
	for i, s := range same {
		if bytes.Equal(s.text, form) {
			s.uses++
			return same
		}
		if len(s.text) >= len(form) {
			at = i + 1
		}
	}
	return append(same[:at:at], append([]*spelled{{form, 1}}, same[at:]...)...)
}

// drop forgets a lease.
func (m *mesh) drop(lease string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, form := range m.of[lease] {
		start := binary.LittleEndian.Uint64(form)
		m.maybe[uint16(start)]--
		var left []*spelled
		for _, s := range m.starts[start] {
			if bytes.Equal(s.text, form) {
				s.uses--
			}
			if s.uses > 0 {
				left = append(left, s)
			}
		}
		if m.starts[start] = left; left == nil {
			delete(m.starts, start)
		}
	}
	delete(m.of, lease)
}

var errUnblankable = errors.New("a secret stands where blanking it would break the answer")

// result blanks a whole answer.
func (m *mesh) result(r Result) (Result, int, error) {
	var a, b int
	var err error
	if r.Raw, a, err = m.json(r.Raw); err != nil {
		return Result{}, 0, err
	}
	r.Error, b, err = m.json(r.Error)
	return r, a + b, err
}

// json blanks one JSON value and leaves every other byte as it is.
func (m *mesh) json(raw json.RawMessage) (json.RawMessage, int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if len(m.starts) == 0 || len(raw) == 0 {
		return raw, 0, nil
	}
	out, count := m.text(raw)
	if bytes.ContainsAny(out, `\%&`) {
		var more int
		out, more = m.encoded(out)
		count += more
	}
	if count > 0 && !jsontext.Value(out).IsValid() {
		return nil, count, errUnblankable
	}
	return out, count, nil
}

// text blanks every form where it stands; m.mu is held.
func (m *mesh) text(raw []byte) ([]byte, int) {
	var out []byte
	done, count := 0, 0
	for i := 0; i+shortest <= len(raw); i++ {
		if m.maybe[uint16(raw[i])|uint16(raw[i+1])<<8] == 0 {
			continue
		}
		for _, s := range m.starts[binary.LittleEndian.Uint64(raw[i:])] {
			if bytes.HasPrefix(raw[i:], s.text) {
				out = append(append(out, raw[done:i]...), Blank...)
				done, count = i+len(s.text), count+1
				i = done - 1
				break
			}
		}
	}
	if count == 0 {
		return raw, 0
	}
	return append(out, raw[done:]...), count
}

// encoded looks into the strings that JSON or something in them escapes. Of a
// string that JSON alone escapes the secret is blanked; of one that hides it
// deeper, everything.
func (m *mesh) encoded(raw []byte) ([]byte, int) {
	dec := jsontext.NewDecoder(bytes.NewReader(raw), jsontext.AllowDuplicateNames(true))
	var out []byte
	done, count := 0, 0
	for {
		tok, err := dec.ReadToken()
		if err != nil {
			return append(out, raw[done:]...), count // not JSON further on: the caller's check decides
		}
		if tok.Kind() != '"' {
			continue
		}
		end := int(dec.InputOffset())
		text, c := m.text([]byte(tok.String()))
		if m.hidden(string(text)) {
			text, c = []byte(Blank), c+1
		}
		if c == 0 {
			continue
		}
		quoted, err := jsontext.AppendQuote(nil, text)
		if err != nil {
			quoted = []byte(`"` + Blank + `"`)
		}
		out = append(append(out, raw[done:stringStart(raw, done, end)]...), quoted...)
		done, count = end, count+c
	}
}

// hidden reports whether unescaping s, in the ways that are common, one after
// another and in any order, brings out a secret.
func (m *mesh) hidden(s string) bool {
	const most = 1 + 3 + 9 + 27 // three deep
	seen := map[string]bool{s: true}
	for from := []string{s}; len(from) > 0 && len(seen) < most; {
		var next []string
		for _, s := range from {
			for _, unescape := range []func(string) string{unescapeJSON, unescapePercent, html.UnescapeString} {
				u := unescape(s)
				if seen[u] {
					continue
				}
				seen[u] = true
				if _, n := m.text([]byte(u)); n > 0 {
					return true
				}
				next = append(next, u)
			}
		}
		from = next
	}
	return false
}

// unescapePercent takes %XX for the byte it means, and leaves what means none.
func unescapePercent(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if b, err := hex.DecodeString(s[i+1 : i+3]); err == nil {
				out = append(out, b[0])
				i += 2
				continue
			}
		}
		out = append(out, s[i])
	}
	return string(out)
}

// unescapeJSON takes a backslash and what follows for what they mean in a JSON
// string, wherever they stand, and leaves what means nothing.
func unescapeJSON(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			out = append(out, s[i])
			continue
		}
		i++
		switch s[i] {
		case 'n':
			out = append(out, '\n')
		case 't':
			out = append(out, '\t')
		case 'r':
			out = append(out, '\r')
		case 'u':
			if i+4 < len(s) {
				if b, err := hex.DecodeString(s[i+1 : i+5]); err == nil {
					out = utf8.AppendRune(out, rune(b[0])<<8|rune(b[1]))
					i += 4
					continue
				}
			}
			out = append(out, 'u')
		default:
			out = append(out, s[i])
		}
	}
	return string(out)
}

// stringStart finds where the string literal that ends at end begins: at the
// last quote before it that nothing escapes.
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

// guard keeps a credential's secrets out of whatever comes back here, until it
// has ended.
func (g *Gateway) guard(l Lease, t Task) {
	if l.ID == "" {
		return
	}
	g.mesh.add(meshKey(l), l.Secrets())
	if !l.PerCall {
		key := t.Tenant + "/" + t.ID
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.guarded[key] == nil {
			g.guarded[key] = map[string]bool{}
		}
		g.guarded[key][meshKey(l)] = true
	}
}

// unguard forgets a credential that has ended. A static one has not: it is good
// for as long as nobody rotates it.
func (g *Gateway) unguard(l Lease) {
	if l.Class != "static" {
		g.mesh.drop(meshKey(l))
	}
}

// unguardTask forgets the credentials of a task that is over.
func (g *Gateway) unguardTask(t Task) {
	key := t.Tenant + "/" + t.ID
	g.mu.Lock()
	defer g.mu.Unlock()
	for l := range g.guarded[key] {
		if !strings.HasPrefix(l, staticKey) {
			g.mesh.drop(l)
		}
	}
	delete(g.guarded, key)
}

const staticKey = "static:"

// meshKey names what a lease hands out: a static secret is the same in all its
// leases.
func meshKey(l Lease) string {
	if l.Class == "static" {
		return staticKey + l.Binding + ":" + l.Version
	}
	return l.ID
}
