package edge

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
)

const (
	recheck    = time.Second            // how often a stream asks whether it may go on
	noticeGap  = 250 * time.Millisecond // between two looks at what changed: a server that changes all the time costs this much
	maxStreams = 32                     // of one principal, on this replica
	firstRetry = time.Second            // of a resource that could not be followed
	lastRetry  = 30 * time.Second
)

// feeds are the streams of notices that are open on this replica. The zero value
// is ready.
type feeds struct {
	mu  sync.Mutex
	all map[*feed]struct{}
	of  map[string]int // streams of a principal
}

// open adds a stream, or reports that its principal has enough of them.
func (f *feeds) open(one *feed) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.of[one.owner] >= maxStreams {
		return false
	}
	if f.all == nil {
		f.all, f.of = map[*feed]struct{}{}, map[string]int{}
	}
	f.all[one] = struct{}{}
	f.of[one.owner]++
	return true
}

func (f *feeds) close(one *feed) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.all, one)
	if f.of[one.owner]--; f.of[one.owner] <= 0 {
		delete(f.of, one.owner)
	}
}

// changed tells a session's stream that it follows something else.
func (f *feeds) changed(session string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for one := range f.all {
		if one.cred.Session == session {
			one.mark(func() { one.stale = true })
		}
	}
}

// Changed says that what servers offer of these sorts, or who may see it, is not
// what it was; of every sort where none is named. Agents that listen, and for whom
// something did change, are told to list it again.
func (e *Edge) Changed(sorts ...gateway.Sort) {
	if len(sorts) == 0 {
		sorts = []gateway.Sort{gateway.SortTool, gateway.SortResource, gateway.SortTemplate, gateway.SortPrompt}
	}
	e.feeds.mu.Lock()
	defer e.feeds.mu.Unlock()
	for one := range e.feeds.all {
		one.mark(func() {
			for _, s := range sorts {
				one.dirty[s] = true
			}
		})
	}
}

// A feed is one stream of notices to one agent: a legacy session's, or one that
// was asked for by subscriptions/listen. Whatever happens while it is busy is
// merged: it holds marks, no queue.
type feed struct {
	edge     *Edge
	cred     gateway.Credential
	owner    string                // principal, for counting
	lists    map[gateway.Sort]bool // whose changes it wants to hear of
	uris     []string              // resources that it follows; a session's are kept with the session
	id       jsontext.Value        // of the subscription, or nil
	protocol string
	caps     jsontext.Value
	stays    bool // it outlives a task: what it may not hear now it may hear later

	send  func(msg []byte) error
	quiet func() error // keeps the connection alive; nil for none

	poke chan struct{} // something is marked

	mu      sync.Mutex
	dirty   map[gateway.Sort]bool
	updated map[string]bool // resources
	ended   []string        // elicitations that are complete
	stale   bool            // the session follows something else

	// run's own
	seen    map[gateway.Sort]string
	follows map[string]*following
}

// A following is one resource that a feed hears of.
type following struct {
	stop context.CancelFunc
	over chan struct{} // closed once nothing more will come of it
}

// everyList is what a legacy session hears of.
func everyList() map[gateway.Sort]bool {
	return map[gateway.Sort]bool{gateway.SortTool: true, gateway.SortResource: true, gateway.SortTemplate: true, gateway.SortPrompt: true}
}

func (e *Edge) newFeed(r request, who gateway.Principal, lists map[gateway.Sort]bool, uris []string) *feed {
	return &feed{edge: e, cred: r.cred, owner: who.Tenant + "\n" + who.ID, lists: lists, uris: uris, protocol: r.protocol, caps: r.caps,
		poke: make(chan struct{}, 1), dirty: map[gateway.Sort]bool{}, updated: map[string]bool{},
		seen: map[gateway.Sort]string{}, follows: map[string]*following{}}
}

// mark changes what is marked, and wakes run.
func (f *feed) mark(change func()) {
	f.mu.Lock()
	change()
	f.mu.Unlock()
	select {
	case f.poke <- struct{}{}:
	default: // it is awake
	}
}

// look remembers what the lists show now: what changes from here on is told. It
// comes after the feed is among the open ones, so that no change is missed.
func (f *feed) look(ctx context.Context) {
	for s := range f.lists {
		f.seen[s], _ = f.edge.Gateway.Shown(ctx, f.cred, s) // one that cannot be had differs from any
	}
}

// run sends notices until ctx ends, the agent does not read, or the stream may not
// go on, and says which.
func (f *feed) run(ctx context.Context) error {
	defer f.unfollow()
	f.refollow(ctx, false)
	tick := time.NewTicker(recheck)
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-f.poke:
			if err := f.deliver(ctx); err != nil {
				return err
			}
			select { // and what comes meanwhile is looked at together
			case <-time.After(noticeGap):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		case <-tick.C:
			quiet := n%int(keepAlive/recheck) == 0
			if err := f.mayGoOn(ctx, quiet); err != nil && gateway.CodeOf(err) != gateway.Internal && !f.stays {
				return errNotAllowed
			}
			if quiet && f.quiet != nil {
				if err := f.quiet(); err != nil {
					return err
				}
			}
			f.refollow(ctx, false)
			if f.isMarked() {
				if err := f.deliver(ctx); err != nil {
					return err
				}
			}
		}
	}
}

// mayGoOn asks whether the stream's credential and task are still good, and with
// session whether that is as well, which can cost a round trip. A gateway that
// cannot tell right now ends no stream: nothing is sent on it before it can.
func (f *feed) mayGoOn(ctx context.Context, session bool) error {
	cred := f.cred
	if !session {
		cred.Session = ""
	}
	_, _, err := f.edge.Gateway.Admit(ctx, cred)
	return err
}

func (f *feed) isMarked() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.dirty) > 0 || len(f.updated) > 0 || len(f.ended) > 0
}

// deliver sends a notice for everything that is marked and that this agent may
// hear of. What cannot be told right now stays marked for the next tick.
func (f *feed) deliver(ctx context.Context) error {
	f.mu.Lock()
	dirty, updated, ended, stale := f.dirty, f.updated, f.ended, f.stale
	f.dirty, f.updated, f.ended, f.stale = map[gateway.Sort]bool{}, map[string]bool{}, nil, false
	f.mu.Unlock()
	if changed := dirty[gateway.SortResource] || dirty[gateway.SortTemplate]; stale || changed {
		f.refollow(ctx, changed)
	}
	if len(dirty) == 0 && len(updated) == 0 && len(ended) == 0 {
		return nil
	}
	later := func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for s := range dirty {
			f.dirty[s] = true
		}
		for uri := range updated {
			f.updated[uri] = true
		}
		f.ended = append(f.ended, ended...)
	}
	if err := f.mayGoOn(ctx, true); err != nil {
		if gateway.CodeOf(err) != gateway.Internal && !f.stays {
			return errNotAllowed
		}
		later()
		return nil
	}
	told := map[string]bool{}
	for s := range dirty {
		if !f.lists[s] {
			continue
		}
		shown, err := f.edge.Gateway.Shown(ctx, f.cred, s)
		if err != nil {
			f.mu.Lock()
			f.dirty[s] = true
			f.mu.Unlock()
			continue
		}
		if f.seen[s] == shown {
			continue // not for this agent
		}
		f.seen[s] = shown
		told[listNotice(s)] = true
	}
	for method := range told {
		if err := f.notice(method, nil); err != nil {
			return err
		}
	}
	for uri := range updated {
		if err := f.notice(mcp.MethodNotificationResourceUpdated, map[string]any{"uri": uri}); err != nil {
			return err
		}
	}
	for _, id := range ended {
		if err := f.notice(elicitationComplete, map[string]any{"elicitationId": id}); err != nil {
			return err
		}
	}
	return nil
}

const elicitationComplete = "notifications/elicitation/complete"

func listNotice(s gateway.Sort) string {
	switch s {
	case gateway.SortTool:
		return mcp.MethodNotificationToolsListChanged
	case gateway.SortPrompt:
		return mcp.MethodNotificationPromptsListChanged
	}
	return mcp.MethodNotificationResourcesListChanged
}

// notice sends one, marked with the id of the subscription where there is one.
func (f *feed) notice(method string, params map[string]any) error {
	if f.id != nil {
		if params == nil {
			params = map[string]any{}
		}
		params["_meta"] = map[string]any{mcp.MetaKeySubscriptionID: json.RawMessage(f.id)}
	}
	msg, err := json.Marshal(struct {
		JSONRPC string         `json:"jsonrpc"`
		Method  string         `json:"method"`
		Params  map[string]any `json:"params,omitempty"`
	}{"2.0", method, params})
	if err != nil {
		return err
	}
	return f.send(msg)
}

// refollow makes what is followed what should be, and with again asks once more
// for what was refused. A session says so itself; while that cannot be asked, all
// stays as it is.
func (f *feed) refollow(ctx context.Context, again bool) {
	want := f.uris
	if f.cred.Session != "" {
		s, err := f.edge.Sessions.Session(ctx, f.cred.Session)
		if err != nil {
			return
		}
		want = s.Follows
	}
	want = want[:min(len(want), maxFollows)]
	for uri, one := range f.follows {
		if !slices.Contains(want, uri) {
			one.stop()
			delete(f.follows, uri)
		}
	}
	for _, uri := range want {
		one := f.follows[uri]
		if one != nil && again {
			select {
			case <-one.over:
				one = nil
			default:
			}
		}
		if one == nil {
			f.follows[uri] = f.follow(ctx, uri)
		}
	}
}

// unfollow ends all that is followed, and returns when it has ended.
func (f *feed) unfollow() {
	for _, one := range f.follows {
		one.stop()
		<-one.over
	}
}

// follow hears of one resource. A subscription that breaks is made again, ever
// more slowly; one that is refused is not, until something changes.
func (f *feed) follow(ctx context.Context, uri string) *following {
	ctx, cancel := context.WithCancel(ctx)
	one := &following{stop: cancel, over: make(chan struct{})}
	c := gateway.Call{Credential: f.cred, Method: gateway.MethodSubscribe, Name: uri, Args: json.RawMessage("{}"),
		JSONRPCID: string(f.id), Protocol: f.protocol, Caps: json.RawMessage(f.caps)}
	go func() {
		defer close(one.over)
		defer cancel()
		for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
			began := time.Now()
			err := f.edge.Gateway.Follow(ctx, c, func() { f.mark(func() { f.updated[uri] = true }) })
			switch gateway.CodeOf(err) {
			case gateway.Downstream, gateway.Internal, gateway.NoCredential, gateway.TooMany:
			default:
				return
			}
			if time.Since(began) > lastRetry {
				wait = firstRetry
			}
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return
			}
		}
	}()
	return one
}

// tellWhenDecided lets a session's stream, on whatever replica it is, say that a
// human has answered an approval request, or that nobody did in time: clients that
// were sent to the page wait for that before they call again.
func (e *Edge) tellWhenDecided(session string, r *gateway.ApprovalRequest) {
	key := session + "\n" + r.ID
	if _, there := e.waiting.LoadOrStore(key, true); there {
		return
	}
	if e.waits.Add(1) > maxWaits {
		e.waits.Add(-1)
		e.waiting.Delete(key)
		return // its client calls again by itself, or when its user says so
	}
	tenant, id, until := r.Tenant, r.ID, r.Expires
	go func() {
		defer e.waits.Add(-1)
		defer e.waiting.Delete(key)
		ctx, cancel := context.WithDeadline(e.calls, until.Add(mailTries*recheck))
		defer cancel()
		if err := e.Decided(ctx, tenant, id); err != nil {
			return
		}
		// Its stream may be between two connections.
		var err error
		for range mailTries {
			err = e.Sessions.Answer(ctx, session, mailbox, gateway.Result{Raw: []byte(`{"elicitationId":` + quote(id) + `}`)})
			if !isNotFound(err) {
				break
			}
			select {
			case <-time.After(recheck):
			case <-ctx.Done():
				return
			}
		}
		if err != nil && !isNotFound(err) {
			e.Logger.Warn("a client was not told that its approval request was decided", "approval", id, "err", err)
		}
	}()
}

const (
	mailbox   = "notices" // where a session's stream takes in what other replicas have for it; no ask is called that
	mailTries = 5
	maxWaits  = 1024 // approval requests whose answers somebody waits for here
)

// takeMail takes in what other replicas have for a session's stream, until ctx ends.
func (f *feed) takeMail(ctx context.Context) {
	for ctx.Err() == nil {
		wait, done, err := f.edge.Sessions.Expect(ctx, f.cred.Session, mailbox)
		if err == nil {
			var r gateway.Result
			some, cancel := context.WithTimeout(ctx, time.Minute) // an expectation need not last for ever
			r, err = wait(some)
			cancel()
			done()
			var in struct {
				ID string `json:"elicitationId"`
			}
			if err == nil && json.Unmarshal(r.Raw, &in) == nil && in.ID != "" {
				f.mark(func() {
					if len(f.ended) < maxFollows {
						f.ended = append(f.ended, in.ID)
					}
				})
			}
		}
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			select {
			case <-time.After(firstRetry):
			case <-ctx.Done():
			}
		}
	}
}
