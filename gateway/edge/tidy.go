package edge

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"

	strict "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
)

// relay is the answer for what a server, or the gateway in its place, answered.
// Its error says that it is nothing that can be passed on.
func relay(r request, out gateway.Result) (answer, error) {
	switch {
	case out.Error != nil:
		return relayError(r, out.Error), nil
	case out.Handle != nil:
		if !r.can.tasks {
			return answer{}, errors.New("a handle for one who takes none")
		}
		return result(created(*out.Handle)), nil
	}
	body, err := tidyResult(r, out)
	return result(body), err
}

// relayError passes on a server's own JSON-RPC error.
func relayError(r request, raw []byte) answer {
	var in struct {
		Code    int            `json:"code"`
		Message string         `json:"message"`
		Data    jsontext.Value `json:"data"`
	}
	f := &fault{code: mcp.INTERNAL_ERROR, message: "the tool's server answered with an error that cannot be read"}
	if err := strict.Unmarshal(raw, &in); err != nil {
		return answer{body: f.body(), failed: true, status: http.StatusOK}
	}
	if in.Code == mcp.URL_ELICITATION_REQUIRED && (r.modern || !r.can.url) {
		// A way to send somebody to a page without having asked whether one may.
		f.message = "the tool's server wants a page to be opened, which this client did not say that it can do"
		return answer{body: f.body(), failed: true, status: http.StatusOK}
	}
	f.code, f.message = in.Code, in.Message
	if r.modern && r.method == gateway.MethodRead && in.Code == mcp.RESOURCE_NOT_FOUND {
		f.code = mcp.INVALID_PARAMS // what it is called since
	}
	if in.Data != nil {
		if data, err := tidy(in.Data); err == nil {
			f.data = json.RawMessage(data)
		}
	}
	return r.fault(f)
}

// tidyResult takes out of a server's result what it may not say to an agent, and
// adds what the modern era requires. All other bytes stay.
func tidyResult(r request, out gateway.Result) ([]byte, error) {
	t := tidier{raw: out.Raw, as: modernResult}
	switch {
	case !r.modern:
		t.as = legacyResult
	case r.method == gateway.MethodRead && r.answers == nil: // what came of answers is kept by nobody
		t.as = cachedResult
	}
	body, err := t.run()
	if err != nil {
		return nil, err
	}
	open := bytes.IndexByte(body, '{')
	switch {
	case open < 0 || len(bytes.TrimLeft(body[:open], " \t\r\n")) > 0:
		return nil, errors.New("the result is not an object")
	case out.Type == gateway.ResultInput && t.kind == gateway.ResultInput && r.modern && takesInput(r.method):
		return body, mayAskAll(r.can, body)
	case out.Type != "" && out.Type != gateway.ResultComplete, t.kind != "" && t.kind != gateway.ResultComplete:
		// What a server asks back is a decision of its own, which nobody made.
		return nil, errors.New("the result asks for something")
	case !r.modern:
		return body, nil
	}
	var more []string
	if t.kind == "" {
		more = append(more, `"resultType":"complete"`)
	}
	if r.method == gateway.MethodRead {
		if !t.ttl {
			more = append(more, `"ttlMs":0`)
		}
		more = append(more, `"cacheScope":"private"`)
	}
	return insert(body, open, more), nil
}

// insert puts members in front of those of the object that opens at open.
func insert(body []byte, open int, members []string) []byte {
	if len(members) == 0 {
		return body
	}
	more := strings.Join(members, ",")
	b := make([]byte, 0, len(body)+len(more)+1)
	b = append(append(b, body[:open+1]...), more...)
	if rest := bytes.TrimLeft(body[open+1:], " \t\r\n"); len(rest) > 0 && rest[0] != '}' {
		b = append(b, ',')
	}
	return append(b, body[open+1:]...)
}

// mayAskAll reports why a result's inputRequests cannot be put to a client: it
// did not declare, on this very request, that it can answer one of them.
func mayAskAll(can ability, body []byte) error {
	var in struct {
		Requests map[string]struct {
			Method string         `json:"method"`
			Params jsontext.Value `json:"params"`
		} `json:"inputRequests"`
		State jsontext.Value `json:"requestState"`
	}
	if err := strict.Unmarshal(body, &in); err != nil {
		return errors.New("the input it asks for cannot be read")
	}
	if in.Requests == nil && in.State == nil {
		return errors.New("it asks for input and says neither which nor where to go on")
	}
	for _, ask := range in.Requests {
		if !can.may(ask.Method, ask.Params) {
			return errors.New("it asks for what the client did not say that it can give")
		}
	}
	return nil
}

// What a tidier goes through.
type kind int

const (
	anything     kind = iota
	legacyResult      // has nothing of what the modern era adds
	modernResult      // has no say in who may keep it
	cachedResult      // likewise, but in how long
)

// tidy deletes members in our name space at every depth, and from the top
// level's _meta what a server says of itself. What it does not delete it leaves
// byte for byte.
func tidy(raw []byte) ([]byte, error) {
	t := tidier{raw: raw}
	return t.run()
}

func (t *tidier) run() ([]byte, error) {
	t.deep, t.dec = mayBeOurs(t.raw), borrow(t.raw, jsontext.AllowDuplicateNames(true))
	defer giveBack(t.dec)
	if err := t.value(top); err != nil {
		return nil, err
	}
	if _, err := t.dec.ReadToken(); err != io.EOF {
		return nil, errors.New("more than one value")
	}
	if t.out == nil {
		return t.raw, nil
	}
	return append(t.out, t.raw[t.done:]...), nil
}

type tidier struct {
	raw, out []byte
	done     int // bytes of raw that are in out, or deleted
	dec      *jsontext.Decoder
	deep     bool // something below the top level could be ours
	as       kind
	kind     string // the top level's resultType
	ttl      bool   // it has a ttlMs that stays
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
		case isOurs(name), at == topMeta && isServers(name), at == top && isVariant(name),
			at == top && t.as != anything && name == "cacheScope", at == top && t.as == legacyResult && name == "ttlMs":
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
			if t.as == legacyResult && t.kind == gateway.ResultComplete { // of a modern server
				t.cut(before, int(t.dec.InputOffset()), kept)
				continue
			}
		case at == top && name == "ttlMs" && t.as != anything:
			v, err := t.dec.ReadValue()
			if err != nil {
				return err
			}
			if n, err := strconv.ParseInt(string(v), 10, 64); t.as != cachedResult || t.ttl || err != nil || n < 0 {
				t.cut(before, int(t.dec.InputOffset()), kept)
				continue
			}
			t.ttl = true
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

// topNames are the names of a result that mean something to every client.
var topNames = []string{"_meta", "resultType", "ttlMs", "cacheScope", "inputRequests", "requestState", "taskId"}

// isVariant reports whether some decoders would take name for one that it is not.
func isVariant(name string) bool {
	for _, known := range topNames {
		if name != known && strings.EqualFold(name, known) {
			return true
		}
	}
	return false
}

// isServers reports whether a name in _meta is what a server says of itself, or
// of a task of its own that the agent knows by another name.
func isServers(name string) bool {
	return strings.EqualFold(name, "io.modelcontextprotocol/serverInfo") || strings.EqualFold(name, "io.modelcontextprotocol/related-task")
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
