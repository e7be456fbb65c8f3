package edge

import (
	"context"
	"net/http"
	"slices"

	strict "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
)

// getStream is a legacy session's stream of notices.
func (e *Edge) getStream(w http.ResponseWriter, hr *http.Request, r request) {
	if _, events := accepts(hr.Header); !events {
		http.Error(w, "the answer is text/event-stream", http.StatusNotAcceptable)
		return
	}
	if r.cred.Session == "" {
		http.Error(w, mcp.HeaderSessionID+" is missing", http.StatusBadRequest)
		return
	}
	who, _, err := e.Gateway.Admit(hr.Context(), r.cred)
	if err == nil {
		err = e.remember(hr.Context(), &r)
	}
	if err != nil {
		e.refuse(w, hr, r.cred, nil, err)
		return
	}
	e.serveStream(w, hr, r, e.newFeed(r, who, everyList(), nil), nil)
}

// listenHTTP serves subscriptions/listen.
func (e *Edge) listenHTTP(w http.ResponseWriter, hr *http.Request, r request) {
	f, granted, bad, err := e.subscription(hr.Context(), r)
	switch {
	case err != nil:
		e.refuse(w, hr, r.cred, r.id, err)
	case bad != nil:
		writeFault(w, r.id, true, bad)
	default:
		e.serveStream(w, hr, r, f, granted)
	}
}

// serveStream sends a feed's notices for as long as its credential, session and
// task are good. A subscription begins with what was granted of it.
func (e *Edge) serveStream(w http.ResponseWriter, hr *http.Request, r request, f *feed, granted *wishList) {
	ctx, cancel := context.WithCancelCause(hr.Context())
	defer cancel(nil)
	defer context.AfterFunc(e.streams, func() { cancel(errShutdown) })()
	if r.cred.Session != "" {
		defer e.local.stream(r.cred.Session, cancel)()
	}
	if !e.feeds.open(f) {
		e.refuse(w, hr, r.cred, r.id, tooManyStreams)
		return
	}
	defer e.feeds.close(f)
	f.look(ctx)
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(http.StatusOK)
	if writeWithin(w, []byte(": open\n\n"), false) != nil {
		return
	}
	f.send = func(msg []byte) error { return writeWithin(w, event(msg), false) }
	f.quiet = func() error { return writeWithin(w, []byte(": still here\n\n"), false) }
	e.feed(ctx, f, r, granted)
}

// feed runs a feed to its end, and closes a subscription that this side ends.
func (e *Edge) feed(ctx context.Context, f *feed, r request, granted *wishList) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if granted != nil {
		if f.notice(mcp.MethodNotificationSubscriptionsAcknowledged, map[string]any{"notifications": granted}) != nil {
			return
		}
		if granted.empty() {
			_ = f.send(closing(r.id).to(r.id))
			return
		}
	}
	if r.can.url && r.cred.Session != "" {
		mail := make(chan struct{})
		go func() { defer close(mail); f.takeMail(ctx) }()
		defer func() { cancel(); <-mail }()
	}
	if why := f.run(ctx); granted != nil && (why == errShutdown || why == errNotAllowed) {
		_ = f.send(closing(r.id).to(r.id)) // who is gone needs none
	}
}

var tooManyStreams = &gateway.Refusal{Code: gateway.TooMany, Say: "too many streams are open; close one first"}

// closing is the result of a subscription that is over.
func closing(id jsontext.Value) answer {
	return result(append(append([]byte(`{"resultType":"complete","_meta":{"`+mcp.MetaKeySubscriptionID+`":`), id...), "}}"...))
}

// A wishList is what a listener asks to hear of.
type wishList struct {
	Tools     bool     `json:"toolsListChanged,omitempty"`
	Prompts   bool     `json:"promptsListChanged,omitempty"`
	Resources bool     `json:"resourcesListChanged,omitempty"`
	URIs      []string `json:"resourceSubscriptions,omitempty"`
	Tasks     []string `json:"taskIds,omitempty"` // of the MCP tasks extension
}

func (l wishList) empty() bool {
	return !l.Tools && !l.Prompts && !l.Resources && len(l.URIs) == 0 && len(l.Tasks) == 0
}

// subscription reads what a listener asks for and makes its feed, with what of it
// is granted. It may hear of every list, which shows what it may see; about each
// resource and handle the gateway is asked, and what it refuses is left out like what
// is not there. So is a handle of which nothing more can come.
func (e *Edge) subscription(ctx context.Context, r request) (*feed, *wishList, *fault, error) {
	who, _, err := e.Gateway.Admit(ctx, r.cred)
	if err != nil {
		return nil, nil, nil, err
	}
	var want wishList
	bad := ""
	switch {
	case r.wants.Kind() != '{':
		bad = "params.notifications must be an object"
	case strict.Unmarshal(r.wants, &want) != nil:
		bad = "params.notifications cannot be read"
	case len(want.URIs) > maxFollows:
		bad = "a stream can be subscribed to 64 resources at most"
	case slices.ContainsFunc(want.URIs, func(uri string) bool { return uri == "" || len(uri) > maxURI }):
		bad = "a resource's URI is empty or too long"
	case len(want.Tasks) > maxFollows:
		bad = "a stream can hear of 64 tasks at most"
	case slices.ContainsFunc(want.Tasks, func(id string) bool { return id == "" || len(id) > maxName }):
		bad = "a task's id is empty or too long"
	}
	if bad != "" {
		e.Gateway.Malformed(ctx, r.cred)
		return nil, nil, &fault{code: mcp.INVALID_PARAMS, message: bad}, nil
	}
	if len(want.Tasks) > 0 && !r.can.tasks {
		return nil, nil, needsTasks, nil
	}
	slices.Sort(want.URIs)
	want.URIs = slices.DeleteFunc(slices.Compact(want.URIs), func(uri string) bool {
		out, err := e.Gateway.Handle(ctx, gateway.Call{Credential: r.cred, Method: gateway.MethodSubscribe, Name: uri, Args: []byte("{}"),
			Meta: []byte(r.meta), JSONRPCID: string(r.id), Protocol: r.protocol, Caps: []byte(r.caps)}, nil)
		return err != nil || out.Error != nil
	})
	slices.Sort(want.Tasks)
	want.Tasks = slices.DeleteFunc(slices.Compact(want.Tasks), func(id string) bool {
		if !isID(id) {
			return true // none of ours looks like that
		}
		h, err := e.Gateway.Kept(ctx, r.about(gateway.MethodTaskGet, id))
		return err != nil || h.Final()
	})
	lists := map[gateway.Sort]bool{}
	for s, wanted := range map[gateway.Sort]bool{gateway.SortTool: want.Tools, gateway.SortPrompt: want.Prompts,
		gateway.SortResource: want.Resources, gateway.SortTemplate: want.Resources} {
		if wanted {
			lists[s] = true
		}
	}
	f := e.newFeed(r, who, lists, want.URIs)
	f.id, f.handles = r.id, want.Tasks
	return f, &want, nil, nil
}
