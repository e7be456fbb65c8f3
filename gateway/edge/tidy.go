package edge

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

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
	if f.code != mcp.MISSING_REQUIRED_CLIENT_CAPABILITY { // for which MCP has a status whoever says it
		f.status = http.StatusOK // the request reached a method; how that ended is no matter of HTTP
	}
	return r.fault(f)
}

// tidyResult takes out of a server's result what it may not say to an agent, and
// adds what the modern era requires. All other bytes stay. What some client would
// read as another kind of result is none.
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
// level's _meta what a server says of itself; where that was all, the _meta. What
// it does not delete it leaves byte for byte.
func tidy(raw []byte) ([]byte, error) {
	t := tidier{raw: raw}
	return t.run()
}

// tidyMeta does so to a _meta that stands by itself.
func tidyMeta(raw []byte) ([]byte, error) {
	t := tidier{raw: raw, from: topMeta}
	return t.run()
}

func (t *tidier) run() ([]byte, error) {
	if !utf8.Valid(t.raw) {
		return nil, errWalk
	}
	t.deep, t.at = mayBeOurs(t.raw), walker{raw: t.raw}
	if err := t.value(t.from, 0); err != nil {
		return nil, err
	}
	if t.at.next() != 0 {
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
	at       walker
	from     place
	deep     bool // something below the top level could be ours
	as       kind
	kind     string // the top level's resultType
	ttl      bool   // it has a ttlMs that stays
	emptied  bool   // the top level's _meta holds nothing any more
}

type place int

const (
	top place = iota
	topMeta
	elsewhere
)

const maxLevels = 10_000 // no reader before this one takes more

func (t *tidier) value(at place, depth int) error {
	if depth > maxLevels {
		return errWalk
	}
	switch kind := t.at.next(); {
	case kind == '{' && (at != elsewhere || t.deep):
		return t.object(at, depth)
	case kind == '[' && t.deep:
		t.at.i++
		for first := true; !t.at.take(']'); first = false {
			if !first && !t.at.take(',') {
				return errWalk
			}
			if err := t.value(elsewhere, depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	_, err := t.at.value()
	return err
}

func (t *tidier) object(at place, depth int) error {
	t.at.i++
	kept, emptied := false, false
	for first := true; ; first = false {
		before := t.at.i
		if t.at.take('}') {
			t.emptied = at == topMeta && !kept && emptied
			return nil
		}
		if !first && !t.at.take(',') {
			return errWalk
		}
		name, err := t.at.name()
		if err != nil {
			return err
		}
		inside := elsewhere
		if at == top && name == "_meta" {
			inside = topMeta
		}
		switch {
		case t.as != anything && at == top && isVariant(name):
			return errors.New("a name that some read as another")
		case isOurs(name), at == topMeta && isServers(name), at == top && isVariant(name),
			at == top && t.as != anything && name == "cacheScope", at == top && t.as == legacyResult && name == "ttlMs":
			if _, err := t.at.value(); err != nil {
				return err
			}
			t.cut(before, t.at.i, kept)
			emptied = true
			continue
		case at == top && name == "resultType" && t.at.next() == '"':
			v, err := t.at.value()
			if err != nil {
				return err
			}
			if t.kind != "" {
				return jsontext.ErrDuplicateName
			}
			t.kind = unquote(v)
			if t.as == legacyResult && t.kind == gateway.ResultComplete { // of a modern server
				t.cut(before, t.at.i, kept)
				continue
			}
		case at == top && name == "ttlMs" && t.as != anything:
			v, err := t.at.value()
			if err != nil {
				return err
			}
			if n, err := strconv.ParseInt(string(v), 10, 64); t.as != cachedResult || t.ttl || err != nil || n < 0 {
				t.cut(before, t.at.i, kept)
				continue
			}
			t.ttl = true
		default:
			out, done := t.out, t.done
			t.emptied = false
			if err := t.value(inside, depth+1); err != nil {
				return err
			}
			if inside == topMeta && t.emptied { // nothing but what a server says of itself: it goes whole
				t.out, t.done = out, done
				t.cut(before, t.at.i, kept)
				continue
			}
		}
		kept = true
	}
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
