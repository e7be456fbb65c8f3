package edge

import (
	"context"
	"encoding/json"
	"time"

	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
)

// needsTasks answers who asks about a handle and did not say that it takes any.
var needsTasks = &fault{code: mcp.MISSING_REQUIRED_CLIENT_CAPABILITY, message: "this method needs the client capability " + TasksExtension,
	data: map[string]any{"requiredCapabilities": map[string]any{"extensions": map[string]any{TasksExtension: struct{}{}}}}}

// manage answers tasks/get, tasks/update and tasks/cancel of the MCP tasks
// extension. Like a call's, its answer may come with an error that says that the
// caller is not who it was.
func (e *Edge) manage(ctx context.Context, r request) (answer, error) {
	if !r.can.tasks {
		return r.fault(needsTasks), nil
	}
	id, bad := text("taskId", r.taskID, maxName)
	if bad == "" && r.method == gateway.MethodTaskUpdate && r.answers.Kind() != '{' {
		bad = "params.inputResponses must be an object"
	}
	if bad != "" {
		e.Gateway.Malformed(ctx, r.cred)
		return r.fault(&fault{code: mcp.INVALID_PARAMS, message: bad}), nil
	}
	c := r.about(r.method, id)
	var h gateway.Handle
	var err error
	if !isID(id) {
		err = &gateway.Refusal{Code: gateway.UnknownHandle} // none of ours looks like that
	} else {
		switch r.method {
		case gateway.MethodTaskGet:
			h, err = e.Gateway.Look(ctx, c)
		case gateway.MethodTaskUpdate:
			c.Answers = json.RawMessage(r.answers)
			_, err = e.Gateway.Update(ctx, c)
		default:
			_, err = e.Gateway.Withdraw(ctx, c)
		}
	}
	if err != nil {
		return e.refused(r, err)
	}
	if r.method != gateway.MethodTaskGet {
		return done(true), nil
	}
	return result(e.detailed(r, h, gateway.ResultComplete)), nil
}

// about is what a request asks, or does, about a handle.
func (r request) about(method, id string) gateway.Call {
	return gateway.Call{Credential: r.cred, Method: method, Name: id, JSONRPCID: string(r.id), Protocol: r.protocol,
		Caps: json.RawMessage(r.caps), Meta: json.RawMessage(r.meta), LogLevel: r.level}
}

// A handle is one as the extension has it: the fields of a task, beside those of
// a result.
type handle struct {
	ResultType string `json:"resultType,omitempty"` // none in a notice
	ID         string `json:"taskId"`
	Status     string `json:"status"`
	Message    string `json:"statusMessage,omitempty"`
	Created    string `json:"createdAt"`
	Updated    string `json:"lastUpdatedAt"`
	TTL        *int64 `json:"ttlMs"` // null: it does not expire
	Poll       int64  `json:"pollIntervalMs,omitempty"`
}

func handleOf(h gateway.Handle, resultType string) handle {
	const layout = "2006-01-02T15:04:05.000Z"
	out := handle{ResultType: resultType, ID: h.ID, Status: h.Status, Message: h.Message,
		Created: h.Created.UTC().Format(layout), Updated: h.Updated.UTC().Format(layout), Poll: h.Poll.Milliseconds()}
	if !h.Expires.IsZero() {
		ttl := max(1, h.Expires.Sub(h.Created)/time.Millisecond)
		out.TTL = (*int64)(&ttl)
	}
	return out
}

// created is the result of a call that gave a handle.
func created(h gateway.Handle) []byte { return handleOf(h, gateway.ResultTask).with("", nil) }

// with is the handle with one more member, whose bytes stay what they are.
func (h handle) with(member string, value []byte) []byte {
	b, err := json.Marshal(h)
	if err != nil || member == "" { // nothing in it can fail to marshal
		return b
	}
	b = append(append(append(b[:len(b)-1], `,"`...), member...), `":`...)
	return append(append(b, value...), '}')
}

// detailed is a handle with what came of it so far: a result of this type, or what a
// notice carries, which has none.
func (e *Edge) detailed(r request, h gateway.Handle, resultType string) []byte {
	out := handleOf(h, resultType)
	switch h.Status {
	case gateway.HandleInput:
		wants, err := tidy(h.Wants)
		if err != nil || mayAskAll(r.can, append(append([]byte(`{"inputRequests":`), wants...), '}')) != nil {
			out.Status, out.Message = gateway.HandleWorking, "" // on something that this client cannot be asked
			break
		}
		return out.with("inputRequests", wants)
	case gateway.HandleCompleted, gateway.HandleFailed:
		if h.Refused { // by us, in our own words
			return out.with("error", h.Result.Error)
		}
		r.method = gateway.MethodCall // what it is the outcome of
		a, err := relay(r, gateway.Result{Type: h.Result.Type, Raw: h.Result.Raw, Error: h.Result.Error})
		if err != nil {
			f := &fault{code: mcp.INTERNAL_ERROR, message: "the tool's server gave an answer that cannot be passed on"}
			a = answer{failed: true, body: f.body()}
		}
		if out.Status = gateway.HandleCompleted; a.failed {
			out.Status = gateway.HandleFailed
			return out.with("error", a.body)
		}
		return out.with("result", a.body)
	}
	return out.with("", nil)
}
