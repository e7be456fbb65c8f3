package servers

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/yosida95/uritemplate/v3"
)

// A server with a prefix has a name space for its URIs too: agents see
// `files+file:///x` for its file:///x. It is a scheme, so it begins with a letter.
func spaceOf(server string) string {
	if c := server[0]; c < 'a' || c > 'z' {
		server = "x-" + server
	}
	return server + "+"
}

// uiScheme is that of MCP Apps' pages. A client takes no other for one, so their name
// space stands behind it: agents see `ui://board+view` for board's ui://view.
const uiScheme = "ui://"

// alias is a server's URI as agents see it.
func (s *server) alias(uri string) string {
	if page, ok := strings.CutPrefix(uri, uiScheme); ok && s.space != "" {
		return uiScheme + s.space + page
	}
	return s.space + uri
}

// bare is the URI whose alias this is, if it can be one of this server's.
func (s *server) bare(alias string) (uri string, ok bool) {
	if page, ok := strings.CutPrefix(alias, uiScheme+s.space); ok {
		return uiScheme + page, true
	}
	uri, ok = strings.CutPrefix(alias, s.space)
	return uri, ok && !strings.HasPrefix(uri, uiScheme)
}

const maxURI = 2048

var (
	scheme    = regexp.MustCompile(`^[a-z][a-z0-9+.-]*:.`)
	hosted    = []string{"http", "https", "ws", "wss", "ftp", "file"} // schemes whose authority is a host, which is the same in any case
	anyScheme = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*:.`)
)

// listable refuses a URI that a server lists and nobody could tell from another
// by reading it. What it means is the server's to say.
func listable(uri string) error {
	if err := goodText(uri); err != nil {
		return err
	}
	if !anyScheme.MatchString(uri) {
		return errors.New("its URI has no scheme")
	}
	return nil
}

// goodURI refuses a URI that no server lists and that could be spelt otherwise: a
// deny row is about a text, and must not be walked around by another spelling of
// it. So no dot segments, nothing escaped that need not be, no empty segment.
func goodURI(uri string) error {
	if err := goodText(uri); err != nil {
		return err
	}
	if !scheme.MatchString(uri) {
		return errors.New("its URI has no scheme in lower case")
	}
	name, rest, _ := strings.Cut(uri, ":")
	if strings.ContainsAny(rest, ` \`) {
		return errors.New("its URI holds a space or a backslash")
	}
	for i := 0; i < len(rest); i++ {
		if rest[i] != '%' {
			continue
		}
		if i+2 >= len(rest) {
			return errors.New("an escape in its URI is cut off")
		}
		b, err := url.PathUnescape(rest[i : i+3])
		if err != nil || rest[i:i+3] != strings.ToUpper(rest[i:i+3]) {
			return errors.New("an escape in its URI is not one of two capital hexadecimal digits")
		}
		if c := b[0]; c == '/' || c == '\\' || c == '%' || c == '.' || c < 0x20 || c == 0x7f || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '~' {
			return errors.New("its URI escapes what must not be, or need not be")
		}
		i += 2
	}
	path, _, _ := strings.Cut(rest, "?")
	path, _, _ = strings.Cut(path, "#")
	rest, authority := strings.CutPrefix(path, "//")
	segments := strings.Split(rest, "/") // a host counts: to some servers it is the first part of a path
	if authority && slices.Contains(hosted, name) && segments[0] != strings.ToLower(segments[0]) {
		return errors.New("the host of its URI is not in lower case")
	}
	for i, s := range segments {
		if s == "." || s == ".." {
			return errors.New("its URI has dot segments")
		}
		if s == "" && i > 0 && i < len(segments)-1 {
			return errors.New("its URI has empty segments")
		}
	}
	return nil
}

// goodText refuses what a human could not read on a page as what it is.
func goodText(s string) error {
	if s == "" || len(s) > maxURI || !utf8.ValidString(s) {
		return errors.New("its URI is empty, too long or not text")
	}
	for _, r := range s {
		if unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Co) {
			return errors.New("its URI holds characters that cannot be seen")
		}
	}
	return nil
}

// goodTemplate compiles a template (RFC 6570) into what its URIs look like.
func goodTemplate(template string, r *room) (covers *regexp.Regexp, err error) {
	defer func() {
		if recover() != nil {
			covers, err = nil, errors.New("its URI template does not compile")
		}
	}()
	if err := goodText(template); err != nil {
		return nil, err
	}
	if !anyScheme.MatchString(template) {
		return nil, errors.New("its URI template does not begin with a scheme") // which says whose name space it is in
	}
	size := 64 + 8*len(template) // about, of what it becomes
	if size > r.patterns {
		return nil, fmt.Errorf("its URI template %w", errTooMuch)
	}
	r.patterns -= size
	t, err := uritemplate.New(template)
	if err != nil {
		return nil, errors.New("its URI template is not one of RFC 6570")
	}
	return t.Regexp(), nil
}

// An edit puts other bytes into a place.
type edit struct {
	at, end int
	with    []byte
}

// own is a result as agents read it: a server's URIs are in its name space wherever
// the result names one, in contents, in blocks that embed or link a resource, and
// in the same of a task's result; keys in ours are gone from its _meta. Every other
// byte stays. What is no URI of ours to rename is its own affair.
func (s *server) own(m message) json.RawMessage {
	r := renamer{s: s}
	r.scrub(&m.tree, m.at)
	if s.space != "" {
		r.result(&m.tree, m.at)
	}
	if len(r.edits) == 0 {
		return m.result
	}
	n := &m.tree.nodes[m.at]
	return r.apply(m.tree.text, n.at, n.end)
}

// apply returns what stands between at and end in raw, edited.
func (r *renamer) apply(raw []byte, at, end int) json.RawMessage {
	if len(r.edits) == 0 {
		return raw[at:end:end]
	}
	slices.SortFunc(r.edits, func(a, b edit) int { return a.at - b.at })
	size := end - at
	for _, e := range r.edits {
		size += len(e.with) - (e.end - e.at)
	}
	out := make([]byte, 0, size)
	for _, e := range r.edits {
		out = append(append(out, raw[at:e.at]...), e.with...)
		at = e.end
	}
	return append(out, raw[at:end]...)
}

// renameFault does the same to the URI that an error's data names.
func (s *server) renameFault(fault json.RawMessage) json.RawMessage {
	if s.space == "" {
		return fault
	}
	r := renamer{s: s}
	inside(fault, 0, "data", func(data []byte, at int) { r.member(data, at, "uri") })
	return r.apply(fault, 0, len(fault))
}

// renameUI does the same to what a tool's definition says of its user interface (MCP
// Apps), in the place where it stands and in the one where it stood before.
func (s *server) renameUI(definition json.RawMessage) json.RawMessage {
	if s.space == "" || !bytes.Contains(definition, []byte("resourceUri")) && !bytes.Contains(definition, []byte(`\u`)) {
		return definition
	}
	r := renamer{s: s}
	inside(definition, 0, "_meta", func(meta []byte, at int) {
		r.member(meta, at, "ui/resourceUri")
		inside(meta, at, "ui", func(ui []byte, at int) { r.member(ui, at, "resourceUri") })
	})
	return r.apply(definition, 0, len(definition))
}

// inside hands on an object's member of that name, and where it stands.
func inside(object []byte, base int, name string, f func([]byte, int)) {
	if m, ok := memberOf(object, name); ok {
		f(m.value, base+m.at)
	}
}

// A renamer collects edits.
type renamer struct {
	s     *server // whose space holds nothing to escape
	edits []edit
}

// scrub deletes keys in our name space from a result's _meta, as [scrub] does.
func (r *renamer) scrub(t *tree, result int) {
	meta := t.find(result, "_meta")
	if meta == 0 {
		return
	}
	var kept [][]byte
	gone := false
	for m := range t.inside(meta, '{') {
		if bytes.HasPrefix(t.name(m), []byte(ours)) {
			gone = true
		} else {
			kept = append(kept, t.text[t.nodes[m].name:t.nodes[m].end])
		}
	}
	if gone {
		with := slices.Concat([]byte("{"), bytes.Join(kept, []byte(",")), []byte("}"))
		r.edits = append(r.edits, edit{t.nodes[meta].at, t.nodes[meta].end, with})
	}
}

func (r *renamer) result(t *tree, result int) {
	for m := range t.inside(result, '{') {
		switch string(t.name(m)) {
		case "contents":
			for part := range t.inside(m, '[') {
				r.uri(t, part)
			}
		case "content":
			r.blocks(t, m)
		case "messages":
			for part := range t.inside(m, '[') {
				if content := t.find(part, "content"); content != 0 {
					r.blocks(t, content)
				}
			}
		case "result":
			r.result(t, m)
		}
	}
}

// blocks are one or many.
func (r *renamer) blocks(t *tree, i int) {
	if t.kind(i) != '[' {
		r.block(t, i)
	}
	for part := range t.inside(i, '[') {
		r.block(t, part)
	}
}

func (r *renamer) block(t *tree, block int) {
	kind := t.find(block, "type")
	if kind == 0 {
		return
	}
	switch {
	case t.says(kind, "resource_link"):
		r.uri(t, block)
	case t.says(kind, "resource"):
		if i := t.find(block, "resource"); i != 0 {
			r.uri(t, i)
		}
	}
}

// uri renames an object's uri.
func (r *renamer) uri(t *tree, object int) {
	if i := t.find(object, "uri"); i != 0 {
		r.value(t.value(i), t.nodes[i].at)
	}
}

// value renames a URI that stands at a place.
func (r *renamer) value(value json.RawMessage, at int) {
	if value[0] == '"' && bytes.IndexByte(value, '\\') < 0 {
		if at++; bytes.HasPrefix(value[1:], []byte(uiScheme)) {
			at += len(uiScheme)
		}
		r.edits = append(r.edits, edit{at, at, []byte(r.s.space)}) // the rest is written as it would be
	} else if uri, ok := word(value); ok {
		if quoted, err := jsontext.AppendQuote(nil, r.s.alias(uri)); err == nil {
			r.edits = append(r.edits, edit{at, at + len(value), quoted})
		}
	}
}

// member renames what an object's member of that name says.
func (r *renamer) member(object []byte, base int, name string) {
	inside(object, base, name, func(value []byte, at int) { r.value(value, at) })
}
