package servers

import (
	"bytes"
	"encoding/json"
	"errors"
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
func goodTemplate(template string) (covers *regexp.Regexp, err error) {
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

// rename puts a server's URIs into its name space wherever a result names one:
// contents, blocks that embed or link a resource, and the same in a task's result.
// Every other byte stays. What is no URI of ours to rename is its own affair.
func (s *server) rename(result json.RawMessage) json.RawMessage {
	if s.space == "" || !bytes.Contains(result, []byte("uri")) && !bytes.Contains(result, []byte(`\u`)) {
		return result
	}
	r := renamer{space: s.space}
	r.result(result, 0)
	return r.apply(result)
}

func (r *renamer) apply(raw json.RawMessage) json.RawMessage {
	if len(r.edits) == 0 {
		return raw
	}
	slices.SortFunc(r.edits, func(a, b edit) int { return a.at - b.at })
	out := make([]byte, 0, len(raw)+len(r.edits)*len(r.space))
	last := 0
	for _, e := range r.edits {
		out = append(append(out, raw[last:e.at]...), e.with...)
		last = e.end
	}
	return append(out, raw[last:]...)
}

// renameFault does the same to the URI that an error's data names.
func (s *server) renameFault(fault json.RawMessage) json.RawMessage {
	if s.space == "" {
		return fault
	}
	r := renamer{space: s.space}
	inside(fault, 0, "data", r.uri)
	return r.apply(fault)
}

// renameUI does the same to what a tool's definition says of its user interface (MCP
// Apps), in the place where it stands and in the one where it stood before.
func (s *server) renameUI(definition json.RawMessage) json.RawMessage {
	if s.space == "" || !bytes.Contains(definition, []byte("resourceUri")) && !bytes.Contains(definition, []byte(`\u`)) {
		return definition
	}
	r := renamer{space: s.space}
	inside(definition, 0, "_meta", func(meta []byte, at int) {
		r.member(meta, at, "ui/resourceUri")
		inside(meta, at, "ui", func(ui []byte, at int) { r.member(ui, at, "resourceUri") })
	})
	return r.apply(definition)
}

// inside hands on an object's member of that name, and where it stands.
func inside(object []byte, base int, name string, f func([]byte, int)) {
	all, _ := members(object)
	for _, m := range all {
		if m.name == name {
			f(m.value, base+m.at)
		}
	}
}

// A renamer collects edits; base is where what it is given stands in the whole.
type renamer struct {
	space string
	edits []edit
}

func (r *renamer) result(object []byte, base int) {
	all, _ := members(object)
	for _, m := range all {
		switch at := base + m.at; m.name {
		case "contents":
			each(m.value, at, r.uri)
		case "content":
			r.blocks(m.value, at)
		case "messages":
			each(m.value, at, func(message []byte, at int) { inside(message, at, "content", r.blocks) })
		case "result":
			if jsontext.Value(m.value).Kind() == '{' {
				r.result(m.value, at)
			}
		}
	}
}

// blocks are one or many.
func (r *renamer) blocks(value []byte, base int) {
	if jsontext.Value(value).Kind() == '[' {
		each(value, base, r.block)
	} else {
		r.block(value, base)
	}
}

func (r *renamer) block(block []byte, base int) {
	all, _ := members(block)
	for _, m := range all {
		if m.name != "type" {
			continue
		}
		switch kind, _ := word(m.value); kind {
		case "resource_link":
			r.uri(block, base)
		case "resource":
			inside(block, base, "resource", r.uri)
		}
	}
}

// uri renames an object's uri.
func (r *renamer) uri(object []byte, base int) { r.member(object, base, "uri") }

func (r *renamer) member(object []byte, base int, name string) {
	all, _ := members(object)
	for _, m := range all {
		if uri, ok := word(m.value); ok && m.name == name {
			if quoted, err := jsontext.AppendQuote(nil, r.space+uri); err == nil {
				r.edits = append(r.edits, edit{base + m.at, base + m.end, quoted})
			}
		}
	}
}

// each hands on the elements of an array and where they stand.
func each(array []byte, base int, f func([]byte, int)) {
	all, _ := elements(array)
	for _, m := range all {
		f(m.value, base+m.at)
	}
}
