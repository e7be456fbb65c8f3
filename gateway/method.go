package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	strict "github.com/go-json-experiment/json"

	"toolbroker/authz"
	"toolbroker/gateway/audit"
)

// A way is what a method of MCP means here: the sort of thing it is about, and
// the action that policy is asked about.
type way struct {
	sort   Sort
	action authz.Action
}

var ways = map[string]way{
	MethodCall:      {SortTool, authz.Call},
	MethodRead:      {SortResource, authz.Read},
	MethodGet:       {SortPrompt, authz.Get},
	MethodComplete:  {"", authz.Complete}, // of what its ref names
	MethodSubscribe: {SortResource, authz.Subscribe},
}

// shows is the action by which each sort is listed: where it could be granted.
var shows = map[Sort]authz.Action{SortTool: authz.List, SortResource: authz.Read, SortTemplate: authz.Read, SortPrompt: authz.Get}

// way is what the call is about. One that is about nothing has no sort.
func (c *life) way() way {
	w := ways[c.Method]
	if w.action == authz.Complete && (c.Ref == SortPrompt || c.Ref == SortTemplate) {
		w.sort = c.Ref
	}
	return w
}

// resolve finds what the call is about, if this task may see it. What it returns
// beside a refusal is for the record; the agent reads the same words for both.
func (g *Gateway) resolve(c *life) (Tool, error) {
	w := c.way()
	if w.sort == "" {
		return Tool{Server: audit.Unknown, Name: clip(c.Name)}, badArguments("there is no such method, or its ref names neither a prompt nor a template")
	}
	if w.sort == SortTool {
		if t, ok := g.offer(c); ok {
			return t, nil
		}
	}
	t, ok := g.Servers.Resolve(c.Principal.Tenant, w.sort, c.Name)
	if !ok {
		return Tool{Server: audit.Unknown, Name: clip(c.Name)}, refuse(UnknownTool, errors.New("nothing of that name"))
	}
	d := g.visible(c.Principal, c.Task, t)
	if d.Verdict == authz.Deny && w.action != authz.Call {
		d = g.could(c.Principal, c.Task, t, w.action)
	}
	if d.Verdict == authz.Deny {
		c.Decision = d
		return t, refuse(UnknownTool, errors.New("hidden from this task"))
	}
	if !g.hasFor(c, t) {
		return t, refuse(Downstream, errors.New("the server has the tool only for clients that can be asked, and this one cannot be, or not by this task")).
			say("the tool's server has this tool only for clients that can be asked (" + strings.Join(t.Needs, " or ") + ") while it works, which this client, or this task, cannot be; nothing was done")
	}
	if w.sort != SortTool {
		t.Schema = schemaOf(c.Method, t)
	}
	return t, nil
}

// hasFor reports whether a tool's server has it for this agent: some have tools only for
// clients that said, as their session opened, that they can be asked.
func (g *Gateway) hasFor(c *life, t Tool) bool {
	if len(t.Needs) == 0 {
		return true
	}
	if c.Credential.Session == "" || c.Protocol >= modern {
		return false // nobody asks it while it calls
	}
	var can map[string]json.RawMessage
	one := &life{Call: c.Call, Principal: c.Principal, Task: c.Task, Tool: t}
	_ = json.Unmarshal(g.open(one), &can) // made by open, or nil
	return slices.ContainsFunc(t.Needs, func(need string) bool {
		name, mode, _ := strings.Cut(need, ".")
		raw, ok := can[name]
		var how map[string]json.RawMessage
		if json.Unmarshal(raw, &how) != nil {
			return false
		}
		_, has := how[mode]
		return ok && (mode == "" || has || mode == "form" && len(how) == 0)
	})
}

// usable is those of some tools that their servers have for an agent. What it can be
// asked its session says.
func (g *Gateway) usable(ctx context.Context, c *life, tools []Tool) ([]Tool, error) {
	if !slices.ContainsFunc(tools, func(t Tool) bool { return len(t.Needs) > 0 }) {
		return tools, nil
	}
	if c.Credential.Session != "" && c.Protocol < modern {
		s, err := g.Sessions.Session(ctx, c.Credential.Session)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return nil, refuse(Internal, fmt.Errorf("read session: %w", err))
		}
		c.Caps = s.Caps
	}
	var some []Tool
	for _, t := range tools {
		if g.hasFor(c, t) {
			some = append(some, t)
		}
	}
	return some[:len(some):len(some)], nil
}

// input is the object that is decided on. Where MCP has no arguments it is made
// here: of a resource its URI, which is also what is touched.
func (c *life) input() (Call, string) {
	in := c.Call
	if c.way().sort != SortResource {
		return in, ""
	}
	in.Args, _ = json.Marshal(map[string]string{"uri": c.Tool.Name}) // a map of strings
	return in, clipTo(c.Tool.Name, 200)
}

// schemaOf says which arguments a thing that is no tool declares.
func schemaOf(method string, t Tool) json.RawMessage {
	if method == MethodComplete {
		return json.RawMessage(`{"type":"object","properties":{"argument":{"type":"object","properties":{"name":{"type":"string"},"value":{"type":"string"}}},` +
			`"context":{"type":"object","properties":{"arguments":{"type":"object","additionalProperties":{"type":"string"}}}}}}`)
	}
	if t.Sort != SortPrompt {
		return json.RawMessage(`{"type":"object","properties":{"uri":{"type":"string"}}}`)
	}
	var prompt struct {
		Arguments []struct {
			Name string `json:"name"`
		} `json:"arguments"`
	}
	_ = strict.Unmarshal(t.Definition, &prompt) // what cannot be read declares nothing
	props := map[string]any{}
	for _, a := range prompt.Arguments {
		props[a.Name] = map[string]string{"type": "string"}
	}
	out, err := json.Marshal(map[string]any{"type": "object", "properties": props})
	if err != nil {
		return nil
	}
	return out
}

// checkShape holds arguments that no schema of a server's covers to what MCP says
// they are: those of prompts are strings, and a completion names one argument.
func (c *life) checkShape(raw json.RawMessage) error {
	var all map[string]json.RawMessage
	switch c.Method {
	case MethodGet:
		if json.Unmarshal(raw, &all) != nil {
			return badArguments("arguments must be a JSON object")
		}
		for name, v := range all {
			if !isString(v) {
				return badArguments("a prompt's arguments are strings, and %s is not", quoteName(name))
			}
		}
	case MethodComplete:
		var argument map[string]json.RawMessage
		if json.Unmarshal(raw, &all) != nil || json.Unmarshal(all["argument"], &argument) != nil || !isString(argument["name"]) || !isString(argument["value"]) {
			return badArguments("argument must be an object whose name and value are strings")
		}
	}
	return nil
}

func isString(raw json.RawMessage) bool {
	return strings.HasPrefix(string(bytes.TrimLeft(raw, " \t\r\n")), `"`)
}
