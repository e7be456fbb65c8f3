package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	strict "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"toolbroker/authz"
	"toolbroker/gateway/audit"
)

// What a server asks back is a decision of its own, and denied by default: it
// could phish a human, or spend an agent's model, or learn what it was not told.
var asks = map[string]struct {
	action authz.Action
	cap    string // the client capability behind it
	say    string
	params names
}{
	MethodElicit: {authz.Elicit, "elicitation", "put a question to a human", elicitNames},
	MethodSample: {authz.Sample, "sampling", "use the agent's model", sampleNames},
	MethodRoots:  {authz.Roots, "roots", "see the agent's roots", of("_meta")},
}

const (
	maxAsks   = 32 // of one call
	maxRounds = 10 // of asking, within one call of a legacy agent; as clients give up too
)

const (
	tasksExtension = "io.modelcontextprotocol/tasks" // the capability by which an agent takes handles
	uiExtension    = "io.modelcontextprotocol/ui"    // by which it shows the pages of MCP Apps; that asks for nothing
)

// extensions are those capabilities of a client that servers hear of.
func extensions(all map[string]json.RawMessage, names ...string) json.RawMessage {
	var has map[string]json.RawMessage
	if json.Unmarshal(all["extensions"], &has) != nil {
		return nil
	}
	maps.DeleteFunc(has, func(name string, v json.RawMessage) bool { return v == nil || !slices.Contains(names, name) })
	if len(has) == 0 {
		return nil
	}
	out, err := json.Marshal(has)
	if err != nil {
		return nil
	}
	return out
}

// isEmpty spares reading what most clients declare.
func isEmpty(caps json.RawMessage) bool { return len(caps) == 0 || string(caps) == "{}" }

// caps is what a server may ask of this agent: what the agent says that it can do,
// without what policy could never let this tool ask.
func (g *Gateway) caps(c *life) json.RawMessage {
	if isEmpty(c.Caps) {
		return nil
	}
	var all map[string]json.RawMessage
	if json.Unmarshal(c.Caps, &all) != nil {
		return nil
	}
	kept := map[string]json.RawMessage{}
	for _, a := range asks {
		if v, ok := all[a.cap]; ok && g.could(c.Principal, c.Task, c.Tool, a.action).Verdict != authz.Deny {
			kept[a.cap] = v
		}
	}
	heard := []string{uiExtension}
	if c.Later {
		heard = append(heard, tasksExtension)
	}
	if more := extensions(all, heard...); more != nil {
		kept["extensions"] = more
	}
	if len(kept) == 0 {
		return nil
	}
	out, err := json.Marshal(kept)
	if err != nil {
		return nil
	}
	return out
}

// converse sends a call and sees to what the server asks before it answers. A
// server that asks by its result is answered within the call where the agent can
// be asked within it, and else by the agent's next call.
func (g *Gateway) converse(ctx context.Context, c *life) (Result, error) {
	f := Forward{
		CallID: c.ID, Method: c.Method, Tool: c.Tool, Args: c.Args.raw, Meta: c.Args.outgoing(), Caps: g.caps(c), LogLevel: c.LogLevel,
		Answers: c.Args.answers, Protocol: c.Protocol, Progress: c.Stream != nil && c.Args.progress, Principal: c.Principal, Task: c.Task, Session: c.Credential.Session, Once: c.Once, Lease: c.Lease,
	}
	if inner := c.Args.state.Inner; inner != nil {
		f.State = *inner
	}
	g.tie(c, &f)
	back := &back{g: g, c: c, caps: f.Caps}
	for range maxRounds {
		r, err := g.Servers.Forward(ctx, f, back)
		fault := r.Error != nil
		if err == nil {
			r, err = g.take(ctx, c, f.Caps, r)
		}
		if err != nil {
			return Result{}, err
		}
		if fault || r.Type != ResultInput {
			return r, nil
		}
		w, err := readWants(r.Raw)
		if err != nil {
			return Result{}, err
		}
		if c.Protocol >= modern {
			return g.passOn(ctx, c, r, w, f.Caps)
		}
		if f.Answers, err = back.askAll(ctx, w); err != nil {
			return Result{}, err
		}
		if f.State = ""; w.state != nil {
			f.State = *w.state
		}
	}
	return Result{}, fmt.Errorf("%w: the server asks without end", ErrBadAnswer)
}

// take looks at an answer to a call before anything is made of it, be it the answer
// itself or what a server's task came to. It can be read in one way only, and where it
// sends a human to pages, those are decided and put as its agent knows them.
func (g *Gateway) take(ctx context.Context, c *life, caps json.RawMessage, r Result) (Result, error) {
	err := readable(&r)
	if err == nil && r.Error != nil {
		if err = g.mayRedirect(ctx, c, caps, r.Error); err == nil {
			return g.sendToPages(ctx, c, caps, r)
		}
	}
	return r, err
}

// mayRedirect decides about an error that sends a human to an address (-32042 of
// 2025-11-25): it asks like an elicitation does.
func (g *Gateway) mayRedirect(ctx context.Context, c *life, caps, fault json.RawMessage) error {
	const required = -32042
	var body struct {
		Code int64           `json:"code"`
		Data json.RawMessage `json:"data"`
	}
	if strict.Unmarshal(fault, &body) != nil {
		return fmt.Errorf("%w: an error that cannot be read", ErrBadAnswer)
	}
	if body.Code != required {
		return nil
	}
	var data struct {
		Elicitations []json.RawMessage `json:"elicitations"`
	}
	if alike(body.Data, redirectNames) != nil || strict.Unmarshal(body.Data, &data) != nil || len(data.Elicitations) == 0 {
		return fmt.Errorf("%w: it wants pages to be opened, and which cannot be read", ErrBadAnswer)
	}
	if c.Request != nil {
		caps = nil // nothing is asked about a call that was approved as it is
	}
	for _, e := range data.Elicitations {
		if modeOf(e) != "url" { // clients open all of them, whatever they say
			return fmt.Errorf("%w: it wants a page to be opened that it does not call one", ErrBadAnswer)
		}
		if _, err := g.decideAsk(ctx, c, caps, MethodElicit, e); err != nil {
			return err
		}
	}
	return nil
}

// wants is what an input_required asks for.
type wants struct {
	asks  map[string]want
	keys  []string // of asks, sorted
	state *string
}

type want struct {
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
}

func readWants(raw json.RawMessage) (w wants, err error) {
	var body struct {
		Asks  map[string]want `json:"inputRequests"`
		State *string         `json:"requestState"`
	}
	if alike(raw, inputNames) != nil || strict.Unmarshal(raw, &body) != nil || len(body.Asks) > maxAsks || len(body.Asks) == 0 && body.State == nil {
		return w, fmt.Errorf("%w: what the server asks for cannot be read", ErrBadAnswer)
	}
	w.asks, w.state = body.Asks, body.State
	for key := range body.Asks {
		if isOurs(key) {
			return w, fmt.Errorf("%w: the server asks in our name", ErrBadAnswer)
		}
		w.keys = append(w.keys, key)
	}
	slices.Sort(w.keys)
	return w, nil
}

// passOn gives the agent what the server asks for, once each question is decided,
// with our state around the server's. The agent's answers are a call of their own;
// where a human has to agree to that one, they see what was asked.
func (g *Gateway) passOn(ctx context.Context, c *life, r Result, w wants, caps json.RawMessage) (Result, error) {
	asked := map[string]want{}
	for _, key := range w.keys {
		params, err := g.decideAsk(ctx, c, caps, w.asks[key].Method, w.asks[key].Params)
		if err != nil {
			return Result{}, err
		}
		asked[key] = want{Method: w.asks[key].Method, Params: params}
	}
	questions, err := json.Marshal(asked)
	if err != nil {
		return Result{}, fmt.Errorf("%w: %w", ErrBadAnswer, err)
	}
	if len(questions) > maxQuestions {
		questions = nil
	}
	sealed, err := g.seal(c, state{Inner: w.state, Asked: w.keys, Questions: questions})
	if err != nil {
		return Result{}, fmt.Errorf("%w: %w", ErrBadAnswer, err)
	}
	if r.Raw, err = replace(r.Raw, "requestState", sealed); err != nil {
		return Result{}, fmt.Errorf("%w: %w", ErrBadAnswer, err)
	}
	return r, nil
}

// replace sets a text member of an object, and leaves every other byte of the
// members as it is.
func replace(object json.RawMessage, name, value string) (json.RawMessage, error) {
	quoted, err := jsontext.AppendQuote(nil, value)
	if err != nil {
		return nil, err
	}
	d := jsontext.NewDecoder(bytes.NewReader(object))
	if _, err := d.ReadToken(); err != nil {
		return nil, err
	}
	out := []byte("{")
	for d.PeekKind() == '"' {
		key, err := d.ReadValue()
		if err != nil {
			return nil, err
		}
		key = key.Clone()
		v, err := d.ReadValue()
		if err != nil {
			return nil, err
		}
		if text, _ := jsontext.AppendUnquote(nil, key); string(text) == name {
			continue
		}
		out = append(append(append(append(out, key...), ':'), v...), ',')
	}
	if _, err := d.ReadToken(); err != nil {
		return nil, err
	}
	out = append(append(out, `"`+name+`":`...), quoted...)
	return append(out, '}'), nil
}

// decideAsk asks policy whether the server may ask this, now, and puts the answer
// on record before the question leaves. Where a human would have to agree, nobody
// waits: it is denied. What it returns is the question without our secrets, on
// which it decided.
func (g *Gateway) decideAsk(ctx context.Context, c *life, caps json.RawMessage, method string, params json.RawMessage) (json.RawMessage, error) {
	params, f, err := g.weighAsk(c, caps, method, params)
	if err != nil && f.Type == "" {
		return nil, err
	}
	if err != nil {
		if rerr := g.Recorder.Record(context.WithoutCancel(ctx), f); rerr != nil {
			return nil, refuse(Internal, fmt.Errorf("record: %w", rerr))
		}
		return nil, err
	}
	if err := g.Recorder.Durable(ctx, f); err != nil {
		return nil, refuse(Internal, fmt.Errorf("record: %w", err))
	}
	return params, nil
}

// weighAsk is the decision, and what is to be on record of it; a question that nobody
// knows, and one too many, end the call and are none.
func (g *Gateway) weighAsk(c *life, caps json.RawMessage, method string, params json.RawMessage) (json.RawMessage, Fact, error) {
	a, known := asks[method]
	var can map[string]json.RawMessage
	_ = json.Unmarshal(caps, &can) // made by caps, or nil
	n := c.asked.Add(1)
	switch {
	case !known:
		return nil, Fact{}, refuse(Downstream, errors.New("the server asks for what is not known here")).say("the tool's server asked for something that cannot be passed on")
	case n > maxAsks:
		return nil, Fact{}, refuse(Downstream, errors.New("the server asks too much")).say("the tool's server asked too much")
	}
	params, _, err := g.mesh.json(params)
	if err == nil {
		err = readAsk(method, params)
	}
	d := authz.Decision{Reason: "what cannot be read is not decided", Revision: g.Policy.Revision()}
	if err == nil {
		d = g.ask(c.Task, g.question(c.Principal, c.Task, c.Tool.ID(), a.action, asArgs(method, params)))
	}
	f := c.fact(audit.AskAllowed)
	f.Call.Method, f.Decision, f.Args = method, &d, &ArgsRef{Bytes: len(params), Canonical: sha(params), Raw: sha(params)}
	var refused *Refusal
	switch {
	case err != nil:
		refused = refuse(Downstream, fmt.Errorf("%w: what the server asks: %w", ErrBadAnswer, err)).say("the tool's server asked for something that cannot be passed on")
	case d.Verdict != authz.Allow:
		refused = refuse(Denied, errors.New("the server asked to "+a.say)).say("the tool's server asked to " + a.say + ", which this task does not let it")
	case can[a.cap] == nil:
		refused = refuse(Downstream, errors.New("the server asked what the agent cannot answer")).say("the tool's server asked to " + a.say + ", which this client did not offer")
	}
	if refused != nil {
		f.Type, f.Code, f.Detail = audit.AskDenied, refused.Code, refused.detail()
		return nil, f, refused
	}
	return params, f, nil
}

// readAsk refuses a question that some client would read otherwise than we decide
// on it.
func readAsk(method string, params json.RawMessage) error {
	if len(params) == 0 {
		return nil
	}
	if jsontext.Value(params).Kind() != '{' {
		return errors.New("it is no object")
	}
	if err := alike(params, asks[method].params); err != nil {
		return err
	}
	if mode := modeOf(params); method == MethodElicit && mode != "form" && mode != "url" {
		return errors.New("it has a mode that nobody knows")
	}
	return nil
}

// modeOf is how an elicitation wants to be answered. One that does not say is a
// form, in every revision that has modes.
func modeOf(params json.RawMessage) string {
	var in struct {
		Mode json.RawMessage `json:"mode"`
	}
	switch {
	case strict.Unmarshal(params, &in) != nil:
		return ""
	case in.Mode == nil:
		return "form"
	}
	mode, _ := jsontext.AppendUnquote(nil, in.Mode) // what is no string is no mode
	return string(mode)
}

// asArgs is what a condition reads of a question. An elicitation that says no mode
// is a form, in every revision that has modes.
func asArgs(method string, params json.RawMessage) json.RawMessage {
	var all map[string]json.RawMessage
	if method != MethodElicit || len(params) > 0 && json.Unmarshal(params, &all) != nil || all["mode"] != nil {
		return params
	}
	if all == nil {
		all = map[string]json.RawMessage{}
	}
	all["mode"] = json.RawMessage(`"form"`)
	out, err := json.Marshal(all)
	if err != nil {
		return params
	}
	return out
}

// back is the way from a server to the agent during a call: every frame is blanked
// before it leaves, and what is asked is decided first.
type back struct {
	g    *Gateway
	c    *life
	caps json.RawMessage
}

func (b *back) Notify(ctx context.Context, method string, params json.RawMessage) error {
	if b.c.Stream == nil {
		return nil
	}
	params, _, err := b.g.mesh.json(params)
	if err != nil {
		return nil // a frame that cannot be blanked is not sent; the call goes on
	}
	return b.c.Stream.Notify(ctx, method, params)
}

// Ask refuses whatever an approved call's server asks: what was approved are bytes
// that are known, and an answer would be others.
func (b *back) Ask(ctx context.Context, method string, params json.RawMessage) (Result, error) {
	params, err := b.g.decideAsk(ctx, b.c, b.can(), method, params)
	if err != nil {
		return Result{}, fmt.Errorf("%w: %w", ErrCannotAsk, err)
	}
	r, err := b.c.Stream.Ask(ctx, method, params)
	if err == nil {
		err = b.c.keeps(r.Raw, r.Error)
	}
	if err == nil {
		err = readAnswer(r)
	}
	f := b.c.fact(audit.AskAnswered)
	f.Call.Method, f.Detail = method, answered(r, err)
	if rerr := b.g.Recorder.Record(context.WithoutCancel(ctx), f); rerr != nil {
		return Result{}, refuse(Internal, fmt.Errorf("record: %w", rerr))
	}
	if err != nil {
		return Result{}, err
	}
	return r, nil
}

// can is what the agent can be asked beside the call. That a server tries what it can
// not is on record.
func (b *back) can() json.RawMessage {
	if b.c.Request != nil || b.c.Stream == nil || b.c.Protocol >= modern {
		return nil
	}
	return b.caps
}

// AskFor implements [Joint]. Calls of no session, or of several, are not of one agent:
// nobody can be asked for them. What one call may not be asked, none is.
func (b *back) AskFor(ctx context.Context, calls []Stream, method string, params json.RawMessage) (Result, error) {
	all := make([]*back, len(calls))
	for i, s := range calls {
		one, ok := s.(*back)
		if !ok {
			return Result{}, ErrCannotAsk
		}
		all[i] = one
	}
	question, facts, err := b.weighFor(all, method, params)
	if err != nil {
		if rerr := b.g.Recorder.Record(context.WithoutCancel(ctx), facts...); rerr != nil {
			return Result{}, refuse(Internal, fmt.Errorf("record: %w", rerr))
		}
		return Result{}, fmt.Errorf("%w: %w", ErrCannotAsk, err)
	}
	if err := b.g.Recorder.Durable(ctx, facts...); err != nil {
		return Result{}, refuse(Internal, fmt.Errorf("record: %w", err))
	}
	var r Result
	for _, one := range all { // the first whose stream takes it
		if r, err = one.c.Stream.Ask(ctx, method, question); err == nil || ctx.Err() != nil {
			break
		}
	}
	for _, one := range all {
		if err == nil {
			err = one.c.keeps(r.Raw, r.Error)
		}
	}
	if err == nil {
		err = readAnswer(r)
	}
	for i := range facts {
		facts[i].Type, facts[i].Detail = audit.AskAnswered, answered(r, err)
	}
	if rerr := b.g.Recorder.Record(context.WithoutCancel(ctx), facts...); rerr != nil {
		return Result{}, refuse(Internal, fmt.Errorf("record: %w", rerr))
	}
	if err != nil {
		return Result{}, err
	}
	return r, nil
}

// weighFor decides a question for each of several calls. Where one of them may not be
// asked it, all facts say that it was denied.
func (b *back) weighFor(all []*back, method string, params json.RawMessage) (question json.RawMessage, facts []Fact, err error) {
	session := b.c.Credential.Session
	for _, one := range all {
		caps := one.can()
		if session == "" || one.c.Credential.Session != session {
			caps = nil
		}
		asked, f, no := b.g.weighAsk(one.c, caps, method, params)
		if err == nil {
			err = no
		}
		if question = asked; f.Type != "" {
			facts = append(facts, f)
		}
	}
	if err == nil {
		return question, facts, nil
	}
	for i := range facts {
		if facts[i].Type == audit.AskAllowed {
			facts[i].Type, facts[i].Code, facts[i].Detail = audit.AskDenied, Denied, "another call is under way, and the server may not ask this for that one"
		}
	}
	return nil, facts, err
}

// readAnswer refuses an agent's answer that its server could read otherwise than
// those who look at it here.
func readAnswer(r Result) error {
	what, known := r.Raw, answerNames
	if r.Error != nil {
		what, known = r.Error, errorNames
	}
	if err := alike(what, known); err != nil {
		return fmt.Errorf("the agent's answer: %w", err)
	}
	return nil
}

// answered says how, and nothing of what.
func answered(r Result, err error) string {
	var body struct {
		Action string `json:"action"`
	}
	switch {
	case err != nil:
		return "no answer"
	case r.Error != nil:
		return "an error"
	case strict.Unmarshal(r.Raw, &body) == nil && slices.Contains([]string{"accept", "decline", "cancel"}, body.Action):
		return body.Action
	}
	return "answered"
}

// askAll puts every question of a server to a legacy agent, one after another.
func (b *back) askAll(ctx context.Context, w wants) (json.RawMessage, error) {
	answers := map[string]json.RawMessage{}
	for _, key := range w.keys {
		r, err := b.Ask(ctx, w.asks[key].Method, w.asks[key].Params)
		if refused, ok := errors.AsType[*Refusal](err); ok {
			return nil, refused
		}
		if err != nil || r.Error != nil {
			return nil, refuse(Downstream, errors.New("the server asked what the agent did not answer")).
				say("the tool's server needs an answer that this client did not give")
		}
		answers[key] = r.Raw
	}
	return json.Marshal(answers)
}
