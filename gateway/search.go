package gateway

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"

	strict "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"toolbroker/authz"
)

// Where a catalogue is too long to show (Config.Search), agents see two tools: one
// finds others, one calls what was found. The latter is no tool at all: a call of
// it is the call that it holds, before anything else is done.
const (
	searchAlias = ourServer + "__search_tools"
	callAlias   = ourServer + "__call_tool"
)

// unwrap puts the call that a call holds in its place. One that holds another such
// call, or what cannot be read, is refused once the caller is known.
func (g *Gateway) unwrap(c *life) error {
	if !g.Search || c.Method != MethodCall || c.Name != callAlias {
		return nil
	}
	var in struct {
		Name      string          `json:"name"`
		Arguments json.RawMessage `json:"arguments"`
	}
	if err := strict.Unmarshal(c.Call.Args, &in, strict.RejectUnknownMembers(true)); err != nil || in.Name == "" {
		return badArguments("name must be the name of a tool, and arguments an object")
	}
	if in.Name == callAlias || in.Name == searchAlias {
		return refuse(UnknownTool, errors.New("a wrapped call of what wraps calls"))
	}
	if len(in.Arguments) == 0 {
		in.Arguments = json.RawMessage("{}")
	}
	c.Name, c.Call.Args, c.Agrees = in.Name, in.Arguments, nil // no client mirrors into headers what it cannot see
	return nil
}

// search is toolbroker__search_tools. It shows what a list would, and needs no
// right that a list does not.
type search struct{}

type searchArgs struct {
	Query string `json:"query"`
	Limit int    `json:"limit"`
}

const mostFound = 20

func searchTool() Tool {
	return ourTool("search_tools", searchAlias, search{}, map[string]any{
		"type": "object", "required": []string{"query"}, "additionalProperties": false,
		"properties": map[string]any{
			"query": map[string]any{"type": "string", "minLength": 1, "maxLength": 500, "description": "what the tool should do, in a few words"},
			"limit": map[string]any{"type": "integer", "minimum": 1, "maximum": mostFound, "description": "how many at most; 5 if left out"},
		},
	}, "Find tools by what they do. Returns their definitions; call one with "+callAlias+".")
}

func callTool() Tool {
	return ourTool("call_tool", callAlias, search{}, map[string]any{
		"type": "object", "required": []string{"name", "arguments"}, "additionalProperties": false,
		"properties": map[string]any{
			"name":      map[string]any{"type": "string", "description": "a tool that " + searchAlias + " found"},
			"arguments": map[string]any{"type": "object", "description": "its arguments, as its inputSchema says"},
		},
	}, "Call a tool that "+searchAlias+" found.")
}

func (search) decide(g *Gateway, c *life) (authz.Decision, error) {
	return authz.Decision{Verdict: authz.Allow, Reason: "finds what a list would show", Revision: g.Policy.Revision()}, nil
}

func (search) asks(c *life) (RequestKind, []string) { return RequestCall, []string{c.Args.canonDigest} }

func (search) serve(_ context.Context, g *Gateway, c *life) (string, error) {
	var in searchArgs
	if err := readOurs(c, &in); err != nil {
		return "", err
	}
	words := strings.FieldsFunc(strings.ToLower(in.Query), func(r rune) bool { return r < '0' || r > '9' && r < 'a' || r > 'z' && r < 0x80 })
	if len(words) == 0 || in.Limit < 0 || in.Limit > mostFound {
		return "", badArguments("say in query what the tool should do; limit is from 1 to %d", mostFound)
	}
	type hit struct {
		tool  Tool
		score int
	}
	var hits []hit
	seen, _ := g.seen(c.Principal, c.Task, SortTool)
	for _, t := range seen {
		if score := match(words, t); score > 0 && g.hasFor(c, t) {
			hits = append(hits, hit{t, score})
		}
	}
	slices.SortStableFunc(hits, func(a, b hit) int { return cmp.Compare(b.score, a.score) })
	found := []json.RawMessage{}
	for _, h := range hits[:min(len(hits), cmp.Or(in.Limit, 5))] {
		def, err := withoutOurs(jsontext.NewDecoder(bytes.NewReader(h.tool.Definition)))
		if err == nil { // servers are held to it where they list
			found = append(found, def)
		}
	}
	out, err := json.Marshal(map[string]any{"tools": found, "more": max(0, len(hits)-len(found))})
	return string(out), err
}

// ourKeys begins the names that only we may say, in whatever case.
const ourKeys = "io.toolbroker/"

func isOurs(name string) bool {
	return len(name) >= len(ourKeys) && strings.EqualFold(name[:len(ourKeys)], ourKeys)
}

// withoutOurs is the next value without members by our names, at every depth: it
// goes to an agent inside a text, into which nothing looks any more.
func withoutOurs(d *jsontext.Decoder) (json.RawMessage, error) {
	kind := d.PeekKind()
	if kind != '{' && kind != '[' {
		v, err := d.ReadValue()
		return json.RawMessage(v.Clone()), err
	}
	if _, err := d.ReadToken(); err != nil {
		return nil, err
	}
	end := jsontext.Kind(']')
	if kind == '{' {
		end = '}'
	}
	out := []byte{byte(kind)}
	for d.PeekKind() != end {
		member, name := []byte(nil), ""
		if kind == '{' {
			tok, err := d.ReadToken()
			if err != nil {
				return nil, err
			}
			name = tok.String()
			if member, err = jsontext.AppendQuote(nil, name); err != nil {
				return nil, err
			}
			member = append(member, ':')
		}
		v, err := withoutOurs(d)
		if err != nil {
			return nil, err
		}
		if isOurs(name) {
			continue
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(append(out, member...), v...)
	}
	_, err := d.ReadToken()
	return append(out, byte(end)), err
}

// match counts the words that a tool's name or definition holds; those of the name
// count more.
func match(words []string, t Tool) int {
	name, text := strings.ToLower(t.Alias), strings.ToLower(string(t.Definition))
	score := 0
	for _, w := range words {
		switch {
		case strings.Contains(name, w):
			score += 4
		case strings.Contains(text, w):
			score++
		}
	}
	return score
}
