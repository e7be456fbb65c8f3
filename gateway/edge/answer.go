package edge

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	strict "github.com/go-json-experiment/json"
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

func (f *fault) bytes(id jsontext.Value) []byte {
	body, err := json.Marshal(struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
		Data    any    `json:"data,omitempty"`
	}{f.code, f.message, f.data})
	if err != nil {
		body = []byte(`{"code":-32603,"message":"internal"}`)
	}
	return envelope(id, "error", body)
}

// envelope is a response around a body, which is embedded as it is.
func envelope(id jsontext.Value, member string, body []byte) []byte {
	b := beginEnvelope(make([]byte, 0, len(id)+len(body)+40), id, member)
	return append(append(b, body...), '}')
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

// An answer is what a call comes to: a whole message and its HTTP status.
type answer struct {
	body   []byte
	status int
}

// unknownTool is the same for tools that are not there, hidden or withheld.
var unknownTool = &fault{code: mcp.INVALID_PARAMS, message: "Unknown tool"}

// answerCall is the message for what Handle returned.
func (e *Edge) answerCall(m message, modern bool, result gateway.Result, err error) answer {
	if err == nil {
		if result.Error != nil {
			return relayError(m.id, modern, result.Error)
		}
		body, terr := tidyResult(result.Raw, modern)
		if terr == nil {
			return answer{envelope(m.id, "result", body), http.StatusOK}
		}
		err = &gateway.Refusal{Code: gateway.Downstream, Err: terr,
			Say: "the tool's server gave an answer that cannot be passed on; the call itself was carried out"}
	}
	r := refusalOf(err)
	e.logInternal("call", r)
	if r.Code == gateway.UnknownTool {
		return e.answerFault(m.id, modern, unknownTool)
	}
	if errors.Is(err, errParamHeader) {
		return e.answerFault(m.id, modern, &fault{code: mcp.HEADER_MISMATCH, message: errParamHeader.Error()})
	}
	return answer{envelope(m.id, "result", e.refusalResult(r, modern)), http.StatusOK}
}

func (e *Edge) answerFault(id jsontext.Value, modern bool, f *fault) answer {
	status := cmpStatus(f, modern)
	return answer{f.bytes(id), status}
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
	type approval struct {
		ID         string    `json:"id"`
		Status     string    `json:"status"`
		ExpiresAt  time.Time `json:"expiresAt"`
		RetryAfter int64     `json:"retryAfterMs"`
		URL        string    `json:"url,omitempty"`
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
		a := approval{ID: r.Approval.ID, Status: "pending", ExpiresAt: r.Approval.Expires.UTC().Truncate(time.Second), RetryAfter: retryAfter.Milliseconds()}
		if e.ApprovalURL != nil {
			a.URL = e.ApprovalURL(r.Approval.Tenant, r.Approval.ID)
		}
		out.Meta[ours+"approval"] = a
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

// relayError passes on a server's own JSON-RPC error.
func relayError(id jsontext.Value, modern bool, raw []byte) answer {
	var in struct {
		Code    int            `json:"code"`
		Message string         `json:"message"`
		Data    jsontext.Value `json:"data"`
	}
	if err := strict.Unmarshal(raw, &in); err != nil {
		return answer{(&fault{code: mcp.INTERNAL_ERROR, message: "the tool's server answered with an error that cannot be read"}).bytes(id), http.StatusOK}
	}
	f := &fault{code: in.Code, message: in.Message}
	if in.Data != nil {
		if data, _, err := tidy(in.Data); err == nil {
			f.data = json.RawMessage(data)
		}
	}
	return answer{f.bytes(id), cmpStatus(f, modern)}
}

// tidyResult takes out of a tool's result what a server may not say to an
// agent, and adds what the modern era requires. All other bytes stay.
func tidyResult(raw []byte, modern bool) ([]byte, error) {
	body, kind, err := tidy(raw)
	if err != nil {
		return nil, err
	}
	open := bytes.IndexByte(body, '{')
	switch {
	case open < 0 || len(bytes.TrimLeft(body[:open], " \t\r\n")) > 0:
		return nil, errors.New("the result is not an object")
	case kind != "" && kind != "complete":
		// What a server asks back is a decision of its own, which nobody made.
		return nil, errors.New("the result asks for something")
	case !modern || kind != "":
		return body, nil
	}
	out := make([]byte, 0, len(body)+len(`"resultType":"complete",`))
	out = append(append(out, body[:open+1]...), `"resultType":"complete"`...)
	if rest := bytes.TrimLeft(body[open+1:], " \t\r\n"); len(rest) > 0 && rest[0] != '}' {
		out = append(out, ',')
	}
	return append(out, body[open+1:]...), nil
}

// tidy deletes members in our name space at every depth, and from the top
// level's _meta the server's name for itself. It returns the top level's
// resultType, if any. What it does not delete it leaves byte for byte.
func tidy(raw []byte) (out []byte, resultType string, err error) {
	t := tidier{raw: raw, deep: mayBeOurs(raw), dec: borrow(raw, jsontext.AllowDuplicateNames(true))}
	defer giveBack(t.dec)
	if err := t.value(top); err != nil {
		return nil, "", err
	}
	if _, err := t.dec.ReadToken(); err != io.EOF {
		return nil, "", errors.New("more than one value")
	}
	if t.out == nil {
		return raw, t.kind, nil
	}
	return append(t.out, raw[t.done:]...), t.kind, nil
}

type tidier struct {
	raw, out []byte
	done     int // bytes of raw that are in out, or deleted
	dec      *jsontext.Decoder
	deep     bool // something below the top level could be ours
	kind     string
}

type place int

const (
	top place = iota
	topMeta
	elsewhere
)

func (t *tidier) value(at place) error {
	switch kind := t.dec.PeekKind(); {
	case kind == '{' && (at != elsewhere || t.deep):
		return t.object(at)
	case kind == '[' && t.deep:
		if _, err := t.dec.ReadToken(); err != nil {
			return err
		}
		for t.dec.PeekKind() != ']' {
			if err := t.value(elsewhere); err != nil {
				return err
			}
		}
		_, err := t.dec.ReadToken()
		return err
	}
	return t.dec.SkipValue()
}

func (t *tidier) object(at place) error {
	if _, err := t.dec.ReadToken(); err != nil {
		return err
	}
	kept := false
	for t.dec.PeekKind() != '}' {
		before := int(t.dec.InputOffset())
		tok, err := t.dec.ReadToken()
		if err != nil {
			return err
		}
		name := tok.String()
		inside := elsewhere
		if at == top && name == "_meta" {
			inside = topMeta
		}
		switch {
		case isOurs(name), at == topMeta && strings.EqualFold(name, "io.modelcontextprotocol/serverInfo"),
			at == top && isVariant(name):
			if err := t.dec.SkipValue(); err != nil {
				return err
			}
			t.cut(before, int(t.dec.InputOffset()), kept)
			continue
		case at == top && name == "resultType" && t.dec.PeekKind() == '"':
			tok, err := t.dec.ReadToken()
			if err != nil {
				return err
			}
			if t.kind != "" {
				return jsontext.ErrDuplicateName
			}
			t.kind = tok.String()
		default:
			if err := t.value(inside); err != nil {
				return err
			}
		}
		kept = true
	}
	_, err := t.dec.ReadToken()
	return err
}

// cut deletes a member that ends at end: with the comma before it where a member
// was kept before it, else with the comma after it.
func (t *tidier) cut(before, end int, kept bool) {
	if !kept {
		if rest := bytes.TrimLeft(t.raw[end:], " \t\r\n"); len(rest) > 0 && rest[0] == ',' {
			end = len(t.raw) - len(rest) + 1
		}
	}
	if t.out == nil {
		t.out = make([]byte, 0, len(t.raw))
	}
	if before > t.done {
		t.out = append(t.out, t.raw[t.done:before]...)
	}
	t.done = max(t.done, end)
}

// isVariant reports whether some decoders would take name for one that it is not.
func isVariant(name string) bool {
	return name != "_meta" && strings.EqualFold(name, "_meta") || name != "resultType" && strings.EqualFold(name, "resultType")
}

func isOurs(name string) bool {
	return len(name) >= len(ours) && strings.EqualFold(name[:len(ours)], ours)
}

// mayBeOurs is false only where no name can be in our name space, however it is
// escaped. It is much cheaper than reading every name.
func mayBeOurs(raw []byte) bool {
	if bytes.Contains(raw, []byte(`\u`)) {
		return true
	}
	const word = len(ours) - 1
	for i := 0; ; i++ {
		slash := bytes.IndexByte(raw[i:], '/')
		if slash < 0 {
			return false
		}
		i += slash
		end := i
		if end > 0 && raw[end-1] == '\\' {
			end--
		}
		if end >= word && bytes.EqualFold(raw[end-word:end], []byte(ours[:word])) {
			return true
		}
	}
}

// answerList is the result of tools/list.
func answerList(id jsontext.Value, tools []gateway.Tool, modern bool) []byte {
	size := 256 + len(id)
	for _, t := range tools {
		size += len(t.Definition) + 1
	}
	b := append(beginEnvelope(make([]byte, 0, size), id, "result"), `{"tools":[`...)
	for i, t := range tools {
		if i > 0 {
			b = append(b, ',')
		}
		def := []byte(t.Definition)
		if mayBeOurs(def) {
			if clean, _, err := tidy(def); err == nil {
				def = clean
			}
		}
		b = append(b, def...)
	}
	b = append(b, ']')
	if modern {
		b = append(b, `,"resultType":"complete","ttlMs":`...)
		b = strconv.AppendInt(b, listTTL.Milliseconds(), 10)
		b = append(b, `,"cacheScope":"private"`...)
	}
	return append(b, "}}"...)
}

const listTTL = 5 * time.Second
