package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
)

// Identity says who is asking.
type Identity interface {
	// Identify returns the principal behind what a caller presented, or an
	// [*NotIdentified]. A bearer token it verified before costs no round trip;
	// a proof of possession is checked each time.
	Identify(ctx context.Context, cred Credential) (Principal, error)
	// Proven returns the key that the request proves by itself, as in
	// Principal.Bound: by a DPoP proof, which it uses up, or else by a client
	// certificate; or "" where it brings neither. It is for requests that carry
	// their token in the body: put it into Proof.Proven and then identify.
	Proven(ctx context.Context, cred Credential) (string, error)
}

// Tasks knows what each workload is doing. Every transition is one atomic step.
type Tasks interface {
	// Running returns the task if it, and every task above it, is running as far
	// as anyone has said in the last 100 ms and no stop is about it: else
	// ErrNoTask (and ErrStopped where a stop is why), or ErrStale where that
	// cannot be confirmed; with that comes the task as it was last known here, if
	// it was, for the record only. The first use of a task on a replica registers the
	// replica with it: its closing waits for that replica.
	Running(ctx context.Context, tenant, id string) (Task, error)
	// Ended is closed when the task, or one above it, is known here to run no longer.
	Ended(tenant, id string) <-chan struct{}
	// Blind is closed when it could not be confirmed here for a second longer than
	// Running bears (1.1 s in all) which tasks have ended: what runs must stop. Once
	// that can be confirmed again, Blind is a new channel.
	Blind() <-chan struct{}
	// Start registers t as running and returns the bearer token that is it. In one
	// step it refuses what a stop is about (ErrStopped and ErrNoTask); a child
	// whose parent does not run (ErrNoTask) or has as many running children as its
	// limits allow (ErrTooMany); one with Own whose workload is on another root
	// task, unless either is Parallel (ErrBusy), and else binds it to t; and an
	// implicit one that runs already (ErrNotNow).
	Start(ctx context.Context, t Task) (Secret, error)
	// Standing returns the implicit task of a workload, human and kind, on the terms
	// of Running: ErrNoTask where none runs, ErrStopped as well where one was ended,
	// ErrStale where that cannot be confirmed. A known one costs no round trip.
	Standing(ctx context.Context, tenant, principal, human, kind string) (Task, error)
	// Bind makes t the task that one of its principals is on by a credential of its
	// own, which acts for a human or for none (""): ErrBusy while it is on one of
	// another root that runs, unless either is Parallel. What is bound already costs
	// no round trip.
	Bind(ctx context.Context, t Task, principal, human string) error
	// Spend takes one call from the budgets of t and of the tasks above it, and
	// from its workload's day; ErrTooMany where one is used up, and then nothing is
	// taken. It costs no round trip where there is no budget.
	Spend(ctx context.Context, t Task) error
	// Widen adds scope to a running task until w lapses; the same approval twice
	// changes nothing. Every replica sees it within 100 ms.
	Widen(ctx context.Context, tenant, id string, w Widening) (Task, error)
	// End begins the end of a task, and of all below it; one whose end began before
	// it returns as it is. Calls are refused from here on, and its closing follows
	// by itself.
	End(ctx context.Context, tenant, id string, e Ending) (Task, error)
	// Get returns a task in any state while it is remembered, else ErrNoTask.
	Get(ctx context.Context, tenant, id string) (Task, error)
	// List returns a tenant's running tasks and those that ended lately, newest first.
	List(ctx context.Context, tenant string) ([]Task, error)
	// Stop sets a stop and begins the end of every running task that it is about,
	// as revoked. Setting it again changes nothing.
	Stop(ctx context.Context, s Stop) error
	// Lift removes a stop and returns it, or ErrNotFound.
	Lift(ctx context.Context, tenant string, kind StopKind, name string) (Stop, error)
	// Stops lists a tenant's, newest first.
	Stops(ctx context.Context, tenant string) ([]Stop, error)
}

// An Ending is how a task's end begins.
type Ending struct {
	As   TaskState // TaskEnded, which for an implicit task also sets a StopStanding; or TaskRevoked
	By   string    // "operator:alice", a principal; "parent", "stop", "expiry" where nobody in person did it
	Why  string
	Said bool // whoever ends it records task.ending itself
}

// Approvals puts a request to humans and hands over the answer. Every
// transition is atomic; what it cannot do it refuses with ErrNotNow.
type Approvals interface {
	// Request stores r, or returns the stored request with r's fingerprint
	// that is pending, granted, reserved or denied and not expired. Either way r's
	// Holder waits for it from then on, or somebody who has none and comes back by
	// itself.
	Request(ctx context.Context, r ApprovalRequest) (stored ApprovalRequest, fresh bool, err error)
	// Wait returns the request once it is not pending, or as it is when ctx ends.
	Wait(ctx context.Context, tenant, id string) (ApprovalRequest, error)
	// Claim reserves a granted request for one call; the grant's request holds
	// the arguments.
	Claim(ctx context.Context, tenant, id, call string) (Grant, error)
	// Consume uses the reserved grant up. After it the grant can never be claimed.
	Consume(ctx context.Context, g Grant) error
	// Release gives a reserved grant back.
	Release(ctx context.Context, g Grant) error
	// Void ends a reserved grant that is no longer enough.
	Void(ctx context.Context, g Grant) error
	// Vote adds one operator's answer. One denial denies; enough approvals for
	// every requirement grant. An operator votes once.
	Vote(ctx context.Context, tenant, id string, v Vote) (ApprovalRequest, error)
	// Withdraw takes back that a holder waits for a request. Where nobody else does,
	// and no call is using its grant, that cancels it.
	Withdraw(ctx context.Context, tenant, id, holder string) error
	// Get returns a request, with its arguments while it is not final, else ErrNotFound.
	Get(ctx context.Context, tenant, id string) (ApprovalRequest, error)
	// List returns a tenant's open requests and those that ended lately, oldest first, without arguments.
	List(ctx context.Context, tenant string) ([]ApprovalRequest, error)
	// Cancel ends every open request of a task and returns their ids; nothing can
	// be asked for it afterwards.
	Cancel(ctx context.Context, tenant, task string) ([]string, error)
	// Changes sends whenever some request changed, on this replica or another;
	// it may merge changes. It stops when ctx ends.
	Changes(ctx context.Context) <-chan struct{}
}

// Leases gets credentials and makes sure that they end.
type Leases interface {
	// Lease returns the credential for a call to a server, the zero Lease where
	// the server needs none, or an error that wraps ErrNoCredential. What it
	// issues is in the ledger before it returns.
	Lease(ctx context.Context, tenant, task, call, server string) (Lease, error)
	// GiveBack ends a per-call lease: revoked and looked up, on record either way.
	GiveBack(ctx context.Context, l Lease) error
	// EndTask ends all leases of a task and returns the binding of each that it saw
	// end. An error means that some end is not proven yet.
	EndTask(ctx context.Context, tenant, task string) ([]string, error)
}

// Servers is the way downstream.
type Servers interface {
	// Offered returns what a tenant's servers offer of one sort, sorted by alias,
	// without what is withheld. The slice and what it holds are not to be changed;
	// where something of it changes, the next answer is another slice.
	Offered(tenant string, s Sort) []Tool
	// Resolve finds a thing by the name agents see. A resource need not be listed:
	// one in a server's name space, or that one of its templates covers, is found.
	Resolve(tenant string, s Sort, alias string) (Tool, bool)
	// Forward sends the call and returns the answer, of whatever type. What the
	// server notifies or asks meanwhile goes to s; it asks only what f.Caps says. An
	// error that wraps ErrNotSent means that nothing reached the server, or that it
	// says to have done nothing; any other error leaves that open.
	Forward(ctx context.Context, f Forward, s Stream) (Result, error)
	// Follow subscribes to a resource and calls updated at each notification that
	// it changed, until ctx ends, or the subscription does, with an error.
	Follow(ctx context.Context, f Forward, updated func()) error
	// EndTask closes a task's downstream sessions and ends its children on this
	// replica, and says what it saw of that since it was last asked.
	EndTask(ctx context.Context, tenant, task string) LinkEnds
	// EndSession does so for what belongs to one session of an agent's, and says
	// whose it was; nobody's where there was nothing.
	EndSession(ctx context.Context, session string) (of Owner, ends LinkEnds)
	// Hear passes on what an agent said in a session, its Level or that its Roots
	// changed, to the servers that have a session for it on this replica.
	Hear(ctx context.Context, n News)
}

// An Owner is whose a downstream session or child is.
type Owner struct{ Tenant, Task, Principal string }

// LinkEnds names the servers of downstream sessions and children, one name for
// each.
type LinkEnds struct {
	Gone []string // their end is proven
	Open []string // not yet; it is tried on
	Lost []string // the server did not confirm the end, and is asked no more
}

// Definitions is what admins accept: what servers say their tools are.
type Definitions interface {
	// Definitions lists a tenant's, sorted by server, sort and name; gone ones that
	// were accepted too.
	Definitions(ctx context.Context, tenant string) ([]Definition, error)
	// Accept takes the definition with this hash as good, on every replica. It is
	// ErrNotNow where the server says something else by now, and ErrNotFound where
	// it offers nothing of that name.
	Accept(ctx context.Context, tenant, server string, s Sort, name, hash, by string) (Definition, error)
}

// Handles keep what agents come back for. Every transition is one atomic step.
type Handles interface {
	// Keep stores a new handle, with its Seq at 1.
	Keep(ctx context.Context, h Handle) error
	// Handle returns one that has not expired, or ErrNotFound.
	Handle(ctx context.Context, tenant, id string) (Handle, error)
	// Moved says whether one has another Seq by now, without reading it, so that it is
	// cheap; who needs to be sure reads it. ErrNotFound as for Handle.
	Moved(ctx context.Context, tenant, id string, seq int64) (bool, error)
	// Move stores h, with its Seq one higher, if the stored one's Seq still is h's;
	// else it is ErrNotNow.
	Move(ctx context.Context, h Handle) (Handle, error)
	// EndTask cancels all of a task's that are not final, and says how many there
	// were; none can be kept for it afterwards.
	EndTask(ctx context.Context, tenant, task string) (int, error)
}

// Operators knows the humans.
type Operators interface {
	// Login checks a password and opens a session. A wrong one, an unknown name
	// and too many tries are told apart by ErrLogin and ErrTooMany only.
	Login(ctx context.Context, name string, password Secret, source string) (token Secret, op Operator, err error)
	// Session returns the operator behind a session token, or ErrLogin.
	Session(ctx context.Context, token Secret) (Operator, error)
	// Logout ends the session.
	Logout(ctx context.Context, token Secret) error
	// Human returns the operator that a name stands for, as a name or as one of its identities.
	Human(name string) (Operator, bool)
	// Answers reports whether somebody may vote in a tenant who is called approver,
	// or is in the group that it names as "group:NAME".
	Answers(tenant, approver string) bool
}

// A Session is an agent's legacy MCP session. Caps is fixed when it opens.
type Session struct {
	Binding   string          `json:"binding"` // whose it is: principal, human and task
	Tenant    string          `json:"tenant"`
	Task      string          `json:"task"`
	Principal string          `json:"principal,omitempty"` // the workload
	Protocol  string          `json:"protocol"`            // the revision that was agreed on
	Caps      json.RawMessage `json:"caps,omitempty"`      // what its client said that it can do
	LogLevel  string          `json:"log_level,omitempty"` // of the log messages that it wants; empty: it did not say
	Follows   []string        `json:"follows,omitempty"`   // resources whose changes it wants to hear of, as agents name them
	Awaits    []string        `json:"awaits,omitempty"`    // approval requests to whose page its client was sent, until it hears that they are decided
}

// Sessions are the agents' legacy MCP sessions, and bring what agents send in them
// to the replica that waits for it.
type Sessions interface {
	// Session returns one as it is, or ErrNotFound. What another replica changed or
	// closed may be seen up to a second later.
	Session(ctx context.Context, id string) (Session, error)
	// Open remembers a new one. Where its workload has as many as the implementation
	// lets it, the one that was not used for longest is closed before.
	Open(ctx context.Context, id string, s Session) error
	// Change lets f change LogLevel, Follows and Awaits, in one step; ErrNotFound.
	Change(ctx context.Context, id string, f func(*Session)) (Session, error)
	// Close forgets it; closing an unknown one is no error. Every Watch is told. Where
	// it fails nothing of it may have happened, and it can be asked again.
	Close(ctx context.Context, id string) error
	// EndTask forgets all of a task's and says how many there were.
	EndTask(ctx context.Context, tenant, task string) (int, error)

	// Expect makes the answer to an ask of ours in a session find its way here. It
	// comes before the ask is sent. wait returns the answer, or ctx's error; done
	// forgets the ask, and an answer that comes later is nobody's.
	Expect(ctx context.Context, session, ask string) (wait func(context.Context) (Result, error), done func(), err error)
	// Answer hands an answer to whoever expects it, on any replica, once; ErrNotFound
	// where nobody does.
	Answer(ctx context.Context, session, ask string, r Result) error
	// Tell tells every replica's Watch, this one's too. What is not a Note is heard
	// once, and late rather than never; a note may be lost.
	Tell(ctx context.Context, n News) error
	// Watch hears what was told, and of sessions that were closed, on whatever
	// replica, until ctx ends. While Redis cannot be reached it hears nothing.
	Watch(ctx context.Context, f func(News))
}

// News is one thing that happened in a legacy session.
type News struct {
	Session   string
	Cancelled string // a request of its agent's own, by its id
	Roots     bool   // its agent's roots are others
	Level     string // of log messages, that its agent wants from here on
	Closed    bool   // it is over,
	WithTask  bool   // and so is its task, whose end is the end of all that belongs to it
	Note      *Note  // is for its agent
}

// A Note is what a server says to an agent beside all calls, for whichever replica
// has a stream of the session's. Of a question only the one that answers
// [Note.Taken] first puts it to the agent, whose answer is awaited under Ask.
type Note struct {
	Ask    string // the question's id, "ask-[a-z0-9]+"; empty for a notification
	Method string
	Params json.RawMessage
	Server string // whose a notification is
	Used   string // what of the server's the session used last, as [Tool.ID] says
}

// Taken names what is expected of whoever puts the question to the agent.
func (n Note) Taken() string { return "taken-" + n.Ask }

// An Attempt is what became of a call, as far as its agent must know before it
// repeats it.
type Attempt struct {
	Call   string `json:"call"`             // its id; empty where nobody knows it any more
	Doubt  bool   `json:"doubt,omitempty"`  // it is not known whether it was done
	Answer []byte `json:"answer,omitempty"` // else what the agent would have read, without its envelope: a result, or
	Error  bool   `json:"error,omitempty"`  // a JSON-RPC error
}

// A Run is one try to carry a call out.
type Run struct {
	Tenant  string
	Key     string // whatever is a repetition of it has the same; "[a-z0-9-]{1,64}"
	Session string // in which an id is used once, so that an equal run is a repetition; empty: it may be another client's

	// Gone reports whether its client is known to have left without its answer, or, once
	// that is written, with it unread. It looks now, and does not wait.
	Gone func(answered bool) bool
}

// Attempts know each call that is under way on any replica, and for a window, which
// the implementation knows, those whose answers may not have reached their agents. A
// replica that dies leaves what it had under way in doubt.
type Attempts interface {
	// Begin begins to make a run known to every replica, and does not wait for it.
	Begin(Run) Try
}

// A Try is a run that [Attempts] were told of.
type Try interface {
	// Begun returns once every replica knows of the run: then it may be sent. Where it
	// is a repetition it must not be, and there is what became of the first one. It is
	// one if an equal run was lost, is on a replica that died, or belongs to the same
	// session or a client that is gone; for one that is still under way Begun waits. What
	// does not run has ended with that, and so has what Begun returns an error for.
	Begun(ctx context.Context) (first Attempt, again bool, err error)
	// End says how it ended. It does not wait: until every replica can know of the end,
	// it stays as it was for them. After EndWritten there is one more, if that is ever known.
	End(how RunEnd, a Attempt)
}

// A RunEnd is how a run ended, for whoever repeats it.
type RunEnd int

// EndNothing leaves nothing: the call can be made again. What is EndWritten is kept
// for a repetition within the same session; for any other only until it has EndArrived,
// or for some seconds. What is EndLost is kept for the window.
const (
	EndNothing RunEnd = iota // nothing was sent, or its agent took it back
	EndWritten               // its answer was handed to the connection
	EndArrived               // and was read
	EndLost                  // the agent does not have it
)

// A Recorder keeps facts. It is safe for concurrent use.
type Recorder interface {
	// Record writes facts in order; they are durable with the next group.
	Record(ctx context.Context, f ...Fact) error
	// Durable writes facts in order and returns when they are durable.
	Durable(ctx context.Context, f ...Fact) error
}

// What the seams say when they say no.
var (
	ErrUnidentified = errors.New("unidentified")
	ErrNoTask       = errors.New("no such running task")
	ErrStale        = errors.New("cannot confirm that the task is running")
	ErrNotNow       = errors.New("not possible in this state")
	ErrNotFound     = errors.New("not found")
	ErrNoCredential = errors.New("no credential")
	ErrNotSent      = errors.New("not sent")
	ErrWithheld     = errors.New("withheld") // by a server's process that defines it in another way than was accepted; wraps nothing: whoever returns it wraps ErrNotSent as well
	ErrCannotAsk    = errors.New("the agent cannot be asked this")
	ErrBadAnswer    = errors.New("unusable answer") // a server answered, but not with what can be passed on
	ErrTooLong      = fmt.Errorf("%w: longer than max_response", ErrBadAnswer)
	ErrLogin        = errors.New("name or password is wrong")
	ErrTooMany      = errors.New("too many tries")
	ErrBusy         = errors.New("the workload is on another root task")
	ErrGoingDown    = errors.New("the gateway is going down") // a cause: of the end of a call's context
	ErrStopped      = errors.New("stopped by an operator")    // wraps nothing; whoever returns it wraps ErrNoTask as well
)
