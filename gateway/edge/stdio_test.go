package edge

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
)

var alice = gateway.Credential{Bearer: gateway.NewSecret("alice")}

// converse sends lines to ServeStdio and returns what it answers, in order of id.
func converse(t *testing.T, d *door, lines ...string) string {
	t.Helper()
	var out strings.Builder
	if err := d.edge.ServeStdio(t.Context(), strings.NewReader(strings.Join(lines, "\n")), &out, alice); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestStdioAnswersWhatItCannotRead(t *testing.T) {
	d := open(t, func(c *Config) { c.MaxBody = 1000 })
	for _, row := range []struct{ name, line, says string }{
		{"not JSON", "{", "-32700"},
		{"batch", "[]", "batches are not supported"},
		{"a name twice", `{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}`, "given twice"},
		{"too large", call("echo", `{"a":"`+strings.Repeat("x", 100_000)+`"}`), "too large"},
		{"blank", "  \t\r", ""},
		{"a response", `{"jsonrpc":"2.0","id":1,"result":{}}`, ""},
		{"a notification", `{"jsonrpc":"2.0","method":"notifications/initialized"}`, ""},
		{"unknown method", rpc(1, "resources/lists", ""), "-32601"},
		{"a modern method", rpc(1, "tools/call", modernMeta("")+`,"name":"echo"`), `"resultType":"complete"`},
		{"modern without capabilities", rpc(1, "tools/list", `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}`), "-32602"},
		{"a version to come", rpc(1, "tools/list", `"_meta":{"io.modelcontextprotocol/protocolVersion":"2099-01-01"}`), "-32022"},
		{"an id that mcp-go would change", `{"jsonrpc":"2.0","id":9007199254740993,"method":"ping"}`, `"id":9007199254740993,"result":{}`},
		{"unknown tool", call("nope", "{}"), `{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"Unknown tool"}}`},
	} {
		got := converse(t, d, row.line, rpc(9, "ping", ""))
		want := 2
		if row.says == "" {
			want = 1
		}
		if !strings.Contains(got, row.says) || !strings.Contains(got, `{"jsonrpc":"2.0","id":9,"result":{}}`) || strings.Count(got, "\n") != want {
			t.Errorf("%s: %s", row.name, got)
		}
	}
}

// When the input ends, what was asked is still answered, and the session ends.
func TestStdioAnswersBeforeItEnds(t *testing.T) {
	d := open(t)
	var lines []string
	lines = append(lines, rpc(0, "initialize", `"protocolVersion":"2025-11-25"`))
	for i := range 100 {
		lines = append(lines, rpc(i+1, "tools/call", `"name":"echo"`))
	}
	got := converse(t, d, lines...)
	for _, c := range d.calls {
		if c.Protocol != "2025-11-25" || c.Credential.Session != d.closed[0] {
			t.Errorf("%s is not in the session: %+v", c.JSONRPCID, c)
		}
	}
	for i := range 101 {
		if !strings.Contains(got, fmt.Sprintf(`"id":%d,"result"`, i)) {
			t.Errorf("%d was not answered", i)
		}
	}
	if len(d.sessions) != 0 || len(d.closed) != 1 {
		t.Errorf("sessions %v, closed %v", d.sessions, d.closed)
	}
}

func TestStdioEnds(t *testing.T) {
	t.Run("for nobody", func(t *testing.T) {
		d := open(t)
		err := d.edge.ServeStdio(t.Context(), strings.NewReader(""), io.Discard, gateway.Credential{Bearer: gateway.NewSecret("mallory")})
		if gateway.CodeOf(err) != gateway.Unidentified {
			t.Error(err)
		}
	})
	for _, row := range []struct {
		name string
		end  func(d *door, cancel func(), out *io.PipeReader)
		want error
	}{
		{"with its context", func(_ *door, cancel func(), _ *io.PipeReader) { cancel() }, context.Canceled},
		{"at shutdown", func(d *door, _ func(), _ *io.PipeReader) { go d.edge.Shutdown(cancelledContext()) }, nil},
		{"when nobody reads", func(d *door, _ func(), out *io.PipeReader) { out.Close() }, io.ErrClosedPipe},
	} {
		t.Run(row.name, func(t *testing.T) {
			d := open(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			in, w := io.Pipe()
			r, out := io.Pipe()
			defer w.Close()
			done := make(chan error, 1)
			go func() { done <- d.edge.ServeStdio(ctx, in, out, alice) }()
			go fmt.Fprintln(w, call("hold", "{}"))
			get(t, "held call", d.holding)
			read := bufio.NewReader(r)
			go func() {
				for {
					if _, err := read.ReadString('\n'); err != nil {
						return
					}
				}
			}()
			row.end(d, cancel, r)
			if row.want == io.ErrClosedPipe {
				go fmt.Fprintln(w, rpc(2, "ping", ""))
			}
			get(t, "end of the call", d.ended1)
			if err := get(t, "end", done); row.want != nil && !errors.Is(err, row.want) {
				t.Errorf("%v, want %v", err, row.want)
			}
		})
	}
}

// Notices come only while the task runs, and what was missed comes when it does.
func TestStdioNotices(t *testing.T) {
	d := open(t)
	r, w := pipes(t, d)
	lines := bufio.NewScanner(r)
	ask := func(s string) string {
		fmt.Fprintln(w, s)
		lines.Scan()
		return lines.Text()
	}
	ask(rpc(0, "initialize", `"protocolVersion":"2025-11-25"`))
	var before int
	d.set(func() { d.ended["task-a"], before = true, d.admits })
	d.change(gateway.SortTool)
	waitFor(t, "the question whether the task runs", func() (asked bool) {
		d.set(func() { asked = d.admits > before })
		return asked
	})
	if got := ask(rpc(1, "ping", "")); got != `{"jsonrpc":"2.0","id":1,"result":{}}` {
		t.Error(got)
	}
	d.set(func() { d.ended["task-a"] = false })
	if lines.Scan(); !strings.Contains(lines.Text(), mcp.MethodNotificationToolsListChanged) {
		t.Error(lines.Text())
	}
}

// However much an agent asks for at once, it costs a bounded buffer.
func TestStdioIsBounded(t *testing.T) {
	d := open(t)
	in, w := io.Pipe()
	r, out := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.edge.ServeStdio(ctx, in, out, alice) }()
	go func() {
		for i := range maxOpen + 1 {
			fmt.Fprintln(w, rpc(i, "tools/call", `"name":"hold"`))
		}
	}()
	got, err := bufio.NewReader(r).ReadString('\n')
	if err != nil || !strings.Contains(got, fmt.Sprintf(`"id":%d,"error":{"code":-32000`, maxOpen)) {
		t.Errorf("%s %v", got, err)
	}
	go io.Copy(io.Discard, r)
	cancel()
	go func() {
		for range d.holding {
		}
	}()
	for range maxOpen {
		get(t, "end of a call", d.ended1)
	}
	get(t, "end", done)
	close(d.holding)
	w.Close()
}

// A cancellation on stdio reaches its call even if it comes right behind it.
func TestStdioCancels(t *testing.T) {
	d := open(t)
	for range 20 {
		got := converse(t, d, rpc("a", "tools/call", `"name":"hold"`), `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"\u0061"}}`)
		if got != "" {
			t.Fatalf("a cancelled call was answered: %s", got)
		}
		select {
		case <-d.holding:
			get(t, "end of the call", d.ended1)
		default: // it was over before the gateway began
		}
	}
}

// One request that blows up is one answer.
func TestStdioSurvivesPanic(t *testing.T) {
	d := open(t)
	d.house.tools = nil // and "refuse" has none to point at
	e, err := New(Config{Gateway: panicky{d.house}, Sessions: d.kept})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := e.ServeStdio(t.Context(), strings.NewReader(call("x", "{}")+"\n"+rpc(2, "ping", "")), &out, alice); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), `"id":1,"error":{"code":-32603`) || !strings.Contains(out.String(), `"id":2,"result"`) {
		t.Error(out.String())
	}
}

type panicky struct{ *house }

func (panicky) Handle(context.Context, gateway.Call, gateway.Stream) (gateway.Result, error) {
	panic("boom")
}

// quick is a gateway that costs nothing.
type quick struct{ *house }

func (q quick) Identify(context.Context, gateway.Credential) (gateway.Principal, error) {
	return gateway.Principal{}, nil
}

func (q quick) InSession(context.Context, gateway.Principal, gateway.Credential) error { return nil }

func (q quick) Handle(context.Context, gateway.Call, gateway.Stream) (gateway.Result, error) {
	return q.result, nil
}

func (q quick) List(context.Context, gateway.Credential, gateway.Sort, gateway.CallRef) ([]gateway.Tool, error) {
	return q.tools, nil
}

// A tape is a response writer whose reader takes in limit bytes and then stops.
type tape struct {
	mu       sync.Mutex
	header   http.Header
	text     strings.Builder
	limit    int
	deadline time.Time
	cut      time.Duration // how long it was blocked until its deadline
}

func (w *tape) Header() http.Header                { return w.header }
func (w *tape) WriteHeader(int)                    {}
func (w *tape) FlushError() error                  { return nil }
func (w *tape) SetWriteDeadline(t time.Time) error { w.deadline = t; return nil }
func (w *tape) String() string                     { w.mu.Lock(); defer w.mu.Unlock(); return w.text.String() }
func (w *tape) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.limit > 0 && w.text.Len()+len(p) > w.limit {
		began := time.Now()
		time.Sleep(time.Until(w.deadline))
		w.cut = time.Since(began)
		return 0, os.ErrDeadlineExceeded
	}
	return w.text.Write(p)
}

func newReply(w *tape) (*reply, context.Context) {
	ctx, cancel := context.WithCancelCause(context.Background())
	return &reply{request: &request{modern: true, message: message{method: gateway.MethodCall, token: []byte("1")}}, w: w, plain: true, events: true, gone: cancel, progress: progress{token: []byte("1")}}, ctx
}

// A stream that is quiet is kept alive, from its first frame to its last.
func TestReplyIsKeptAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &tape{header: http.Header{}}
		r, ctx := newReply(w)
		time.Sleep(time.Hour)
		if w.String() != "" {
			t.Error("a stream before there was a reason for one")
		}
		notify := func() error { return r.Notify(ctx, "notifications/progress", []byte(`{"progress":1}`)) }
		if err := notify(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		_ = notify()
		time.Sleep(10 * time.Second) // a frame puts the comment off
		if strings.Contains(w.String(), ": still here") {
			t.Error("a comment on a busy stream")
		}
		time.Sleep(51 * time.Second)
		synctest.Wait()
		if n := strings.Count(w.String(), ": still here\n\n"); n != 4 {
			t.Errorf("%d comments", n)
		}
		if !w.deadline.IsZero() {
			t.Error("a deadline is left while the call goes on")
		}
		_ = r.finish(answer{body: []byte(`{"x":1}`), status: 200})
		if w.deadline.IsZero() {
			t.Error("no deadline for the end of the answer")
		}
		before := w.String()
		if err := notify(); !errors.Is(err, errAnswered) {
			t.Errorf("after the answer: %v", err)
		}
		time.Sleep(time.Hour)
		if w.String() != before || !strings.HasSuffix(before, "\"result\":{\"x\":1}}\n\n") {
			t.Errorf("written after the answer: %q", w.String())
		}
	})
}

// Nothing is written once the request is over, also where its agent hung up.
func TestNothingIsWrittenAfterTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse()
		late := lateGateway{h, make(chan gateway.Stream, 1)}
		e, err := New(Config{Gateway: late, Sessions: h.kept, Hosts: []string{"example.com"}})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Shutdown(cancelledContext())
		for _, name := range []string{"hold", "echo"} {
			in := modernReq("tools/call", name, `"name":"`+name+`"`)
			in.body = strings.Replace(in.body, `"_meta":{`, `"_meta":{"progressToken":1,`, 1)
			ctx, hangUp := context.WithCancel(t.Context())
			w := &tape{header: http.Header{}}
			r := httptest.NewRequestWithContext(ctx, "POST", "/mcp", strings.NewReader(in.body))
			r.Header = http.Header{"Authorization": {"Bearer alice"}, "Content-Type": {"application/json"}, "Accept": {legacyAccept}}
			for k, v := range in.header {
				r.Header.Set(k, v)
			}
			done := make(chan struct{})
			go func() { e.Handler().ServeHTTP(w, r); close(done) }()
			synctest.Wait()
			hangUp()
			<-done
			before := w.String()
			if err := (<-late.stream).Notify(t.Context(), "notifications/progress", []byte(`{"progress":9}`)); !errors.Is(err, errAnswered) {
				t.Errorf("%s: %v", name, err)
			}
			time.Sleep(time.Hour)
			if w.String() != before || before == "" {
				t.Errorf("%s: %q after %q", name, w.String(), before)
			}
		}
	})
}

// lateGateway gives its stream away, so that it can be used too late.
type lateGateway struct {
	*house
	stream chan gateway.Stream
}

func (l lateGateway) Handle(ctx context.Context, c gateway.Call, s gateway.Stream) (gateway.Result, error) {
	l.stream <- s
	return l.house.Handle(ctx, c, s)
}

// Who does not read is cut, and its call with it.
func TestSlowReaderIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &tape{header: http.Header{}, limit: 200}
		r, ctx := newReply(w)
		var err error
		for err == nil {
			err = r.Notify(ctx, "notifications/progress", []byte(`{"progress":1}`))
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || w.cut != frameTime || !errors.Is(context.Cause(ctx), errReaderGone) {
			t.Errorf("%v after %v, call %v", err, w.cut, context.Cause(ctx))
		}
		_ = r.finish(answer{})

		// Before 2026-07-28 it is cut, and its call goes on.
		w = &tape{header: http.Header{}, limit: 200}
		r, ctx = newReply(w)
		r.request.modern = false
		for range 100 {
			if err := r.Notify(ctx, "notifications/progress", []byte(`{"progress":1}`)); err != nil {
				t.Error(err)
			}
		}
		if ctx.Err() != nil || r.finish(answer{body: []byte("{}"), status: 200}) == nil || w.cut != frameTime {
			t.Errorf("call %v, after %v", context.Cause(ctx), w.cut)
		}

		w = &tape{header: http.Header{}, limit: 1}
		r, _ = newReply(w)
		_ = r.finish(answer{body: make([]byte, 10*frameSpeed), status: 200})
		if w.cut != frameTime+10*time.Second {
			t.Errorf("a large answer has %v", w.cut)
		}
	})
}

// A stream of notices asks every second whether its task still runs, and at
// each notice and keep-alive also about its session.
func TestStreamAsksAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse()
		counting := &counted{house: h}
		e, err := New(Config{Gateway: counting, Sessions: h.kept})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Shutdown(cancelledContext())
		if err := h.OpenSession(t.Context(), alice, "s", "2025-11-25", nil); err != nil {
			t.Fatal(err)
		}
		cred := alice
		cred.Session = "s"
		f := e.newFeed(request{cred: cred}, gateway.Principal{}, everyList(), nil)
		var mu sync.Mutex
		n, comments := 0, 0
		f.send = func([]byte) error { mu.Lock(); defer mu.Unlock(); n++; return nil }
		f.quiet = func() error { mu.Lock(); defer mu.Unlock(); comments++; return nil }
		sent := func() int { mu.Lock(); defer mu.Unlock(); return n }
		quiet := func() int { mu.Lock(); defer mu.Unlock(); return comments }
		e.feeds.open(f)
		f.look(t.Context())
		done := make(chan error, 1)
		go func() { done <- f.run(t.Context()) }()
		time.Sleep(keepAlive + time.Second/2)
		synctest.Wait()
		if asked, withSession := counting.read(); asked != 15 || withSession != 1 || quiet() != 1 {
			t.Errorf("asked %d times, %d about the session, %d comments", asked, withSession, quiet())
		}
		change := func() {
			h.set(func() { h.shown[gateway.SortTool] += "x" })
			e.Changed(gateway.SortTool)
			synctest.Wait()
		}
		change()
		if _, withSession := counting.read(); withSession != 2 || sent() != 1 {
			t.Errorf("asked %d times about the session, sent %d", withSession, sent())
		}
		// What did not change for this agent is not told.
		time.Sleep(time.Second)
		e.Changed(gateway.SortTool, gateway.SortPrompt)
		synctest.Wait()
		if sent() != 1 {
			t.Errorf("sent %d", sent())
		}
		// A flood is looked at together.
		time.Sleep(time.Second)
		for range 1000 {
			change()
		}
		if sent() != 2 {
			t.Errorf("%d notices of a flood", sent()-1)
		}
		time.Sleep(noticeGap)
		synctest.Wait()
		if sent() != 3 {
			t.Errorf("%d notices of a flood, in the end", sent()-1)
		}
		// Nothing is told while nobody can tell whether it may be; later it is.
		h.set(func() { h.down = errDown })
		change()
		time.Sleep(10 * time.Second)
		if len(done) != 0 || sent() != 3 {
			t.Error("ended, or said something, while nobody could tell")
		}
		h.set(func() { h.down = nil })
		time.Sleep(recheck)
		synctest.Wait()
		if sent() != 4 {
			t.Errorf("sent %d", sent())
		}
		h.set(func() { h.ended["task-a"] = true })
		time.Sleep(recheck)
		synctest.Wait()
		if err := <-done; err != errNotAllowed || sent() != 4 {
			t.Errorf("%v after its task, sent %d", err, sent())
		}
		e.feeds.close(f)
	})
}

// counted counts what a stream asks.
type counted struct {
	*house
	asked, withSession int
}

func (c *counted) Admit(ctx context.Context, cred gateway.Credential) (gateway.Principal, gateway.Task, error) {
	c.set(func() {
		if c.asked++; cred.Session != "" {
			c.withSession++
		}
	})
	return c.house.Admit(ctx, cred)
}

func (c *counted) read() (asked, withSession int) {
	c.set(func() { asked, withSession = c.asked, c.withSession })
	return asked, withSession
}
