package gateway

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// A state is what an agent brings back to go on with a call (requestState of
// 2026-07-28): the server's own state, and what we must know again. Agents see it
// sealed only, and it is good for one caller, task, tool and arguments.
type state struct {
	Who     string          `json:"who"` // principal, human and task
	What    string          `json:"what"`
	Until   time.Time       `json:"until"`
	Round   int             `json:"round"`             // how often the agent was sent to a human
	Inner   *string         `json:"inner,omitempty"`   // the server's; nil where it gave none
	Asked   []string        `json:"asked,omitempty"`   // the keys of what the server asked
	Pages   int             `json:"pages,omitempty"`   // how often a server sent the agent to pages by an error; then Asked is of the last
	Answers json.RawMessage `json:"answers,omitempty"` // what the agent answered before it was sent to a human

	// Questions is what the server asked, by key, as the agent got it; nil where
	// that is too long to carry along.
	Questions json.RawMessage `json:"questions,omitempty"`
}

const (
	stateMark    = "tb1."
	maxState     = 256 << 10 // bytes of ours; the server's is in it
	maxQuestions = 8 << 10   // bytes
	maxSent      = 6         // times that an agent is sent to a human before it is told to come back later
	maxAnswers   = 64        // of one call
	statesValid  = time.Hour
)

func newStates(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("gateway: StateKey: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}

func who(p Principal, t Task) string {
	return sha([]byte(strings.Join([]string{p.Tenant, p.ID, p.OnBehalfOf, t.ID}, "\n")))
}

// what names a call without its answers.
func (c *life) what(argsCanon string) string {
	return sha([]byte(strings.Join([]string{c.Method, c.Tool.ID(), c.Tool.Hash, argsCanon, sha(c.Args.meta)}, "\n")))
}

// seal writes a state for the agent.
func (g *Gateway) seal(c *life, s state) (string, error) {
	s.Who, s.What, s.Until = who(c.Principal, c.Task), c.what(c.Args.bare), g.now().Add(statesValid)
	text, err := json.Marshal(s)
	if err == nil && len(text) > maxState {
		err = errors.New("the server's state is too large")
	}
	if err != nil {
		return "", err
	}
	return stateMark + base64.RawURLEncoding.EncodeToString(g.states.Seal(nil, nil, text, []byte(stateMark))), nil
}

var errState = errors.New("a requestState that is not this caller's, for this call, now")

// unseal reads a state that the agent brought back for this call.
func (g *Gateway) unseal(c *life, sealed, argsCanon string) (s state, err error) {
	text, marked := strings.CutPrefix(sealed, stateMark)
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	// A strict decoder still skips line ends.
	if !marked || err != nil || len(raw) > maxState+1024 || strings.ContainsAny(text, "\r\n") {
		return s, errState
	}
	if raw, err = g.states.Open(nil, nil, raw, []byte(stateMark)); err != nil || json.Unmarshal(raw, &s) != nil {
		return s, errState
	}
	if s.Who != who(c.Principal, c.Task) || s.What != c.what(argsCanon) || g.now().After(s.Until) {
		return s, errState
	}
	return s, nil
}

// readAnswers takes what the agent answers to what the server asked, with the
// state that came with the question. Both are the agent's to forge: the state must
// open, and the answers are read as strictly as arguments, and count like them.
func (g *Gateway) readAnswers(c *life, a *arguments) error {
	if c.State == "" {
		return nil // answers to nothing that we know of count for nothing: whoever needs some asks again
	}
	s, err := g.unseal(c, c.State, a.bare)
	if err != nil {
		return badState("requestState is not one of this call's, or it is too old; make the call again without it")
	}
	a.state = s
	answers := map[string]json.RawMessage{}
	if c.Answers != nil {
		if err := alike(c.Answers, names{"*": answerNames}); err != nil {
			return badState("inputResponses must be JSON that can be read in one way only")
		}
		if json.Unmarshal(c.Answers, &answers) != nil || len(answers) > maxAnswers {
			return badState("inputResponses must be an object")
		}
	}
	if s.Pages > 0 {
		return a.opened(answers)
	}
	var page struct {
		Action string `json:"action"`
	}
	if answer := answers[ApprovalKey]; s.Round > 0 && answer != nil {
		a.refused = json.Unmarshal(answer, &page) != nil || page.Action != "accept"
	}
	if s.Answers != nil { // given before the agent was sent to a human, and sealed since
		a.answers = s.Answers
	} else if len(s.Asked) > 0 { // nothing of ours is among that
		maps.DeleteFunc(answers, func(key string, _ json.RawMessage) bool { return !slices.Contains(s.Asked, key) })
		if a.answers, err = json.Marshal(answers); err != nil {
			return badState("inputResponses cannot be read")
		}
	}
	if a.answers == nil {
		return nil
	}
	a.rawDigest = sha(a.shown())
	canon := jsontext.Value(a.shown())
	if err := canon.Canonicalize(); err != nil {
		return badState("inputResponses cannot be read")
	}
	a.canonDigest = sha(canon)
	return nil
}

func badState(text string) error { return refuse(BadState, errState).say(text) }

// shown is what operators see, and what is digested for them: the arguments, and
// beside them what the server asked (null: nobody knows any more) and what the agent
// answered.
func (a arguments) shown() json.RawMessage {
	if a.answers == nil {
		return a.raw
	}
	asked := a.state.Questions
	if asked == nil {
		asked = json.RawMessage("null")
	}
	return bytes.Join([][]byte{[]byte(`{"arguments":`), a.raw, []byte(`,"inputRequests":`), asked, []byte(`,"inputResponses":`), a.answers, []byte(`}`)}, nil)
}

// asShown takes the bytes that operators saw.
func (a *arguments) asShown(shown json.RawMessage) error {
	if a.answers == nil {
		a.raw = shown
		return nil
	}
	var both struct {
		Arguments json.RawMessage `json:"arguments"`
		Answers   json.RawMessage `json:"inputResponses"`
	}
	if err := json.Unmarshal(shown, &both); err != nil || both.Arguments == nil || both.Answers == nil {
		return errors.New("what was approved is not arguments and answers")
	}
	a.raw, a.answers = both.Arguments, both.Answers
	return nil
}

// ApprovalKey is the name of our own question among a result's inputRequests: a page
// where a human may agree. Whatever comes back under it agrees to nothing; one who
// does not open the page is not asked again.
const ApprovalKey = "io.toolbroker/approval"

// sendToHuman is the state with which an agent comes back from a page where a human
// may agree, or none where it has been sent often enough.
func (g *Gateway) sendToHuman(c *life) string {
	s := c.Args.state
	if s.Round++; s.Round > maxSent || c.Protocol < modern || c.Args.refused {
		return ""
	}
	s.Answers = c.Args.answers
	sealed, err := g.seal(c, s)
	if err != nil {
		return "" // it is told to come back later
	}
	return sealed
}

// modern is the first revision of MCP in which a server asks by its result.
const modern = "2026-07-28"
