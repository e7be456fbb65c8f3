package servers

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"

	"toolbroker/gateway"
)

//go:embed fit.json
var fitSchemas []byte

// A typed client loses a whole list over one thing in it, and with it every other
// server's. So what a server lists fits MCP's own schema, or nobody reads it.
var fitting = sync.OnceValue(func() map[gateway.Sort]*jsonschema.Schema {
	all := map[gateway.Sort]*jsonschema.Schema{}
	c, err := fitCompiler()
	for of, def := range map[gateway.Sort]string{gateway.SortTool: "Tool", gateway.SortResource: "Resource", gateway.SortTemplate: "ResourceTemplate", gateway.SortPrompt: "Prompt", sortOutput: "Output"} {
		if err == nil {
			all[of], err = c.Compile(fitPlace + "#/$defs/" + def)
		}
	}
	if err != nil {
		panic("servers: fit.json: " + err.Error()) // it is built in, and a test reads it
	}
	return all
})

const fitPlace = "toolbroker:///fit"

// sortOutput stands for an outputSchema that every client of before 2026-07-28
// takes. Some compile it as they read the list, and lose that over one that they
// cannot; so it is what 2025-11-25 says, and of common keywords only.
const sortOutput gateway.Sort = "outputSchema"

// fitCompiler reads the schemas, and has each object that they describe hold no
// member that only differs in its letters' case from one of theirs: some clients
// would take it for that one.
func fitCompiler() (*jsonschema.Compiler, error) {
	doc, err := decode(fitSchemas)
	if err != nil {
		return nil, err
	}
	var variants func(v any)
	variants = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, e := range v {
				variants(e)
			}
		case map[string]any:
			for _, e := range v {
				variants(e)
			}
			known, ok := v["properties"].(map[string]any)
			if _, closed := v["additionalProperties"].(bool); !ok || closed || v["type"] != "object" {
				return
			}
			var names []any
			var words []string
			for name := range known {
				names, words = append(names, name), append(words, regexp.QuoteMeta(name))
			}
			v["propertyNames"] = map[string]any{"anyOf": []any{map[string]any{"enum": names},
				map[string]any{"not": map[string]any{"pattern": "^(?i:" + strings.Join(words, "|") + ")$"}}}}
		}
	}
	variants(doc)
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.UseLoader(nowhere{})
	return c, c.AddResource(fitPlace, doc)
}

// fits reports what MCP says of such a definition and it does not keep to.
func fits(of gateway.Sort, raw json.RawMessage) error {
	if err := bounded(raw); err != nil {
		return err
	}
	v, err := decode(raw)
	if err != nil {
		return fmt.Errorf("its definition is no good: %w", err)
	}
	if err := fitting()[of].Validate(v); err != nil {
		if name := variant(err); name != "" {
			return fmt.Errorf("it has a member %s, which some clients take for another", strconv.QuoteToASCII(clip(name)))
		}
		return fmt.Errorf("it is not what MCP says that a %s is: %s", of, strings.ReplaceAll(explain(err).Error(), "that the tool lists", "that MCP lists"))
	}
	return nil
}

// variant is the name of a member that is one of MCP's but for its letters' case, if
// that is what is wrong.
func variant(err error) string {
	e, ok := errors.AsType[*jsonschema.ValidationError](err)
	if !ok {
		return ""
	}
	if k, ok := e.ErrorKind.(*kind.PropertyNames); ok {
		return k.Property
	}
	for _, cause := range e.Causes {
		if name := variant(cause); name != "" {
			return name
		}
	}
	return ""
}

// bounded refuses a value that is nested too deep, or holds a number that is too
// big for a double: a client that reads one fails.
func bounded(raw []byte) error {
	d := jsontext.NewDecoder(bytes.NewBuffer(raw))
	for {
		t, err := d.ReadToken()
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return errors.New("its definition is not JSON")
		case d.StackDepth() > maxResultDepth:
			return errors.New("its definition is nested too deep")
		case t.Kind() == '0':
			if _, err := strconv.ParseFloat(t.String(), 64); err != nil {
				return errors.New("its definition holds a number that is too big")
			}
		}
	}
}

// show works out what agents read of a definition that fits, where that is not all
// of it: without members that are legal, and break a client or mean nothing to one
// of an earlier revision. Checks go on using what is left out.
func show(t *gateway.Tool) {
	agents := t.Definition
	elder := agents
	switch t.Sort {
	case gateway.SortResource, gateway.SortTemplate:
		if size, ok := lookup(agents, "size"); ok && !wholeNumber(size) {
			agents = setMember(agents, "size", nil)
		}
		if notes, ok := lookup(agents, "annotations"); ok {
			if date, ok := lookup(notes, "lastModified"); ok && !dated(date) {
				agents = setMember(agents, "annotations", setMember(notes, "lastModified", nil))
			}
		}
		elder = agents
	case "", gateway.SortTool:
		out, ok := lookup(agents, "outputSchema")
		if is, typed := lookup(out, "type"); ok && (!compiles(out) || typed && is.Kind() != '"') {
			agents, ok = setMember(agents, "outputSchema", nil), false
		}
		elder = agents
		if in, ok := lookup(elder, "inputSchema"); ok {
			elder = setMember(elder, "inputSchema", spelled(in))
		}
		if ok {
			if out = spelled(out); !fitsOutput(out) {
				out = nil
			}
			elder = setMember(elder, "outputSchema", out)
		}
	}
	if !bytes.Equal(agents, t.Definition) {
		t.Shown = agents
	}
	if !bytes.Equal(elder, agents) {
		t.ShownBefore = elder
	}
}

// compiles reports whether an outputSchema is one at all.
func compiles(schema jsontext.Value) bool {
	_, err := compiled(json.RawMessage(schema), "outputSchema", "result", newRoom())
	return err == nil
}

func fitsOutput(schema jsontext.Value) bool {
	v, err := decode(json.RawMessage(schema))
	return err == nil && fitting()[sortOutput].Validate(v) == nil
}

// wholeNumber reports whether a number is written as one that every client holds
// exactly.
func wholeNumber(v jsontext.Value) bool {
	n, err := strconv.ParseInt(string(v), 10, 64)
	return err == nil && -1<<53 < n && n < 1<<53
}

// dated reports whether a text is a date and a time, as RFC 3339 writes them; MCP
// asks for any of ISO 8601, and clients for this.
func dated(v jsontext.Value) bool {
	s, ok := word(json.RawMessage(v))
	_, err := time.Parse(time.RFC3339, s)
	return ok && err == nil && !strings.Contains(s, ",") && len(s) <= 64
}

// spelled is a schema whose properties are objects, as MCP had it before 2026-07-28:
// true says the same as {}, and false as {"not":{}}.
func spelled(schema jsontext.Value) jsontext.Value {
	properties, ok := lookup(schema, "properties")
	if !ok {
		return schema
	}
	all, err := members(properties)
	if err != nil {
		return schema
	}
	var b []byte
	done := 0
	for _, m := range all {
		is := jsontext.Value(m.value).Kind()
		if is != 't' && is != 'f' {
			continue
		}
		b = append(append(b, properties[done:m.at]...), map[jsontext.Kind]string{'t': `{}`, 'f': `{"not":{}}`}[is]...)
		done = m.end
	}
	if done == 0 {
		return schema
	}
	return setMember(schema, "properties", append(b, properties[done:]...))
}

// lookup returns the value of a member of an object, if it has one.
func lookup(object []byte, name string) (jsontext.Value, bool) {
	m, ok := memberOf(object, name)
	return jsontext.Value(m.value), ok
}

// setMember is an object with another value of a member that it has, or with nil without
// it. Every other byte stays.
func setMember(object []byte, name string, value jsontext.Value) []byte {
	all, err := members(object)
	if err != nil {
		return object
	}
	for i, m := range all {
		if m.name != name {
			continue
		}
		if value != nil {
			return bytes.Join([][]byte{object[:m.at], value, object[m.end:]}, nil)
		}
		from, to := m.start, m.end
		if i > 0 {
			from = all[i-1].end // with the comma before it
		} else if len(all) > 1 {
			to = all[1].start // or after it
		}
		return bytes.Join([][]byte{object[:from], object[to:]}, nil)
	}
	return object
}
