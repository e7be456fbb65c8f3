package servers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"toolbroker/gateway"
)

// notifier is a server whose resources change when it is told so.
type notifier struct {
	fake
	mu      sync.Mutex
	streams map[int]func(string) // open ones
	n       int
	orders  chan string // subscribe, unsubscribe and listen, with the URI
	open    chan struct{}
}

func newNotifier(t *testing.T, modern bool) (*notifier, string) {
	n := &notifier{streams: map[int]func(string){}, orders: make(chan string, 100), open: make(chan struct{}, 100)}
	n.modern, n.session, n.caps = modern, "s", `{"resources":{"subscribe":true}}`
	n.answers = map[string]string{"resources/list": `{"resources":[{"uri":"a:b","name":"n"},{"uri":"a:c","name":"n"}]}`, "resources/subscribe": `{}`, "resources/unsubscribe": `{}`}
	n.before = func(w http.ResponseWriter, r *http.Request, m fakeMessage) bool {
		var p struct {
			URI           string
			Notifications struct{ ResourceSubscriptions []string }
		}
		json.Unmarshal(m.Params, &p)
		switch {
		case m.Method == "resources/subscribe" || m.Method == "resources/unsubscribe":
			n.orders <- m.Method + " " + p.URI
			return false
		case m.Method == "subscriptions/listen":
			n.orders <- "listen " + strings.Join(p.Notifications.ResourceSubscriptions, " ")
		case r.Method != http.MethodGet:
			return false
		}
		w.Header().Set("Content-Type", contentSSE)
		if modern {
			fmt.Fprintf(w, "data: {\"jsonrpc\":\"2.0\",\"method\":%q,\"params\":{\"notifications\":{\"resourceSubscriptions\":[\"a:b\"]}}}\n\n", acknowledged)
		}
		w.(http.Flusher).Flush()
		n.mu.Lock()
		n.n++
		id := n.n
		ended := make(chan struct{})
		n.streams[id] = func(s string) {
			if s == "" {
				close(ended)
				return
			}
			fmt.Fprint(w, s)
			w.(http.Flusher).Flush()
		}
		n.mu.Unlock()
		n.open <- struct{}{}
		select {
		case <-r.Context().Done():
		case <-ended:
		}
		n.mu.Lock()
		delete(n.streams, id)
		n.mu.Unlock()
		return true
	}
	return n, n.serve(t)
}

// say sends to every open stream; "" ends them.
func (n *notifier) say(s string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, f := range n.streams {
		f(s)
	}
}

func (n *notifier) updated(uri string) {
	n.say(fmt.Sprintf("data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/resources/updated\",\"params\":{\"uri\":%q}}\n\n", uri))
}

// follower follows x+a:b as an agent.
type follower struct {
	heard chan struct{}
	ended chan error
	stop  context.CancelFunc
}

func follow(t *testing.T, s *Servers, alias string, with ...func(*gateway.Forward)) *follower {
	t.Helper()
	tool, ok := s.Resolve("a", gateway.SortResource, alias)
	if !ok {
		t.Fatalf("no resource %s", alias)
	}
	f := gateway.Forward{Method: gateway.MethodSubscribe, Tool: tool, Session: "m1", Principal: gateway.Principal{ID: "p", Tenant: "a"}, Task: gateway.Task{ID: "t1", Tenant: "a"}}
	for _, w := range with {
		w(&f)
	}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	is := &follower{heard: make(chan struct{}, 100), ended: make(chan error, 1), stop: cancel}
	go func() { is.ended <- s.Follow(ctx, f, func() { is.heard <- struct{}{} }) }()
	return is
}

func (f *follower) hears(t *testing.T) {
	t.Helper()
	select {
	case <-f.heard:
	case err := <-f.ended:
		t.Fatalf("it ended: %v", err)
	case <-time.After(10 * time.Second):
		t.Fatal("nothing was heard")
	}
}

func expect(t *testing.T, from chan string, want string) {
	t.Helper()
	select {
	case got := <-from:
		if got != want {
			t.Errorf("the server read %q, not %q", got, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("the server did not read %q", want)
	}
}

func TestFollow(t *testing.T) {
	for _, modern := range []bool{true, false} {
		t.Run(fmt.Sprintf("modern=%v", modern), func(t *testing.T) {
			n, url := newNotifier(t, modern)
			s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: url}}})
			one := follow(t, s, "x+a:b")
			<-n.open
			if modern {
				expect(t, n.orders, "listen a:b")
			} else {
				expect(t, n.orders, "resources/subscribe a:b")
			}
			n.updated("a:b")
			one.hears(t)
			n.updated("a:b/part") // a part of it is it
			one.hears(t)

			// Another one of the same session shares it, and leaves it as it was.
			two := follow(t, s, "x+a:b")
			if modern {
				<-n.open
				expect(t, n.orders, "listen a:b")
			} else {
				expect(t, n.orders, "resources/subscribe a:b")
			}
			for { // the order of its registration is the server's to know
				n.updated("a:b")
				one.hears(t)
				select {
				case <-two.heard:
				case <-time.After(5 * time.Millisecond):
					continue
				}
				break
			}
			two.stop()
			if err := <-two.ended; !errors.Is(err, context.Canceled) {
				t.Errorf("it ended with %v", err)
			}
			if len(n.orders) > 0 {
				t.Errorf("the server read %q", <-n.orders)
			}
			n.updated("a:b")
			one.hears(t)
			one.stop()
			<-one.ended
			if !modern {
				expect(t, n.orders, "resources/unsubscribe a:b")
			}
			if len(n.orders) > 0 {
				t.Errorf("the server read %q too", <-n.orders)
			}
		})
	}
}

// A subscription that ends says so; one over a stream that the server opened again
// goes on, and its follower looks again, as it may have missed something.
func TestFollowEnds(t *testing.T) {
	n, url := newNotifier(t, true)
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: url}}})
	f := follow(t, s, "x+a:b")
	<-n.open
	n.say("")
	if err := <-f.ended; err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
	other := follow(t, s, "x+a:c") // which the server does not take
	if err := <-other.ended; !errors.Is(err, errNotOffered) {
		t.Errorf("it ended with %v", err)
	}

	n, url = newNotifier(t, false)
	s, _ = start(t, Config{Servers: []Server{{Name: "x", URL: url}}})
	f = follow(t, s, "x+a:b")
	<-n.open
	expect(t, n.orders, "resources/subscribe a:b")
	n.say("retry: 1\n\n")
	n.say("")
	<-n.open
	f.hears(t)
	n.updated("a:b")
	f.hears(t)
	if ends := s.EndTask(t.Context(), "a", "t1"); len(ends.Lost) != 1 || len(ends.Open)+len(ends.Gone) > 0 { // it knows no DELETE
		t.Errorf("%+v", ends)
	}
	if err := <-f.ended; err == nil {
		t.Error("it ended without a reason")
	}
}

func TestWhatCannotBeFollowed(t *testing.T) {
	for name, f := range map[string]*fake{
		"no subscriptions": {caps: `{"resources":{}}`},
		"no stream":        {caps: `{"resources":{"subscribe":true}}`, answers: map[string]string{"resources/subscribe": "{}"}},
		"refused":          {caps: `{"resources":{"subscribe":true}}`},
		"modern":           {modern: true, caps: `{"resources":{"subscribe":true}}`},
	} {
		t.Run(name, func(t *testing.T) {
			f.answers = map[string]string{"resources/list": `{"resources":[{"uri":"a:b","name":"n"}]}`}
			s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t)}}})
			if err := <-follow(t, s, "x+a:b").ended; err == nil {
				t.Error("it ended without a reason")
			}
		})
	}
}

// A flood of updates is one update to whoever does not keep up, and hurts nobody.
func TestAFloodOfUpdates(t *testing.T) {
	n, url := newNotifier(t, false)
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: url, MaxResponse: 1 << 16}, {Name: "good", URL: (&fake{}).serve(t)}}})
	f := follow(t, s, "x+a:b")
	<-n.open
	expect(t, n.orders, "resources/subscribe a:b")
	for range 1000 {
		n.updated("a:b")
	}
	f.hears(t)
	if _, err := forward(t, s, "good__act", `{}`); err != nil {
		t.Error(err)
	}
}
