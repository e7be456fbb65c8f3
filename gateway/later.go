package gateway

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	strict "github.com/go-json-experiment/json"

	"toolbroker/authz"
	"toolbroker/gateway/audit"
)

// What an agent comes back for. A handle holds a call's bytes and never a
// credential: whoever comes back is identified again, must be who got it, on the
// same task, and it is by that credential that a call which a human has agreed to
// meanwhile walks the whole line. A stream that names the handle comes back for its
// agent (watch.go). So nothing runs for an agent that is gone, whose key was revoked,
// or whose task ended.

const (
	pollEvery = 5 * time.Second
	runLease  = 10 * time.Second // a run that says nothing for so long has died
	runBeat   = 2 * time.Second
	runMost   = 30 * time.Minute
	kept      = time.Hour // of what is decided or done, for an agent that is slow to ask
)

// errTakenBack is why the run of a handle ends that was withdrawn.
var errTakenBack = errors.New("the agent cancelled its handle")

// newHandle returns 260 random bits.
func newHandle() string { return strings.ToLower(rand.Text() + rand.Text()) }

// keepHeld keeps a call that waits for a human, and gives the agent a handle.
func (g *Gateway) keepHeld(ctx context.Context, c *life) (Result, error) {
	return g.keep(ctx, c, Handle{
		Approval: c.Request.ID, Message: "Waiting for human approval (" + c.Request.ID + ")", Poll: pollEvery, Expires: c.Request.Expires.Add(kept),
	})
}

// finish is the last look at an answer before it is recorded: a server's task gets a
// handle of ours, and a result that is not what its tool promises is noted.
func (g *Gateway) finish(ctx context.Context, c *life, r Result) (Result, error) {
	switch {
	case r.Type == ResultTask:
		return g.keepRemote(ctx, c, r)
	case c.Tool.Promise == nil || r.Error != nil || r.Type == ResultInput || r.Failed():
		return r, nil
	}
	var body struct {
		Structured json.RawMessage `json:"structuredContent"`
	}
	if json.Unmarshal(r.Raw, &body) != nil || c.Tool.Promise(body.Structured) == nil {
		return r, nil
	}
	f := c.fact(audit.ResultStrange)
	f.Detail = "structuredContent is not what the tool's outputSchema says"
	if err := g.Recorder.Record(context.WithoutCancel(ctx), f); err != nil {
		g.Logger.Error("a strange result not recorded", "call", c.ID, "err", err)
	}
	return r, nil
}

// keepRemote keeps a task that a server made for a call, under a handle of ours:
// the server's own would be anybody's who guesses it.
func (g *Gateway) keepRemote(ctx context.Context, c *life, r Result) (Result, error) {
	t, err := readRemote(r.Raw)
	if err != nil || t.ID == "" || !c.Later {
		return Result{}, fmt.Errorf("%w: a task that cannot be kept", ErrBadAnswer)
	}
	h := Handle{Server: c.Tool.Server, Remote: t.ID, Expires: g.now().Add(t.ttl())}
	t.onto(&h)
	if h.Final() || h.Status == HandleInput {
		h.Status = HandleWorking // the next look says what it is, with its result or questions
	}
	if c.kept {
		return Result{Type: ResultTask, Handle: &h}, nil
	}
	return g.keep(ctx, c, h)
}

func (g *Gateway) keep(ctx context.Context, c *life, h Handle) (Result, error) {
	now := g.now().UTC()
	h.ID, h.Tenant, h.Binding, h.Task = c.handle, c.Principal.Tenant, who(c.Principal, c.Task), c.Task.ID
	h.Status = cmp.Or(h.Status, HandleWorking)
	h.Created, h.Updated = now, now
	h.Call = StoredCall{Method: c.Method, Name: c.Name, Args: c.Args.raw, Meta: c.Meta, Caps: c.Caps, Protocol: c.Protocol}
	h.State, h.Answers = c.State, c.Answers
	if c.Task.Expires.Before(h.Expires) {
		h.Expires = c.Task.Expires
	}
	err := g.Handles.Keep(ctx, h)
	if err == nil {
		h.Seq = 1
		return Result{Type: ResultTask, Handle: &h}, nil
	}
	if uerr := g.unask(ctx, h); uerr != nil { // nobody could come back for it
		g.Logger.Error("approval request of a call that is not kept not withdrawn; it will expire", "approval", h.Approval, "call", c.ID, "err", uerr)
	}
	switch {
	case errors.Is(err, ErrNotNow):
		return Result{}, refuse(NoTask, errTaskEnded)
	case errors.Is(err, ErrTooMany):
		return Result{}, refuse(TooMany, err).say("too many calls of this task wait already")
	}
	return Result{}, refuse(Internal, fmt.Errorf("keep handle: %w", err))
}

// unask takes back what operators were asked for a handle. Where the same was asked
// for another handle, or by a call without one, the request stays.
func (g *Gateway) unask(ctx context.Context, h Handle) error {
	if h.Approval == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.GiveBack)
	defer cancel()
	if err := g.Approvals.Withdraw(ctx, h.Tenant, h.Approval, h.ID); err != nil && !errors.Is(err, ErrNotFound) {
		return refuse(Internal, fmt.Errorf("withdraw approval: %w", err))
	}
	return nil
}

// Look returns what became of a handle (tasks/get), and carries its call out where a
// human has agreed to it meanwhile. c.Name is the handle's id; of c only Credential,
// Name, JSONRPCID and Protocol count. One that is not this caller's on this task is
// [UnknownHandle].
func (g *Gateway) Look(ctx context.Context, in Call) (Handle, error) {
	in.Method = MethodTaskGet
	return g.handled(ctx, in, func(ctx context.Context, c *life, h Handle) (Handle, error) {
		switch {
		case h.Final():
			return h, nil
		case h.Remote != "":
			return g.lookRemote(ctx, c, h)
		case h.Status == HandleInput:
			return h, nil
		case h.Run != "":
			return g.alive(ctx, h)
		}
		return g.lookHeld(ctx, c, h)
	})
}

// Update gives a handle's server the answers it waits for (tasks/update): c.Answers.
func (g *Gateway) Update(ctx context.Context, in Call) (Handle, error) {
	in.Method = MethodTaskUpdate
	return g.handled(ctx, in, func(ctx context.Context, c *life, h Handle) (Handle, error) {
		switch {
		case h.Status != HandleInput:
			return h, badArguments("this task waits for no input")
		case h.Remote == "":
			h.Answers, h.Status, h.Wants, h.Message = c.Answers, HandleWorking, nil, ""
			return g.launch(ctx, c, h)
		}
		if err := g.remote(ctx, c, h, c.Answers); err != nil {
			return h, err
		}
		h.Status, h.Wants, h.Updated = HandleWorking, nil, g.now().UTC()
		return g.move(ctx, h)
	})
}

// Withdraw cancels a handle (tasks/cancel): a call that was not sent yet never is,
// and operators are not asked about it any more. A crash in between leaves a request
// that another Withdraw takes back, or that expires.
func (g *Gateway) Withdraw(ctx context.Context, in Call) (Handle, error) {
	in.Method = MethodTaskCancel
	return g.handled(ctx, in, func(ctx context.Context, c *life, h Handle) (Handle, error) {
		if h.Remote != "" && !h.Final() {
			if err := g.remote(ctx, c, h, nil); err != nil {
				return h, err
			}
		}
		for !h.Final() { // whoever runs it says every moment that it is alive
			next := h
			next.Status, next.Message, next.Wants, next.Updated = HandleCancelled, "cancelled by the agent", nil, g.now().UTC()
			moved, err := g.move(ctx, next)
			if err != nil {
				return h, err
			}
			if h = moved; h.Status == HandleCancelled && h.Remote == "" { // else it is on record since its server was told
				f := c.fact(audit.CallCancelled)
				f.Detail = "the agent cancelled its handle"
				if rerr := g.Recorder.Record(context.WithoutCancel(ctx), f); rerr != nil {
					g.Logger.Error("cancelled handle not recorded", "call", c.ID, "err", rerr)
				}
			}
		}
		if h.Status != HandleCancelled {
			return h, nil
		}
		return h, g.unask(ctx, h)
	})
}

// handled does something about a handle, for whoever got it.
func (g *Gateway) handled(ctx context.Context, in Call, do func(context.Context, *life, Handle) (Handle, error)) (Handle, error) {
	c := &life{Call: in, ID: newID("call")}
	h, err := g.ofCaller(ctx, c)
	if err == nil {
		var land func()
		if ctx, land, err = g.takeOff(ctx, nil, &c.Task); err == nil {
			defer land()
			defer g.giveBack(ctx, c)
			h, err = do(ctx, c, h)
		}
	}
	if err != nil {
		return Handle{}, g.refused(ctx, c, err)
	}
	return h, nil
}

// ofCaller finds the handle that an identified caller names on its running task.
func (g *Gateway) ofCaller(ctx context.Context, c *life) (h Handle, err error) {
	if c.Principal, err = g.Identify(ctx, c.Credential); err != nil {
		return h, err
	}
	if err = g.limit(c.Principal); err != nil {
		return h, err
	}
	if c.Task, err = g.running(ctx, &c.Principal, c.Credential); err != nil {
		return h, err
	}
	h, err = g.Handles.Handle(ctx, c.Principal.Tenant, c.Name)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return h, refuse(Internal, fmt.Errorf("read handle: %w", err))
	}
	if err != nil || subtle.ConstantTimeCompare([]byte(h.Binding), []byte(who(c.Principal, c.Task))) != 1 {
		return h, refuse(UnknownHandle, errors.New("no such handle of this caller's"))
	}
	return h, nil
}

func (g *Gateway) move(ctx context.Context, h Handle) (Handle, error) {
	h, _, err := g.moves(ctx, h)
	return h, err
}

// moves also reports whether h is what was moved to. Where somebody was quicker, what
// they made of it counts.
func (g *Gateway) moves(ctx context.Context, h Handle) (_ Handle, won bool, err error) {
	moved, err := g.Handles.Move(ctx, h)
	switch {
	case err == nil:
		return moved, true, nil
	case errors.Is(err, ErrNotNow):
		if h, err = g.Handles.Handle(ctx, h.Tenant, h.ID); err == nil {
			return h, false, nil
		}
		fallthrough
	case errors.Is(err, ErrNotFound):
		return h, false, refuse(UnknownHandle, err)
	case errors.Is(err, ErrTooMany):
		return h, false, refuse(Downstream, err).say("what the tool's server says of this task is too large to keep")
	}
	return h, false, refuse(Internal, fmt.Errorf("keep handle: %w", err))
}

// lookHeld asks what operators said.
func (g *Gateway) lookHeld(ctx context.Context, c *life, h Handle) (Handle, error) {
	r, err := g.Approvals.Get(ctx, h.Tenant, h.Approval)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return h, refuse(Internal, fmt.Errorf("read approval: %w", err))
	}
	code := ApprovalExpires
	if err == nil {
		switch r.State {
		case ApprovalPending:
			return h, nil
		case ApprovalGranted, ApprovalReserved:
			return g.launch(ctx, c, h)
		case ApprovalDenied:
			code = DeniedByOperator
		case ApprovalVoided, ApprovalConsumed: // an identical call used it up
			code = Denied
		}
	}
	no := refuse(code, nil)
	no.CallID = c.ID
	moved, won, err := g.moves(ctx, h.failed(no, g.now()))
	if won { // whoever looks from here on hears it, and puts nothing on record
		made, _ := g.made(c, h) // what it is about, where that is still there
		if r.ID != "" {
			made.Request = &r
		}
		g.refused(ctx, made, no)
	}
	return moved, err
}

// made is the call that a handle was given for, as whoever comes back for it would
// make it now.
func (g *Gateway) made(c *life, h Handle) (made *life, err error) {
	made = &life{Call: c.Call, ID: c.ID, Principal: c.Principal, Task: c.Task}
	made.Method, made.Name, made.Call.Args, made.Meta, made.Answers, made.State = h.Call.Method, h.Call.Name, h.Call.Args, h.Call.Meta, nil, ""
	if made.Tool, err = g.resolve(made); err != nil {
		return made, err
	}
	made.Args, err = g.read(made)
	return made, err
}

// failed says of a handle that its call was refused.
func (h Handle) failed(r *Refusal, now time.Time) Handle {
	body := map[string]any{"code": -32000, "message": string(r.Code) + ": " + r.Say}
	body["data"] = map[string]any{"io.toolbroker/refusal": map[string]any{"code": r.Code, "call": r.CallID}}
	h.Result.Error, _ = json.Marshal(body) // maps of strings and a number
	h.Status, h.Message, h.Updated, h.Run, h.Refused = HandleFailed, string(r.Code), now.UTC(), "", true
	return h
}

// tooLarge says of a handle that its call was done, and that nobody can read what
// came of it.
func (h Handle) tooLarge(call string, now time.Time) Handle {
	r := refuse(Downstream, ErrTooMany).say("the call was done, but its result is too large to keep; do not repeat it")
	r.CallID = call
	h.Result, h.Wants = Result{}, nil
	return h.failed(r, now)
}

// alive is a handle whose call runs, unless whoever ran it has died.
func (g *Gateway) alive(ctx context.Context, h Handle) (Handle, error) {
	if g.now().Before(h.RunUntil) {
		return h, nil
	}
	r := refuse(InDoubt, nil)
	r.CallID = h.Run
	return g.move(ctx, h.failed(r, g.now()))
}

// launch begins to carry a handle's call out, by the credential that came back for
// it, and does not wait.
func (g *Gateway) launch(ctx context.Context, c *life, h Handle) (Handle, error) {
	run := &life{ID: newID("call"), handle: h.ID, kept: true, Call: Call{
		Credential: c.Credential, Method: h.Call.Method, Name: h.Call.Name, Args: h.Call.Args, Meta: h.Call.Meta, JSONRPCID: c.JSONRPCID,
		Protocol: h.Call.Protocol, Caps: h.Call.Caps, State: h.State, Answers: h.Answers, Later: true,
	}}
	leave, err := g.seat(c.Principal)
	if err != nil {
		return h, err // the handle stays as it is, for the next look
	}
	h.Run, h.RunUntil, h.Message, h.Updated = run.ID, g.now().Add(runLease), "", g.now().UTC()
	if !g.begin() {
		leave()
		return h, refuse(Internal, ErrGoingDown)
	}
	claimed, err := g.move(ctx, h)
	if err != nil || claimed.Run != run.ID {
		leave()
		g.runs.Done()
		return claimed, err
	}
	go func() {
		defer g.runs.Done()
		defer leave()
		g.run(context.WithoutCancel(ctx), run, claimed)
	}()
	return claimed, nil
}

// begin counts a run in, unless the gateway is going down.
func (g *Gateway) begin() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.ending {
		g.runs.Add(1)
	}
	return !g.ending
}

// Finish begins no more calls for handles, lets those that run end until ctx does,
// and cuts the rest off: their handles say that they are in doubt.
func (g *Gateway) Finish(ctx context.Context) {
	g.mu.Lock()
	g.ending = true
	g.mu.Unlock()
	defer context.AfterFunc(ctx, g.cutOff)()
	g.runs.Wait()
}

// run carries a handle's call out and stores what came of it. A crash before that
// leaves a run that says nothing any more: in doubt.
func (g *Gateway) run(ctx context.Context, c *life, h Handle) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ctx, stopClock := context.WithTimeout(ctx, runMost)
	defer stopClock()
	beating := make(chan Handle, 1)
	done := make(chan struct{})
	go func() { beating <- g.beat(ctx, h, done, cancel) }()

	result, err := g.carry(ctx, c)
	if err != nil && CodeOf(err) != PendingApproval {
		err = g.refused(ctx, c, err)
	}
	close(done)
	keep, stop := context.WithTimeout(context.WithoutCancel(ctx), g.GiveBack)
	defer stop()
	if h = <-beating; h.Final() {
		g.unaskRun(keep, c, h)
		return // withdrawn
	}
	h.Run, h.Updated = "", g.now().UTC()
	switch {
	case err != nil && CodeOf(err) == PendingApproval:
		h.Approval, h.Message = c.Request.ID, "Waiting for human approval ("+c.Request.ID+")"
	case err != nil:
		h = h.failed(asRefusal(err), g.now())
	case result.Handle != nil: // the server made a task of it
		h.Server, h.Remote, h.Message = result.Handle.Server, result.Handle.Remote, result.Handle.Message
	case result.Error != nil:
		h.Status, h.Result = HandleFailed, result
	case result.Type == ResultInput:
		h = h.waiting(result)
		h.Result = Result{}
	default:
		h.Status, h.Result = HandleCompleted, result
	}
	_, err = g.Handles.Move(keep, h)
	if errors.Is(err, ErrNotNow) {
		g.unaskRun(keep, c, h)
	}
	if errors.Is(err, ErrTooMany) {
		_, err = g.Handles.Move(keep, h.tooLarge(c.ID, g.now()))
	}
	if err != nil {
		g.Logger.Error("outcome of a kept call not kept; it will read as in doubt", "call", c.ID, "err", err)
	}
}

// unaskRun takes back what a run asked of operators while its handle was withdrawn.
func (g *Gateway) unaskRun(ctx context.Context, c *life, h Handle) {
	if c.Request == nil {
		return
	}
	h.Approval = c.Request.ID
	if err := g.unask(ctx, h); err != nil {
		g.Logger.Error("approval request of a cancelled handle not withdrawn; it will expire", "approval", h.Approval, "call", c.ID, "err", err)
	}
}

// beat says that a run is alive until done is closed, and returns the handle as it
// is then. It cancels a run whose handle was withdrawn, and one that the gateway
// cannot wait for any more.
func (g *Gateway) beat(ctx context.Context, h Handle, done <-chan struct{}, cancel context.CancelCauseFunc) Handle {
	tick := time.NewTicker(runBeat)
	defer tick.Stop()
	down := g.down
	for {
		select {
		case <-done:
			return h
		case <-down:
			cancel(ErrGoingDown)
			down = nil
			continue
		case <-tick.C:
		}
		h.RunUntil = g.now().Add(runLease)
		moved, err := g.Handles.Move(ctx, h)
		switch {
		case err == nil:
			h = moved
		case errors.Is(err, ErrNotNow), errors.Is(err, ErrNotFound):
			cancel(errTakenBack)
			h.Status = HandleCancelled
			<-done
			return h
		}
	}
}

// lookRemote asks a server what became of its task.
func (g *Gateway) lookRemote(ctx context.Context, c *life, h Handle) (Handle, error) {
	if h.Run != "" && g.now().Before(h.RunUntil) {
		return h, nil // somebody is putting its end on record
	}
	made, result, blanked, err := g.askRemote(ctx, c, h, nil)
	if err != nil {
		return h, err
	}
	was := h
	if result.Error != nil {
		h.Status, h.Result, h.Wants = HandleFailed, result, nil
		return g.came(ctx, c, made, was, h, blanked)
	}
	t, err := readRemote(result.Raw)
	if err == nil && t.Status == HandleInput && len(t.Asks) == 0 { // what makes a task may leave them to this
		err = fmt.Errorf("%w: a task that waits for nothing", ErrBadAnswer)
	}
	if err != nil {
		return h, g.recordFailure(ctx, c, err)
	}
	for _, a := range t.Asks {
		if _, err := g.decideAsk(ctx, c, g.caps(c), a.Method, a.Params); err != nil {
			return h, err
		}
	}
	t.onto(&h)
	switch {
	case h.Final():
		return g.came(ctx, c, made, was, h, blanked)
	case was.Status == h.Status:
		return h, nil // nothing to remember
	}
	h.Updated = g.now().UTC()
	return g.move(ctx, h)
}

// came has what a server's task came to go the way of an answer to its call, made. Where
// that wants pages to be opened first, the server's task is over, and the call is made
// again when the agent says that they are open.
func (g *Gateway) came(ctx context.Context, c, made *life, was, h Handle, blanked int) (Handle, error) {
	if h.Status == HandleCancelled {
		return g.ended(ctx, c, was, h, blanked, nil)
	}
	if s, err := g.unseal(made, h.State, made.Args.bare); err == nil {
		made.Args.state.Pages = s.Pages
	}
	var says struct {
		Type string `json:"resultType"`
	}
	_ = strict.Unmarshal(h.Result.Raw, &says) // what cannot be read is refused below
	h.Result.Type, made.Protocol = says.Type, h.Call.Protocol
	caps := g.caps(made)
	if made.Decision.Verdict == authz.Approve {
		caps = nil // as in a call that was approved
	}
	r, err := g.take(ctx, made, caps, h.Result)
	if err == nil && h.Result.Error == nil && r.Type != "" && r.Type != ResultComplete {
		err = fmt.Errorf("%w: a task that comes to no answer", ErrBadAnswer)
	}
	if refused, ok := errors.AsType[*Refusal](err); ctx.Err() != nil || ok && refused.Code == Internal {
		return h, err // it is decided at another look
	}
	if h.Result = r; err == nil && r.Type == ResultInput {
		h = h.waiting(r)
		h.Server, h.Remote = "", ""
	}
	return g.ended(ctx, c, was, h, blanked, err)
}

// waiting is a handle whose agent is asked something before its call can go on.
func (h Handle) waiting(r Result) Handle {
	w, _ := readWants(r.Raw) // read before
	h.Status, h.Result, h.State = HandleInput, r, ""
	h.Wants, _ = json.Marshal(w.asks) // was JSON
	if w.state != nil {
		h.State = *w.state
	}
	return h
}

// ended puts on record how a server's task ended, before anybody reads it, and once,
// whoever else looks on whatever replica: whoever is the first to say so of the
// handle does it. A crash in between leaves a handle whose end somebody else finds,
// and says once more. What it came to cannot be used where bad says why.
func (g *Gateway) ended(ctx context.Context, c *life, was, h Handle, blanked int, bad error) (Handle, error) {
	now := g.now().UTC()
	was.Run, was.RunUntil = c.ID, now.Add(runLease)
	claimed, won, err := g.moves(ctx, was)
	if err != nil || !won {
		return claimed, err
	}
	c.Sent = h.Created // its call's
	switch {
	case h.Status == HandleCancelled:
		f := c.fact(audit.CallCancelled)
		f.Outcome, f.Detail = &Outcome{Status: "cancelled", Latency: now.Sub(h.Created)}, "the server says that it cancelled its task"
		if err := g.Recorder.Record(context.WithoutCancel(ctx), f); err != nil {
			return h, refuse(Internal, fmt.Errorf("record outcome: %w", err))
		}
	case bad != nil:
		h = h.failed(asRefusal(g.recordFailure(ctx, c, bad)), now)
	default:
		r, err := g.finish(ctx, c, h.Result)
		if err == nil {
			err = g.recordOutcome(ctx, c, r, blanked)
		}
		if err != nil {
			return h, err
		}
	}
	h.Seq, h.Run, h.RunUntil, h.Updated = claimed.Seq, "", time.Time{}, now
	if !h.Final() {
		h.Result = Result{} // it is what is asked
	}
	moved, err := g.move(ctx, h)
	if errors.Is(err, ErrTooMany) {
		return g.move(ctx, h.tooLarge(c.ID, now))
	}
	return moved, err
}

// remote tells a server something about its task, and puts on record that it heard.
func (g *Gateway) remote(ctx context.Context, c *life, h Handle, answers json.RawMessage) error {
	_, result, blanked, err := g.askRemote(ctx, c, h, answers)
	switch {
	case err != nil:
		return err
	case result.Error != nil:
		return g.recordFailure(ctx, c, fmt.Errorf("%w: the server refused", ErrBadAnswer))
	case c.Method != MethodTaskCancel:
		return g.recordOutcome(ctx, c, result, blanked)
	}
	f := c.fact(audit.CallCancelled)
	f.Outcome, f.Detail = &Outcome{Status: "cancelled", Latency: g.now().Sub(c.Sent)}, "the agent cancelled its handle, and the server was told; it may have run"
	if err := g.Recorder.Record(context.WithoutCancel(ctx), f); err != nil {
		return refuse(Internal, fmt.Errorf("record outcome: %w", err))
	}
	return nil
}

// askRemote sends one request about a server's task, decided like the call that
// made it, which made is again. What an approved call's server asks later nobody has
// approved.
func (g *Gateway) askRemote(ctx context.Context, c *life, h Handle, answers json.RawMessage) (made *life, _ Result, blanked int, err error) {
	leave, err := g.seat(c.Principal)
	if err != nil {
		return nil, Result{}, 0, err
	}
	defer leave()
	c.Call.Caps, c.Call.Later = h.Call.Caps, true
	look, err := g.made(c, h)
	c.Tool, c.Args = look.Tool, look.Args
	switch {
	case err != nil && CodeOf(err) == UnknownTool:
		return nil, Result{}, 0, err
	case look.Tool.Server != h.Server:
		return nil, Result{}, 0, refuse(UnknownHandle, errors.New("its tool is another server's now"))
	case err != nil:
		return nil, Result{}, 0, err
	}
	if c.Decision, err = g.decide(look); err != nil {
		return nil, Result{}, 0, err
	}
	if answers != nil && c.Decision.Verdict == authz.Approve {
		return nil, Result{}, 0, refuse(Denied, errors.New("answers to an approved call")).say("a human approved this call without these answers; make a new call")
	}
	if err = c.keeps(answers); err != nil {
		return nil, Result{}, 0, err
	}
	if answers != nil && alike(answers, names{"*": answerNames}) != nil { // as strictly as arguments
		return nil, Result{}, 0, badArguments("inputResponses must be JSON that can be read in one way only")
	}
	if c.Method != MethodTaskGet { // a look that changes nothing is no event
		if err = g.recordDecision(ctx, c); err != nil {
			return nil, Result{}, 0, err
		}
	}
	if c.Lease, err = g.lease(ctx, c); err != nil {
		return nil, Result{}, 0, err
	}
	look.Decision, look.Lease = c.Decision, c.Lease
	if err = g.stillStands(ctx, look); err != nil { // a queue for a lease can take seconds
		return nil, Result{}, 0, err
	}
	if err = g.recordUse(ctx, c); err != nil {
		return nil, Result{}, 0, err
	}
	c.Sent = g.now()
	result, err := g.Servers.Forward(ctx, Forward{
		CallID: c.ID, Method: c.Method, Tool: c.Tool, Remote: h.Remote, Answers: answers, Caps: g.caps(c), Protocol: h.Call.Protocol,
		Principal: c.Principal, Task: c.Task, Session: c.Credential.Session, Lease: c.Lease,
	}, &back{g: g, c: c})
	if err == nil {
		result, blanked, err = g.mesh.result(result)
	}
	if err != nil {
		return nil, Result{}, 0, g.recordFailure(ctx, c, err)
	}
	return look, result, blanked, nil
}

// A remoteTask is a task of the MCP tasks extension as its server tells of it.
type remoteTask struct {
	ID      string          `json:"taskId"`
	Status  string          `json:"status"`
	Message string          `json:"statusMessage"`
	TTL     *int64          `json:"ttlMs"`
	Poll    *int64          `json:"pollIntervalMs"`
	Result  json.RawMessage `json:"result"`
	Error   json.RawMessage `json:"error"`
	Asks    map[string]want `json:"inputRequests"`
	asks    json.RawMessage
}

func readRemote(raw json.RawMessage) (t remoteTask, err error) {
	bad := fmt.Errorf("%w: a task that cannot be read", ErrBadAnswer)
	if _, err := topAlike(raw, taskNames); err != nil {
		return t, bad
	}
	if strict.Unmarshal(raw, &t) != nil || len(t.ID) > 512 || len(t.Asks) > maxAsks {
		return t, bad
	}
	switch t.Status {
	case HandleWorking, HandleCancelled:
	case HandleInput:
		if t.asks, err = json.Marshal(t.Asks); err != nil {
			return t, bad
		}
	case HandleCompleted, HandleFailed:
	default:
		return t, bad
	}
	return t, nil
}

// ttl is how long the server keeps it, within what we keep.
func (t remoteTask) ttl() time.Duration {
	const most = 24 * time.Hour
	if t.TTL == nil || *t.TTL <= 0 || *t.TTL > most.Milliseconds() {
		return most
	}
	return time.Duration(*t.TTL) * time.Millisecond
}

// onto writes what the server says onto a handle.
func (t remoteTask) onto(h *Handle) {
	h.Status, h.Message, h.Wants = t.Status, clipTo(t.Message, 500), t.asks
	h.Result = Result{Raw: t.Result, Error: t.Error}
	if t.Status == HandleFailed && t.Error == nil {
		h.Result.Error = json.RawMessage(`{"code":-32603,"message":"the tool's server says that its task failed, and not why"}`)
	}
	if h.Poll = pollEvery; t.Poll != nil && *t.Poll >= 0 && *t.Poll < pollEvery.Milliseconds()*100 {
		h.Poll = time.Duration(*t.Poll) * time.Millisecond
	}
}
