package edge

import (
	"context"
	"crypto/sha256"
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
	maxWatched = 256                    // handles that all of those together hear of
	firstRetry = time.Second            // of a resource that could not be followed
	lastRetry  = 30 * time.Second
)

// feeds are the streams of notices that are open on this replica. The zero value
// is ready.
type feeds struct {
	mu      sync.Mutex
	all     map[*feed]struct{}
	of      map[string]int // streams of a principal
	watched map[string]int // handles that they hear of
}

// open adds a stream, or reports that its principal has enough of them.
func (f *feeds) open(one *feed) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.of[one.owner] >= maxStreams || f.watched[one.owner]+len(one.handles) > maxWatched {
		return false
	}
	if f.all == nil {
		f.all, f.of, f.watched = map[*feed]struct{}{}, map[string]int{}, map[string]int{}
	}
	f.all[one] = struct{}{}
	f.of[one.owner]++
	f.watched[one.owner] += len(one.handles)
	return true
}

func (f *feeds) close(one *feed) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.all, one)
	f.watched[one.owner] -= len(one.handles)
	if f.of[one.owner]--; f.of[one.owner] <= 0 {
		delete(f.of, one.owner)
		delete(f.watched, one.owner)
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
	asked    request               // for it
	owner    string                // principal, for counting
	lists    map[gateway.Sort]bool // whose changes it wants to hear of
	uris     []string              // resources that it follows; a session's are kept with the session
	handles  []string              // of the MCP tasks extension, that it hears of
	id       jsontext.Value        // of the subscription, or nil
	protocol string
	caps     jsontext.Value
	can      ability
	level    string // of log messages, when the session was last looked at
	stays    bool   // it outlives a task: what it may not hear now it may hear later

	send  func(msg []byte) error
	quiet func() error // keeps the connection alive; nil for none

	poke chan struct{} // something is marked

	mu      sync.Mutex
	dirty   map[gateway.Sort]bool
	updated map[string]bool // resources
	ended   []string        // elicitations that are complete
	moved   map[string]bool // handles
	notes   []gateway.Note  // of servers, beside all calls
	stale   bool            // the session follows something else

	// run's own
	seen    map[gateway.Sort]string
	follows map[string]*following
	told    map[string][sha256.Size]byte  // of each handle
	awaits  map[string]context.CancelFunc // approval requests
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
	return &feed{edge: e, cred: r.cred, asked: r, owner: who.Tenant + "\n" + who.ID, lists: lists, uris: uris, protocol: r.protocol, caps: r.caps, can: r.can, level: r.level,
		poke: make(chan struct{}, 1), dirty: map[gateway.Sort]bool{}, updated: map[string]bool{}, moved: map[string]bool{},
		seen: map[gateway.Sort]string{}, follows: map[string]*following{}, told: map[string][sha256.Size]byte{}, awaits: map[string]context.CancelFunc{}}
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
	defer f.watch(ctx)()
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
	return len(f.dirty) > 0 || len(f.updated) > 0 || len(f.ended) > 0 || len(f.moved) > 0 || len(f.notes) > 0
}

// deliver sends a notice for everything that is marked and that this agent may
// hear of. What cannot be told right now stays marked for the next tick.
func (f *feed) deliver(ctx context.Context) error {
	f.mu.Lock()
	dirty, updated, moved, ended, notes, stale := f.dirty, f.updated, f.moved, f.ended, f.notes, f.stale
	f.dirty, f.updated, f.moved, f.ended, f.notes, f.stale = map[gateway.Sort]bool{}, map[string]bool{}, map[string]bool{}, nil, nil, false
	f.mu.Unlock()
	if changed := dirty[gateway.SortResource] || dirty[gateway.SortTemplate]; stale || changed {
		f.refollow(ctx, changed)
	}
	if len(dirty) == 0 && len(updated) == 0 && len(moved) == 0 && len(ended) == 0 && len(notes) == 0 {
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
		for id := range moved {
			f.moved[id] = true
		}
		f.ended = append(f.ended, ended...)
		f.notes = append(notes, f.notes...)
	}
	if err := f.mayGoOn(ctx, true); err != nil {
		if gateway.CodeOf(err) != gateway.Internal && !f.stays {
			return errNotAllowed
		}
		later()
		return nil
	}
	for _, n := range notes {
		if err := f.pass(ctx, n); err != nil {
			return err
		}
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
	for id := range moved {
		if err := f.tell(ctx, id); err != nil {
			return err
		}
	}
	for _, id := range ended {
		if err := f.notice(elicitationComplete, map[string]any{"elicitationId": id}); err != nil {
			return err
		}
		f.heard(ctx, id)
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

// tagged marks params, an object that has no _meta, with the id of the subscription.
func (f *feed) tagged(params []byte) []byte {
	out := append(params[:len(params)-1:len(params)-1], `,"_meta":{"`+mcp.MetaKeySubscriptionID+`":`...)
	return append(append(out, f.id...), "}}"...)
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

// about is a question about a handle, by who listens.
func (f *feed) about(id string) gateway.Call { return f.asked.about(gateway.MethodTaskGet, id) }

// watch hears of the handles that were named, until what it returns is called.
func (f *feed) watch(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	for _, id := range f.handles {
		all.Go(func() {
			_ = f.edge.Gateway.Watch(ctx, f.about(id), func() { f.mark(func() { f.moved[id] = true }) })
		})
	}
	return func() { cancel(); all.Wait() }
}

// tell sends a handle as tasks/get would give it, where that is another thing than
// was sent last, and only to whoever may ask for it now.
func (f *feed) tell(ctx context.Context, id string) error {
	h, err := f.edge.Gateway.Kept(ctx, f.about(id))
	if err != nil {
		if code := gateway.CodeOf(err); code == gateway.Internal || code == gateway.TooMany {
			f.mu.Lock()
			f.moved[id] = true // the next tick tries again
			f.mu.Unlock()
		}
		return nil
	}
	params := f.edge.detailed(f.asked, h, "")
	sum := sha256.Sum256(params)
	if f.told[id] == sum {
		return nil
	}
	f.told[id] = sum
	msg := append([]byte(`{"jsonrpc":"2.0","method":"`+taskNotice+`","params":`), f.tagged(params)...)
	return f.send(append(msg, '}'))
}

// taskNotice tells of a task of the MCP tasks extension.
const taskNotice = "notifications/tasks"

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
		want, f.level = s.Follows, s.LogLevel
		if f.asked.can.url {
			f.await(ctx, s)
		}
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
		JSONRPCID: string(f.id), Protocol: f.protocol, Caps: json.RawMessage(f.caps), LogLevel: f.level}
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

// await remembers with a session that its client was sent to the page of an approval
// request and waits to hear that somebody decided: the session's stream says so, on
// whatever replica it is by then. The client of one that cannot be remembered calls
// again by itself, or when its user says so.
func (e *Edge) await(session, approval string) {
	ctx, cancel := context.WithTimeout(e.calls, sessionTime)
	defer cancel()
	if s, err := e.Sessions.Session(ctx, session); err == nil && slices.Contains(s.Awaits, approval) {
		return
	}
	_, err := e.Sessions.Change(ctx, session, func(s *gateway.Session) {
		s.Awaits = append(without(s.Awaits, approval), approval)
		s.Awaits = s.Awaits[max(0, len(s.Awaits)-maxAwaits):]
	})
	if err != nil && !isNotFound(err) {
		e.Logger.Warn("a client will not be told that its approval request was decided", "approval", approval, "err", err)
	}
	e.feeds.changed(session)
}

func without(all []string, one string) []string {
	return slices.DeleteFunc(all, func(s string) bool { return s == one })
}

// await waits for what the session's client awaits.
func (f *feed) await(ctx context.Context, s gateway.Session) {
	for id, stop := range f.awaits {
		if !slices.Contains(s.Awaits, id) {
			stop()
			delete(f.awaits, id)
		}
	}
	for _, id := range s.Awaits {
		if f.awaits[id] != nil || f.edge.Decided == nil {
			continue
		}
		waiting, stop := context.WithCancel(ctx)
		f.awaits[id] = stop
		go func() {
			defer stop()
			for waiting.Err() == nil {
				if err := f.edge.Decided(waiting, s.Tenant, id); err == nil || isNotFound(err) {
					f.mark(func() { f.ended = append(f.ended, id) })
					return
				}
				select {
				case <-time.After(firstRetry):
				case <-waiting.Done():
				}
			}
		}()
	}
}

// heard strikes off what the session's client has heard of. A crash before that, or a
// second stream, makes it hear of it twice.
func (f *feed) heard(ctx context.Context, approval string) {
	stop := f.awaits[approval]
	if stop == nil {
		return // an elicitation of a server's
	}
	ctx, cancel := context.WithTimeout(ctx, sessionTime)
	defer cancel()
	_, err := f.edge.Sessions.Change(ctx, f.cred.Session, func(s *gateway.Session) { s.Awaits = without(s.Awaits, approval) })
	if err == nil {
		stop()
		delete(f.awaits, approval)
	} else if !isNotFound(err) {
		f.edge.Logger.Warn("a client may be told again that its approval request was decided", "approval", approval, "err", err)
	}
}

const (
	mailbox   = "notices" // where a session's stream takes in what other replicas have for it; no ask is called that
	mailTries = 5
	maxWaits  = 1024 // words that are on their way from here
	maxAwaits = 32   // approval requests that one session hears of

	sessionTime = 2 * time.Second // to read and change a session
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
