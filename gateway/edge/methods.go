package edge

import (
	"context"
	"encoding/json"
	"slices"

	strict "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
)

// TasksExtension is the name of the MCP tasks extension, as both sides declare it.
const TasksExtension = "io.modelcontextprotocol/tasks"

// A request is a JSON-RPC request, and what holds for it: who asks, in which era,
// and what its client can do.
type request struct {
	message
	cred     gateway.Credential
	who      gateway.Principal
	modern   bool
	protocol string
	caps     jsontext.Value // the client's capabilities, of this request or of its session; nil for none
	level    string         // of the log messages that it wants; empty: it did not say
	can      ability
}

// does says what it takes to answer a method.
type does int

const (
	nothing  does = iota
	answers       // at once, without anybody downstream
	lists         // a page of what there is
	calls         // something of a server's, which may take long, notify and ask
	manages       // a task of the MCP tasks extension
	opens         // a legacy session
	listens       // a stream of notices
	follows       // one resource, in a legacy session
	unfollow      // likewise
	sets          // the log level of a legacy session
)

// methods are all that there are, by era. What is not here is nobody's.
var methods = map[string]struct{ legacy, modern does }{
	"initialize":               {opens, nothing},
	"ping":                     {answers, nothing},
	"server/discover":          {nothing, answers},
	"tools/list":               {lists, lists},
	"resources/list":           {lists, lists},
	"resources/templates/list": {lists, lists},
	"prompts/list":             {lists, lists},
	gateway.MethodCall:         {calls, calls},
	gateway.MethodRead:         {calls, calls},
	gateway.MethodGet:          {calls, calls},
	gateway.MethodComplete:     {calls, calls},
	gateway.MethodSubscribe:    {follows, nothing},
	"resources/unsubscribe":    {unfollow, nothing},
	"logging/setLevel":         {sets, nothing},
	"subscriptions/listen":     {nothing, listens},
	gateway.MethodTaskGet:      {nothing, manages},
	gateway.MethodTaskUpdate:   {nothing, manages},
	gateway.MethodTaskCancel:   {nothing, manages},
}

func doing(method string, modern bool) does {
	if modern {
		return methods[method].modern
	}
	return methods[method].legacy
}

// needsClient reports whether it matters what the client can do, or said before in
// its session.
func (d does) needsClient() bool { return d != nothing && d != answers && d != lists && d != opens }

// sortOf is what a list method lists.
func sortOf(method string) (s gateway.Sort, member string) {
	switch method {
	case "resources/list":
		return gateway.SortResource, "resources"
	case "resources/templates/list":
		return gateway.SortTemplate, "resourceTemplates"
	case "prompts/list":
		return gateway.SortPrompt, "prompts"
	}
	return gateway.SortTool, "tools"
}

// about is what a request says it is about, whose name stands in its Mcp-Name
// header: the value, and the name of its parameter. Some are about nothing.
func (m message) about() (name string, v jsontext.Value) {
	switch m.method {
	case gateway.MethodCall, gateway.MethodGet:
		return "name", m.name
	case gateway.MethodRead:
		return "uri", m.uri
	case gateway.MethodTaskGet, gateway.MethodTaskUpdate, gateway.MethodTaskCancel:
		return "taskId", m.taskID
	}
	return "", nil
}

// call is the request as the gateway takes it, or what is wrong with it.
func (r request) call() (c gateway.Call, bad string) {
	c = gateway.Call{
		Credential: r.cred, Method: r.method, Meta: json.RawMessage(r.meta), JSONRPCID: string(r.id), Protocol: r.protocol,
		Caps: json.RawMessage(r.caps), LogLevel: r.level, Later: r.can.tasks && r.method == gateway.MethodCall,
	}
	switch r.method {
	case gateway.MethodCall, gateway.MethodGet:
		c.Name, bad = text("name", r.name, maxName)
		c.Args = json.RawMessage(r.args)
		if r.args.Kind() == 'n' || r.args == nil {
			c.Args = json.RawMessage("{}")
		} else if r.args.Kind() != '{' {
			bad = "params.arguments must be an object"
		}
	case gateway.MethodRead, gateway.MethodSubscribe:
		c.Name, bad = text("uri", r.uri, maxURI)
		c.Args = json.RawMessage("{}")
	case gateway.MethodComplete:
		return r.completion(c)
	}
	if bad == "" {
		c.Answers, c.State, bad = r.resumes()
	}
	return c, bad
}

// completion reads what is to be completed. The gateway gets the agent's own
// bytes of it, in an object of ours.
func (r request) completion(c gateway.Call) (_ gateway.Call, bad string) {
	var ref struct {
		Type jsontext.Value `json:"type"`
		Name jsontext.Value `json:"name"`
		URI  jsontext.Value `json:"uri"`
	}
	var arg struct {
		Name  jsontext.Value `json:"name"`
		Value jsontext.Value `json:"value"`
	}
	if r.ref.Kind() != '{' || strict.Unmarshal(r.ref, &ref) != nil {
		return c, "params.ref must be an object"
	}
	switch string(ref.Type) {
	case `"ref/prompt"`:
		c.Ref = gateway.SortPrompt
		c.Name, bad = text("ref.name", ref.Name, maxName)
	case `"ref/resource"`:
		c.Ref = gateway.SortTemplate
		c.Name, bad = text("ref.uri", ref.URI, maxURI)
	default:
		bad = "params.ref.type must be ref/prompt or ref/resource"
	}
	switch {
	case bad != "":
		return c, bad
	case r.answers != nil || r.state != nil:
		return c, noInput
	case r.argument.Kind() != '{' || strict.Unmarshal(r.argument, &arg) != nil || arg.Name.Kind() != '"' || arg.Value.Kind() != '"':
		return c, "params.argument must be an object with the strings name and value"
	case r.context != nil && r.context.Kind() != '{' && r.context.Kind() != 'n':
		return c, "params.context must be an object"
	}
	b := append([]byte(`{"argument":`), r.argument...)
	if r.context.Kind() == '{' {
		b = append(append(b, `,"context":`...), r.context...)
	}
	c.Args = append(b, '}')
	return c, ""
}

const noInput = "inputResponses and requestState do not belong here: this server asked for no input"

// resumes is what a request brings back to a call that asked for input.
func (r request) resumes() (answers json.RawMessage, state, bad string) {
	switch {
	case r.answers == nil && r.state == nil:
		return nil, "", ""
	case !r.modern || !takesInput(r.method):
		return nil, "", noInput
	case r.answers != nil && r.answers.Kind() != '{':
		return nil, "", "params.inputResponses must be an object"
	}
	if r.state != nil {
		state, bad = text("requestState", r.state, maxState)
	}
	return json.RawMessage(r.answers), state, bad
}

// takesInput reports whether a method's result can ask for more input.
func takesInput(method string) bool {
	return method == gateway.MethodCall || method == gateway.MethodRead || method == gateway.MethodGet
}

// text reads a parameter that must be there.
func text(name string, v jsontext.Value, most int) (string, string) {
	switch {
	case v.Kind() != '"':
		return "", "params." + name + " must be a string"
	case len(v) > most:
		return "", "params." + name + " is too long"
	}
	return unquote(v), ""
}

// An ability is what a client says that it can do for us.
type ability struct {
	form, url bool // elicitation, by its mode
	sampling  bool
	roots     bool
	tasks     bool // it takes handles of the MCP tasks extension
}

// abilities reads capabilities. Only what is declared by its exact name, as an
// object, can be done.
func abilities(caps jsontext.Value, protocol string) (can ability) {
	var in struct {
		Elicitation jsontext.Value `json:"elicitation"`
		Sampling    jsontext.Value `json:"sampling"`
		Roots       jsontext.Value `json:"roots"`
		Extensions  jsontext.Value `json:"extensions"`
	}
	if caps.Kind() != '{' || strict.Unmarshal(caps, &in) != nil {
		return can
	}
	can.sampling, can.roots = in.Sampling.Kind() == '{', in.Roots.Kind() == '{'
	if in.Extensions.Kind() == '{' && mcp.IsModernProtocol(protocol) {
		var all map[string]jsontext.Value
		can.tasks = strict.Unmarshal(in.Extensions, &all) == nil && all[TasksExtension].Kind() == '{'
	}
	if in.Elicitation.Kind() != '{' {
		return can
	}
	var mode struct {
		Form jsontext.Value `json:"form"`
		URL  jsontext.Value `json:"url"`
	}
	if strict.Unmarshal(in.Elicitation, &mode) != nil {
		return can
	}
	can.url = mode.URL.Kind() == '{' && protocol >= mcp.ProtocolVersion20251125
	can.form = mode.Form.Kind() == '{' || mode.Form == nil && mode.URL == nil // {} is what it was called when there was only one
	return can
}

// may reports whether a server's request can be put to the client.
func (can ability) may(method string, params []byte) bool {
	switch method {
	case gateway.MethodSample:
		return can.sampling
	case gateway.MethodRoots:
		return can.roots
	case gateway.MethodElicit:
		var in struct {
			Mode string `json:"mode"`
		}
		if strict.Unmarshal(params, &in) != nil {
			return false
		}
		switch in.Mode {
		case "", "form":
			return can.form
		case "url":
			return can.url
		}
	}
	return false
}

// levels are the severities of log messages, the least first.
var levels = []string{"debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"}

// levelOf reads a level, or returns nothing for what is none.
func levelOf(v jsontext.Value) string {
	if v.Kind() == '"' {
		if level := unquote(v); slices.Contains(levels, level) {
			return level
		}
	}
	return ""
}

// remember adds what a legacy session says of its client to a request. Of a
// modern one the request itself says it.
func (e *Edge) remember(ctx context.Context, r *request) error {
	if r.modern {
		r.caps, r.level = r.declares, r.logLevel
	} else if r.cred.Session != "" {
		s, err := e.Sessions.Session(ctx, r.cred.Session)
		if err != nil {
			return sessionRefusal(err)
		}
		r.caps, r.level = jsontext.Value(s.Caps), s.LogLevel
		if s.Protocol != "" {
			r.protocol = s.Protocol
		}
	}
	r.can = abilities(r.caps, r.protocol)
	return nil
}

// wantsLog reports whether an agent wants a log message of a level. Before
// 2026-07-28 one that does not say gets all of them.
func (r request) wantsLog(level string) bool {
	if r.level == "" {
		return !r.modern
	}
	return slices.Index(levels, level) >= slices.Index(levels, r.level)
}
