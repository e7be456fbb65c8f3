package servers

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
)

const (
	maxPages = 100
	maxTools = 5000
)

var toolName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,128}$`)

// A catalogue is what one tenant sees of all its servers. It never changes; a
// new listing makes a new one.
type catalogue struct {
	tools  []gateway.Tool // sorted by alias
	byName map[string]int
}

// A listing is what one server offers, as last seen. Its tools are good; what
// was wrong with the others stands in dropped.
type listing struct {
	tools   []gateway.Tool
	raw     []json.RawMessage // of each tool, as the server wrote it
	dropped []string          // why each withheld tool is, in words
}

// hash names the whole of a listing.
func (l *listing) hash() string {
	h := sha256.New()
	for _, t := range l.tools {
		fmt.Fprintf(h, "%s %s\n", t.Name, t.Hash)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// list asks a server for its tools, all pages. What is in prev with the same
// bytes is taken from there.
func (s *server) list(ctx context.Context, l link, e era, prev *listing) (*listing, error) {
	found := &listing{}
	cursors := map[string]bool{}
	for cursor := ""; ; {
		var parts [][]byte
		if cursor != "" {
			quoted, err := jsontext.AppendQuote([]byte(`"cursor":`), cursor)
			if err != nil {
				return nil, errRubbish
			}
			parts = append(parts, quoted)
		}
		if e == modernEra {
			parts = append(parts, slices.Concat([]byte(`"_meta":{`), s.meta, []byte("}")))
		}
		m, err := l.do(ctx, call{method: "tools/list", params: slices.Concat([]byte("{"), bytes.Join(parts, []byte(",")), []byte("}"))})
		if err != nil {
			return nil, err
		}
		if m.fault != nil {
			return nil, fmt.Errorf("the server refused to list its tools, with error %d", faultCode(m.fault))
		}
		var page struct {
			Tools []jsontext.Value `json:"tools"`
			Next  string           `json:"nextCursor"`
		}
		if err := jsonv2.Unmarshal(m.result, &page); err != nil || page.Tools == nil {
			return nil, errors.New("the server's list of tools is not one")
		}
		for _, raw := range page.Tools {
			if found.add(s, json.RawMessage(raw), prev); len(found.tools)+len(found.dropped) > maxTools {
				return nil, errors.New("the server lists too many tools")
			}
		}
		if page.Next == "" {
			return found, nil
		}
		if cursor = page.Next; cursors[cursor] || len(cursors) >= maxPages {
			return nil, errors.New("the server's list of tools does not end")
		}
		cursors[cursor] = true
	}
}

// withhold takes out what repeats the credential that it was listed with: a
// definition is read by every agent that may list it.
func (l *listing) withhold(secrets []gateway.Secret) {
	const why = "a definition holds the server's credential"
	var clean listing
	for i, raw := range l.raw {
		if gateway.Holds(raw, secrets) {
			clean.dropped = append(clean.dropped, why)
			continue
		}
		clean.tools, clean.raw = append(clean.tools, l.tools[i]), append(clean.raw, raw)
	}
	for _, other := range l.dropped {
		if gateway.Holds([]byte(other), secrets) {
			other = why
		}
		clean.dropped = append(clean.dropped, other)
	}
	l.tools, l.raw, l.dropped = clean.tools, clean.raw, clean.dropped
}

// add takes one definition, or the reason why it is withheld.
func (l *listing) add(s *server, raw json.RawMessage, prev *listing) {
	if prev != nil {
		if i := slices.IndexFunc(prev.raw, func(r json.RawMessage) bool { return bytes.Equal(r, raw) }); i >= 0 {
			l.tools, l.raw = append(l.tools, prev.tools[i]), append(l.raw, prev.raw[i])
			return
		}
	}
	t, err := s.define(raw)
	if err != nil {
		l.dropped = append(l.dropped, fmt.Sprintf("%s: %v", strconv.QuoteToASCII(clip(t.Name)), err))
		return
	}
	l.tools, l.raw = append(l.tools, t), append(l.raw, raw)
}

// define makes a tool out of a definition. When it cannot, the tool holds the
// name alone, if there is one.
func (s *server) define(raw json.RawMessage) (gateway.Tool, error) {
	raw = scrub(bytes.Clone(raw), "_meta")
	all, err := members(raw)
	if err != nil {
		return gateway.Tool{}, errors.New("its definition is not an object")
	}
	var name, schema *member
	for i := range all {
		switch all[i].name {
		case "name":
			name = &all[i]
		case "inputSchema":
			schema = &all[i]
		}
	}
	if name == nil || jsontext.Value(name.value).Kind() != '"' {
		return gateway.Tool{}, errors.New("it has no name")
	}
	unquoted, err := jsontext.AppendUnquote(nil, name.value)
	if err != nil {
		return gateway.Tool{}, errors.New("it has no name")
	}
	t := gateway.Tool{Name: string(unquoted)}
	none := gateway.Tool{Name: t.Name}
	if !toolName.MatchString(t.Name) {
		return none, errors.New("its name is not made of 1 to 128 of A-Z a-z 0-9 _ . -")
	}
	if t.Alias = s.prefix + t.Name; len(t.Alias) > 128 {
		return none, errors.New("its name is too long with the server's prefix")
	}
	if schema == nil {
		return none, errors.New("it has no inputSchema")
	}
	if t.Check, err = compile(schema.value); err != nil {
		return none, err
	}
	if err := mcp.ValidateParamHeaderAnnotations(&mcp.Tool{Name: t.Name, RawInputSchema: schema.value}); err != nil {
		return none, errors.New("its x-mcp-header is not valid")
	}
	canonical := jsontext.Value(bytes.Clone(raw))
	if err := canonical.Canonicalize(); err != nil {
		return none, errors.New("its definition has no canonical form")
	}
	sum := sha256.Sum256(canonical)
	t.Hash = "sha256:" + hex.EncodeToString(sum[:])
	t.Schema = schema.value
	t.Definition = slices.Concat(raw[:name.at], []byte(`"`+t.Alias+`"`), raw[name.at+len(name.value):])
	t.Server, t.Kind, t.Addr = s.Name, s.kind, s.addr
	t.Meta, t.Class, t.Target = s.Meta, s.Class, s.TargetArg
	return t, nil
}

// merge makes a tenant's catalogue out of its servers' listings, and names the
// tools that are withheld because two claim one alias.
func merge(listings []*listing) (*catalogue, []gateway.Tool) {
	claims := map[string]int{}
	for _, l := range listings {
		for _, t := range l.tools {
			claims[t.Alias]++
		}
	}
	c := &catalogue{byName: make(map[string]int, len(claims))}
	var withheld []gateway.Tool
	for _, l := range listings {
		for _, t := range l.tools {
			if claims[t.Alias] > 1 {
				withheld = append(withheld, t)
			} else {
				c.tools = append(c.tools, t)
			}
		}
	}
	slices.SortFunc(c.tools, func(a, b gateway.Tool) int { return strings.Compare(a.Alias, b.Alias) })
	for i, t := range c.tools {
		c.byName[t.Alias] = i
	}
	return c, withheld
}
