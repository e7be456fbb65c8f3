package edge

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
)

// ours is the name space of what we add to answers. Nobody else's member by a
// name in it reaches an agent.
const ours = "io.toolbroker/"

// A fault is a JSON-RPC error of ours.
type fault struct {
	code    int
	message string
	data    any
	status  int // over HTTP; 0 for what the code means
}

func (f *fault) Error() string { return f.message }

// http is the status that goes with the fault in the modern era.
func (f *fault) http() int {
	if f.status != 0 {
		return f.status
	}
	return statusOfCode(f.code)
}

// statusOfCode is the HTTP status that the 2026-07-28 revision prescribes for a
// JSON-RPC error code.
func statusOfCode(code int) int {
	switch code {
	case mcp.METHOD_NOT_FOUND:
		return http.StatusNotFound
	case mcp.HEADER_MISMATCH, mcp.MISSING_REQUIRED_CLIENT_CAPABILITY, mcp.UNSUPPORTED_PROTOCOL_VERSION,
		mcp.INVALID_REQUEST, mcp.INVALID_PARAMS, mcp.PARSE_ERROR:
		return http.StatusBadRequest
	}
	return http.StatusOK
}

// body is the fault as a JSON-RPC error, without its envelope. Data that is a server's
// stays as it is.
func (f *fault) body() []byte {
	data := f.data
	theirs, ok := data.(json.RawMessage)
	if ok {
		data = nil
	}
	body, err := json.Marshal(struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
		Data    any    `json:"data,omitempty"`
	}{f.code, f.message, data})
	if err != nil {
		return []byte(`{"code":-32603,"message":"internal"}`)
	}
	if ok {
		body = append(append(append(body[:len(body)-1], `,"data":`...), theirs...), '}')
	}
	return body
}

func (f *fault) bytes(id jsontext.Value) []byte { return envelope(id, "error", f.body()) }

// envelope is a response around a body, which is embedded as it is.
func envelope(id jsontext.Value, member string, body []byte) []byte {
	return appendEnvelope(make([]byte, 0, len(id)+len(body)+40), id, member, body)
}

func appendEnvelope(b []byte, id jsontext.Value, member string, body []byte) []byte {
	return append(append(beginEnvelope(b, id, member), body...), '}')
}

func beginEnvelope(b []byte, id jsontext.Value, member string) []byte {
	if id == nil {
		id = jsontext.Value("null")
	}
	b = append(append(append(b, `{"jsonrpc":"2.0","id":`...), id...), `,"`...)
	return append(append(b, member...), `":`...)
}

// oneLine replaces line ends, which in JSON can only stand between tokens, so
// that a message fits a transport that is made of lines.
func oneLine(b []byte) []byte {
	if !bytes.ContainsAny(b, "\r\n") {
		return b
	}
	b = bytes.Clone(b)
	for i, c := range b {
		if c == '\r' || c == '\n' {
			b[i] = ' '
		}
	}
	return b
}

// An answer is what a request comes to: a result or an error, without its
// envelope, and its HTTP status. Without a body it is none.
type answer struct {
	body   []byte
	failed bool // body is an error
	status int
	room   int // bytes before body's own that an envelope fits in, so that a long list is copied once
}

// result is an answer that is a result.
func result(body []byte) answer { return answer{body: body, status: http.StatusOK} }

// to is the whole message that answers a request.
func (a answer) to(id jsontext.Value) []byte {
	if a.failed {
		return envelope(id, "error", a.body[a.room:])
	}
	if a.room > 0 {
		if head := beginEnvelope(nil, id, "result"); len(head) <= a.room {
			begin := a.room - len(head)
			copy(a.body[begin:], head)
			return append(a.body[begin:], '}')
		}
	}
	return envelope(id, "result", a.body[a.room:])
}

const maxRoom = 1 << 20 // of the room for an answer that is kept for the next

var rooms = sync.Pool{New: func() any { return new([]byte) }}

// writeJSON writes the whole message that answers a request.
func (a answer) writeJSON(w http.ResponseWriter, id jsontext.Value) error {
	if a.failed || a.room > 0 {
		return writeJSON(w, a.status, a.to(id))
	}
	room := rooms.Get().(*[]byte)
	b := appendEnvelope(slices.Grow((*room)[:0], len(id)+len(a.body)+40), id, "result", a.body)
	err := writeJSON(w, a.status, b)
	if cap(b) <= maxRoom {
		*room = b
		rooms.Put(room)
	}
	return err
}

// done is the result of what has nothing to say.
func done(modern bool) answer {
	if modern {
		return result([]byte(`{"resultType":"complete"}`))
	}
	return result([]byte(`{}`))
}

// unknownTool is the same for tools that are not there, hidden or withheld.
var unknownTool = &fault{code: mcp.INVALID_PARAMS, message: "Unknown tool"}

// unknown is what a request about what is not there gets: the same for what is
// hidden or withheld.
func (r request) unknown() *fault {
	switch r.method {
	case gateway.MethodRead, gateway.MethodSubscribe:
		f := &fault{code: mcp.INVALID_PARAMS, message: "Resource not found", data: map[string]any{"uri": json.RawMessage(r.uri)}}
		if !r.modern {
			f.code = mcp.RESOURCE_NOT_FOUND
		}
		return f
	case gateway.MethodGet:
		return &fault{code: mcp.INVALID_PARAMS, message: "Unknown prompt"}
	case gateway.MethodComplete:
		return &fault{code: mcp.INVALID_PARAMS, message: "Unknown prompt or resource template"}
	case gateway.MethodTaskGet, gateway.MethodTaskUpdate, gateway.MethodTaskCancel:
		return &fault{code: mcp.INVALID_PARAMS, message: "Unknown task"}
	}
	return unknownTool
}

// answerCall is the answer for what Handle returned.
func (e *Edge) answerCall(r request, out gateway.Result, err error) answer {
	if err == nil {
		var a answer
		if a, err = relay(r, out); err == nil {
			if a.failed {
				e.sends(r, a.body)
			}
			return a
		}
		err = &gateway.Refusal{Code: gateway.Downstream, Err: err,
			Say: "the tool's server gave an answer that cannot be passed on; the call itself was carried out"}
	}
	return e.answerRefusal(r, err)
}

// answerRefusal is the answer to a request that the gateway refused.
func (e *Edge) answerRefusal(r request, err error) answer {
	refusal := refusalOf(err)
	e.logInternal(r.method, refusal)
	switch {
	case refusal.Code == gateway.UnknownTool, refusal.Code == gateway.UnknownHandle:
		return r.fault(r.unknown())
	case refusal.Code == gateway.BadState: // the client's mistake, or an attempt: nothing that a model could mend
		return r.fault(&fault{code: mcp.INVALID_PARAMS, message: sayRefusal(refusal)})
	case errors.Is(err, errParamHeader):
		return r.fault(&fault{code: mcp.HEADER_MISMATCH, message: errParamHeader.Error()})
	case refusal.Code == gateway.PendingApproval && refusal.Approval != nil:
		if a, ok := e.sendToHuman(r, refusal); ok {
			return a
		}
	}
	if r.method == gateway.MethodCall {
		return result(e.refusalResult(refusal, r.modern))
	}
	f := refusalFault(refusal)
	if refusal.Code == gateway.BadArguments {
		f.code = mcp.INVALID_PARAMS
	}
	if refusal.Code == gateway.PendingApproval && refusal.Approval != nil {
		f.data.(map[string]any)[ours+"approval"] = e.approvalOf(refusal.Approval)
	}
	return r.fault(f)
}

// sendToHuman answers a call that waits for a human with a request to open the
// console's page, where the agent's side can show one. Whoever opens it still has
// to be an operator: that the agent accepts it approves nothing.
func (e *Edge) sendToHuman(r request, refusal *gateway.Refusal) (answer, bool) {
	if !e.canSend(r) {
		return answer{}, false
	}
	type elicit struct {
		Mode    string `json:"mode"`
		ID      string `json:"elicitationId,omitempty"`
		Message string `json:"message"`
		URL     string `json:"url"`
	}
	ask := elicit{Mode: "url", URL: e.ApprovalURL(refusal.Approval.Tenant, refusal.Approval.ID),
		Message: "This call needs human approval (id " + refusal.Approval.ID + "). Open the page to review it; what is needed is an operator's decision there."}
	switch {
	case r.modern && refusal.State != "":
		body, err := json.Marshal(map[string]any{
			"resultType": gateway.ResultInput, "requestState": refusal.State,
			"inputRequests": map[string]any{gateway.ApprovalKey: map[string]any{"method": gateway.MethodElicit, "params": ask}},
		})
		return result(body), err == nil
	case !r.modern:
		ask.ID = refusal.Approval.ID
		e.await(r.cred.Session, refusal.Approval.ID)
		return r.fault(&fault{code: mcp.URL_ELICITATION_REQUIRED, message: "Approval required", data: map[string]any{
			"elicitations": []elicit{ask}, ours + "approval": e.approvalOf(refusal.Approval),
		}}), true
	}
	return answer{}, false
}

// canSend reports whether the agent's side can be sent to the page of a request.
func (e *Edge) canSend(r request) bool {
	if !r.can.url || e.ApprovalURL == nil {
		return false
	}
	if r.modern {
		return takesInput(r.method)
	}
	return r.cred.Session != "" && e.Decided != nil
}

func (r request) fault(f *fault) answer {
	return answer{body: f.body(), failed: true, status: cmpStatus(f, r.modern)}
}

// cmpStatus: before 2026-07-28 an error that has an id is an ordinary answer.
func cmpStatus(f *fault, modern bool) int {
	if modern || f.status != 0 {
		return f.http()
	}
	return http.StatusOK
}

// logInternal keeps what an agent may not read about a refusal of ours.
func (e *Edge) logInternal(doing string, r *gateway.Refusal) {
	if r.Code == gateway.Internal {
		e.Logger.Error("refused: internal", "doing", doing, "call", r.CallID, "err", r.Err)
	}
}

// next is what a program may do after a refusal, for those that do not read text.
var next = map[gateway.Code]string{
	gateway.NoTask:           "start_task",
	gateway.BadArguments:     "fix_arguments",
	gateway.Denied:           "do_not_repeat",
	gateway.PendingApproval:  "repeat_identical_after_approval",
	gateway.DeniedByOperator: "do_not_repeat",
	gateway.ApprovalExpires:  "repeat_identical",
	gateway.NoCredential:     "repeat_later",
	gateway.TooMany:          "repeat_later",
	gateway.OverBudget:       "start_task",
	gateway.InDoubt:          "check_before_repeating",
}

const retryAfter = 15 * time.Second // after a pending answer

// refusalResult is a refusal as a tool's result, which is what models read.
func (e *Edge) refusalResult(r *gateway.Refusal, modern bool) []byte {
	type text struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}
	type refusal struct {
		Code gateway.Code `json:"code"`
		Call string       `json:"call,omitempty"`
		Next string       `json:"next,omitempty"`
	}
	out := struct {
		ResultType string         `json:"resultType,omitempty"`
		Content    []text         `json:"content"`
		IsError    bool           `json:"isError"`
		Meta       map[string]any `json:"_meta"`
	}{Content: []text{{"text", sayRefusal(r)}}, IsError: true}
	why := refusal{r.Code, r.CallID, next[r.Code]}
	if r.InDoubt {
		why.Next = "check_before_repeating" // something may have been done
	}
	out.Meta = map[string]any{ours + "refusal": why}
	if r.Code == gateway.PendingApproval && r.Approval != nil {
		out.Meta[ours+"approval"] = e.approvalOf(r.Approval)
	}
	if modern {
		out.ResultType = "complete"
	}
	body, err := json.Marshal(out)
	if err != nil { // nothing in it can fail to marshal
		return []byte(`{"content":[{"type":"text","text":"INTERNAL"}],"isError":true}`)
	}
	return body
}

// An approval is what a program may read of an approval request.
type approval struct {
	ID         string    `json:"id"`
	Status     string    `json:"status"`
	ExpiresAt  time.Time `json:"expiresAt"`
	RetryAfter int64     `json:"retryAfterMs"`
	URL        string    `json:"url,omitempty"`
}

func (e *Edge) approvalOf(r *gateway.ApprovalRequest) approval {
	a := approval{ID: r.ID, Status: "pending", ExpiresAt: r.Expires.UTC().Truncate(time.Second), RetryAfter: retryAfter.Milliseconds()}
	if e.ApprovalURL != nil {
		a.URL = e.ApprovalURL(r.Tenant, r.ID)
	}
	return a
}

// sayRefusal is the sentence that a model reads.
func sayRefusal(r *gateway.Refusal) string {
	if r.Code == gateway.PendingApproval && r.Approval != nil {
		return fmt.Sprintf("PENDING_APPROVAL: this call needs human approval (id %s, expires %s). Call the same tool again with identical arguments after approval; do not change the arguments.",
			r.Approval.ID, r.Approval.Expires.UTC().Format("15:04Z"))
	}
	text := strings.ToUpper(string(r.Code)) + ": " + r.Say
	if r.Say == "" {
		text = strings.ToUpper(string(r.Code))
	}
	if r.CallID != "" {
		text += " (" + r.CallID + ")"
	}
	return text
}
