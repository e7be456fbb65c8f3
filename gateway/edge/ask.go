package edge

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	strict "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
)

// askPrefix begins the ids that we give to what servers ask of agents, so that no
// agent's answer is ever taken for anything else.
const askPrefix = "ask-"

// maxAsks is how many questions one call can have open.
const maxAsks = 16

func newAsk() string { return askPrefix + strings.ToLower(rand.Text()) }

// isOurAsk reports whether an id is one that we give to an ask.
func isOurAsk(id string) bool { return strings.HasPrefix(id, askPrefix) && isID(id) }

// askMessage is a server's request as the agent gets it: under an id of ours, and
// without what is not a server's to say.
func askMessage(id, method string, params json.RawMessage) ([]byte, error) {
	b := append([]byte(`{"jsonrpc":"2.0","id":"`+id+`","method":"`), method...)
	b = append(b, '"')
	if len(params) > 0 {
		clean, err := tidy(params)
		if err != nil || jsontext.Value(clean).Kind() != '{' {
			return nil, fmt.Errorf("%s with params that are no object: %w", method, gateway.ErrCannotAsk)
		}
		b = append(append(b, `,"params":`...), clean...)
	}
	return append(b, '}'), nil
}

func askCancelled(id string) []byte {
	return []byte(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"` + id + `"}}`)
}

// answerOf reads a response as the answer to an ask: a result that is an object,
// or an error that is one. Nothing in our name space goes to a server, either.
func answerOf(m message) (gateway.Result, bool) {
	if m.failure != nil {
		var in struct {
			Code    int            `json:"code"`
			Message string         `json:"message"`
			Data    jsontext.Value `json:"data"`
		}
		if m.failure.Kind() != '{' || strict.Unmarshal(m.failure, &in) != nil {
			return gateway.Result{}, false
		}
		clean, err := tidy(m.failure)
		return gateway.Result{Error: clean}, err == nil
	}
	if m.result.Kind() != '{' {
		return gateway.Result{}, false
	}
	clean, err := tidy(m.result)
	return gateway.Result{Raw: clean}, err == nil
}

// answered takes in a response over HTTP: the answer to what a server asked, on
// whatever replica its call is. The session was checked as the caller's.
func (e *Edge) answered(ctx context.Context, cred gateway.Credential, m message) *fault {
	nobody := &fault{code: mcp.INVALID_REQUEST, message: "no request of this server has that id", status: http.StatusBadRequest}
	if cred.Session == "" || m.id.Kind() != '"' || !isOurAsk(unquote(m.id)) {
		return nobody
	}
	r, ok := answerOf(m)
	if !ok {
		return &fault{code: mcp.INVALID_REQUEST, message: "the answer is neither a result nor an error that can be read", status: http.StatusBadRequest}
	}
	switch err := e.Sessions.Answer(ctx, cred.Session, unquote(m.id), r); {
	case err == nil:
		return nil
	case isNotFound(err):
		return nobody
	default:
		e.Logger.Error("an agent's answer was not handed on", "err", err)
		return &fault{code: mcp.INTERNAL_ERROR, message: "internal", status: http.StatusInternalServerError}
	}
}

// ask puts a server's request to a legacy session over the stream of its call, and
// waits for the answer, which may come in anywhere.
func (e *Edge) ask(ctx context.Context, session string, method string, params json.RawMessage, send func([]byte) error) (gateway.Result, error) {
	id := newAsk()
	msg, err := askMessage(id, method, params)
	if err != nil {
		return gateway.Result{}, err
	}
	wait, done, err := e.Sessions.Expect(ctx, session, id)
	if err != nil {
		return gateway.Result{}, fmt.Errorf("expect an answer: %w", err)
	}
	defer done()
	if method == gateway.MethodElicit {
		var one visit
		if strict.Unmarshal(params, &one) == nil {
			e.visits.sent(session, one)
		}
	}
	if err := send(msg); err != nil {
		return gateway.Result{}, err
	}
	out, err := wait(ctx)
	if err != nil {
		_ = send(askCancelled(id)) // the agent need not go on with it
	}
	return out, err
}
