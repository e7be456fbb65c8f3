package servers

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// raw is a server that is written by hand: do has each connection, and its number.
type raw struct {
	net.Listener
	conns atomic.Int32
}

func serveRaw(t testing.TB, do func(c *rawConn)) (*lean, *raw) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &raw{Listener: listener}
	t.Cleanup(func() { s.Close() })
	go func() {
		for {
			c, err := s.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				do(&rawConn{Conn: c, in: bufio.NewReader(c), n: int(s.conns.Add(1))})
			}()
		}
	}()
	u := &url.URL{Scheme: "http", Host: s.Addr().String(), Path: "/mcp"}
	l, err := newLean(u, u.Host, (&net.Dialer{}).DialContext)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.CloseIdleConnections)
	return l, s
}

type rawConn struct {
	net.Conn
	in *bufio.Reader
	n  int // of the connection
}

// asked reads a request, and its body; nil where none comes any more.
func (c *rawConn) asked() (r *http.Request, body string) {
	r, err := http.ReadRequest(c.in)
	if err != nil {
		return nil, ""
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, ""
	}
	return r, string(b)
}

func (c *rawConn) say(s string) { io.WriteString(c, s) }

// closed returns when the other side has closed the connection.
func (c *rawConn) closed() { io.Copy(io.Discard, c.in) }

func ok(body string) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

func (l *lean) begin(ctx context.Context, body string) (*http.Response, *upload, error) {
	u := &upload{body: []byte(body)}
	r := (&http.Request{Method: http.MethodPost, URL: l.url, Header: http.Header{"Accept": acceptsBoth}}).WithContext(ctx)
	resp, err := l.trip(r, u)
	return resp, u, err
}

// ask does one round trip.
func (l *lean) ask(ctx context.Context, body string) (string, error) {
	resp, _, err := l.begin(ctx, body)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

func (l *lean) idles() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.idle)
}

// What a server answers, and whether its connection may be used again. However it is,
// the next request reads its own answer.
var answers = []struct {
	name, is, want string
	again          bool
	err            bool
}{
	{"as usual", ok("one"), "one", true, false},
	{"much", ok(much), much, true, false},
	{"in chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n2\r\nne\r\n0\r\n\r\n", "one", true, false},
	{"with a trailer", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\nX: y\r\n\r\n", "one", true, false},
	{"without a body", "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n", "", true, false},
	{"204", "HTTP/1.1 204 No Content\r\n\r\n", "", true, false},
	{"204 with a length", "HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n", "", true, false},
	{"204 with a body", "HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\none", "", false, false},
	{"304", "HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n", "", true, false},
	{"after 100", "HTTP/1.1 100 Continue\r\n\r\n" + ok("one"), "one", true, false},
	{"after 103, often", strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", 50) + ok("one"), "one", true, false},
	{"lengths that agree", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\none", "one", true, false},

	{"and closes", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\none", "one", false, false},
	{"and closes, among others", "HTTP/1.1 200 OK\r\nConnection: keep-alive, Close\r\nContent-Length: 3\r\n\r\none", "one", false, false},
	{"HTTP/1.0", "HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\none", "one", false, false},
	{"HTTP/1.0 that goes on", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\none", "one", false, false},
	{"HTTP/1.0 in chunks", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\none", "one", false, false},
	{"HTTP/2.1", "HTTP/2.1 200 OK\r\nContent-Length: 3\r\n\r\none", "one", false, false},
	{"more than its length", ok("one") + "two", "one", false, false},
	{"an empty line behind it", ok("one") + "\r\n", "one", false, false},
	{"two answers", ok("one") + ok("two"), "one", false, false},
	{"an answer behind no body", "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n" + ok("two"), "", false, false},
	{"an answer behind chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\n" + ok("two"), "one", false, false},
	{"chunks and a length", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\n" + ok("two"), "one", false, false},

	{"lengths that differ", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\none", "", false, true},
	{"no length", "HTTP/1.1 200 OK\r\nContent-Length: three\r\n\r\none", "", false, true},
	{"another coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n3\r\none\r\n0\r\n\r\n", "", false, true},
	{"chunks that are none", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\none\r\n0\r\n\r\n", "", false, true},
	{"a long trailer", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\nX: " + strings.Repeat("y", 8<<10) + "\r\n\r\n", "one", false, true},
	{"101", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n" + ok("one"), "", false, true},
	{"099", "HTTP/1.1 099 What\r\nContent-Length: 3\r\n\r\none", "", false, true},
	{"no HTTP", "SSH-2.0-OpenSSH\r\n\r\n", "", false, true},
	{"an empty line first", "\r\n" + ok("one"), "", false, true},
	{"a header that is none", "HTTP/1.1 200 OK\r\nContent-Length 3\r\n\r\none", "", false, true},
	{"a long head", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("y", maxHead) + "\r\n\r\n", "", false, true},
	{"a head without end", "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: y\r\n", maxHead/6), "", false, true},
	{"1xx without end", strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", maxHead/25+1), "", false, true},
}

var much = strings.Repeat("x", 4*maxHead)

func TestLeanAnswers(t *testing.T) {
	for _, a := range answers {
		t.Run(a.name, func(t *testing.T) {
			closed := make(chan struct{}, 2)
			l, s := serveRaw(t, func(c *rawConn) {
				for n := 0; ; n++ {
					if r, _ := c.asked(); r == nil {
						closed <- struct{}{}
						return
					}
					if c.n == 1 && n == 0 {
						c.say(a.is)
					} else {
						c.say(ok("next"))
					}
				}
			})
			got, err := l.ask(t.Context(), "1")
			if (err != nil) != a.err || got != a.want || l.idles() > 0 != a.again {
				t.Errorf("read %.20q, %v; %d connections are idle", got, err, l.idles())
			}
			if !a.again {
				<-closed
			}
			got, err = l.ask(t.Context(), "2")
			if err != nil || got != "next" || s.conns.Load() == 1 != a.again {
				t.Errorf("then read %q, %v, over %d connections", got, err, s.conns.Load())
			}
		})
	}
}

// What comes in on an idle connection is no answer to what is asked next; and one that
// is not there any more is not asked.
func TestLeanLooksAtAnIdleConnection(t *testing.T) {
	for name, does := range map[string]func(c *rawConn){
		"an answer that nobody asked for": func(c *rawConn) { c.say(ok("forged")) },
		"one byte":                        func(c *rawConn) { c.say("H") },
		"its end":                         func(c *rawConn) { c.Conn.(*net.TCPConn).CloseWrite() },
		"a reset": func(c *rawConn) {
			c.Conn.(*net.TCPConn).SetLinger(0)
			c.Close()
		},
	} {
		now := make(chan struct{})
		l, s := serveRaw(t, func(c *rawConn) {
			c.asked()
			c.say(ok("right"))
			if c.n == 1 {
				<-now
				does(c)
			}
			c.closed()
		})
		if got, err := l.ask(t.Context(), "1"); err != nil || got != "right" || l.idles() != 1 {
			t.Fatal(got, err)
		}
		close(now)
		arrives(t, l.idle[0])
		if got, err := l.ask(t.Context(), "2"); err != nil || got != "right" || s.conns.Load() != 2 {
			t.Errorf("%s: read %q, %v, over %d connections", name, got, err, s.conns.Load())
		}
	}
}

// arrives returns when something has come in on an idle connection, and leaves it there.
func arrives(t *testing.T, c *leanConn) {
	t.Helper()
	err := c.raw.Read(func(fd uintptr) bool {
		_, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK)
		return err != syscall.EAGAIN
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A request is sent once, whatever becomes of the connection, and it is known whether it
// may have been.
func TestLeanSendsOnce(t *testing.T) {
	var asked atomic.Int32
	l, s := serveRaw(t, func(c *rawConn) {
		for {
			_, body := c.asked()
			if body == "" {
				return
			}
			asked.Add(1)
			if body == "break" {
				return
			}
			c.say(ok("fine"))
		}
	})
	for range 2 {
		if got, err := l.ask(t.Context(), "hello"); err != nil || got != "fine" {
			t.Fatal(got, err)
		}
	}
	_, u, err := l.begin(t.Context(), "break")
	if err == nil || !u.sent.Load() || asked.Load() != 3 || s.conns.Load() != 1 {
		t.Errorf("%v, sent %v, asked %d times over %d connections", err, u.sent.Load(), asked.Load(), s.conns.Load())
	}
	// What was not begun was not sent.
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, u, err := l.begin(gone, "x"); !errors.Is(err, context.Canceled) || u.sent.Load() {
		t.Errorf("%v, sent %v", err, u.sent.Load())
	}
	if got, err := l.ask(t.Context(), "hello"); err != nil || got != "fine" {
		t.Fatal(got, err)
	}
	idle := l.idle[0]
	s.Close()
	idle.Conn.(*net.TCPConn).CloseRead() // a dead one, and nobody to connect to
	if _, u, err := l.begin(t.Context(), "x"); err == nil || u.sent.Load() {
		t.Errorf("%v, sent %v", err, u.sent.Load())
	}
	if asked.Load() != 4 {
		t.Errorf("asked %d times", asked.Load())
	}
}

// A write that fails may have sent something.
func TestLeanCountsABrokenWriteAsSent(t *testing.T) {
	l, _ := serveRaw(t, func(*rawConn) {})
	l.dial = func(context.Context, string, string) (net.Conn, error) {
		c, other := net.Pipe()
		go func() {
			io.ReadFull(other, make([]byte, 10))
			other.Close()
		}()
		return c, nil
	}
	if _, u, err := l.begin(t.Context(), "x"); err == nil || !u.sent.Load() {
		t.Errorf("%v, sent %v", err, u.sent.Load())
	}
}

// A request ends with its context, wherever it is, and so does its connection.
func TestLeanEndsWithItsContext(t *testing.T) {
	over := make(chan struct{}, 1)
	for name, c := range map[string]struct {
		does func(c *rawConn)
		dial func(ctx context.Context, reached func()) (net.Conn, error)
		sent bool
	}{
		"while it connects": {dial: func(ctx context.Context, reached func()) (net.Conn, error) {
			reached()
			<-ctx.Done()
			over <- struct{}{}
			return nil, errors.New("no connection")
		}},
		"while it is written": {sent: true, dial: func(_ context.Context, reached func()) (net.Conn, error) {
			c, other := net.Pipe()
			go func() {
				io.ReadFull(other, make([]byte, 10))
				reached()
				io.Copy(io.Discard, &stalled{over: other})
				over <- struct{}{}
			}()
			return c, nil
		}},
		"before the answer": {sent: true, does: func(*rawConn) {}},
		"in the head":       {sent: true, does: func(c *rawConn) { c.say("HTTP/1.1 200 OK\r\nContent-") }},
		"after 100":         {sent: true, does: func(c *rawConn) { c.say("HTTP/1.1 100 Continue\r\n\r\n") }},
		"in the body":       {sent: true, does: func(c *rawConn) { c.say("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc") }},
		"in a stream": {sent: true, does: func(c *rawConn) {
			c.say("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n6\r\ndata:\n\r\n")
		}},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		l, _ := serveRaw(t, func(r *rawConn) {
			r.asked()
			c.does(r)
			cancel()
			r.closed()
			over <- struct{}{}
		})
		if c.dial != nil {
			l.dial = func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx, cancel) }
		}
		resp, u, err := l.begin(ctx, "x")
		if err == nil {
			_, err = io.ReadAll(resp.Body)
		}
		if !errors.Is(err, context.Canceled) || u.sent.Load() != c.sent || l.idles() != 0 {
			t.Errorf("%s: %v, sent %v", name, err, u.sent.Load())
		}
		<-over
		if resp != nil {
			resp.Body.Close()
		}
	}
}

// stalled reads nothing more until the other side is closed.
type stalled struct{ over net.Conn }

func (s *stalled) Read(p []byte) (int, error) {
	_, err := s.over.Write([]byte("x")) // a pipe takes nothing that nobody reads; it fails when it is closed
	return 0, cmp.Or(err, io.EOF)
}

// A context that ends after its response does no harm to whoever has the connection next.
func TestLeanIsNotEndedByAnOldContext(t *testing.T) {
	l, s := serveRaw(t, func(c *rawConn) {
		for {
			if r, _ := c.asked(); r == nil {
				return
			}
			c.say(ok("fine"))
		}
	})
	for range 100 {
		ctx, cancel := context.WithCancel(t.Context())
		if got, err := l.ask(ctx, "x"); err != nil || got != "fine" {
			t.Fatal(got, err)
		}
		cancel()
	}
	if s.conns.Load() != 1 {
		t.Errorf("there were %d connections", s.conns.Load())
	}
}

// One that ends before its response was read, though it is all there, takes its
// connection along.
func TestLeanEndedInTheLastMoment(t *testing.T) {
	over := make(chan struct{})
	l, _ := serveRaw(t, func(c *rawConn) {
		c.asked()
		c.say(ok("fine"))
		c.closed()
		close(over)
	})
	ctx, cancel := context.WithCancel(t.Context())
	resp, _, err := l.begin(ctx, "x")
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	io.ReadAll(resp.Body)
	if l.idles() != 0 {
		t.Error("it is idle")
	}
	<-over
}

// A body that nobody reads to its end takes its connection along.
func TestLeanClosesWhatIsNotRead(t *testing.T) {
	over := make(chan struct{})
	l, _ := serveRaw(t, func(c *rawConn) {
		c.asked()
		c.say("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\na b")
		c.closed()
		close(over)
	})
	resp, _, err := l.begin(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	io.ReadFull(resp.Body, make([]byte, 3))
	resp.Body.Close()
	<-over
	if n, err := resp.Body.Read(make([]byte, 9)); n != 0 || err == nil || l.idles() != 0 {
		t.Errorf("read %d bytes more, %v; %d connections are idle", n, err, l.idles())
	}
}

// A body that was read does not touch the connection again: it is another's.
func TestLeanBodyThatIsOver(t *testing.T) {
	l, s := serveRaw(t, func(c *rawConn) {
		for {
			if r, _ := c.asked(); r == nil {
				return
			}
			c.say(ok("fine"))
		}
	})
	first, _, err := l.begin(t.Context(), "1")
	if err != nil {
		t.Fatal(err)
	}
	io.ReadAll(first.Body)
	second, _, err := l.begin(t.Context(), "2")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := first.Body.Read(make([]byte, 9)); n != 0 || err != io.EOF {
		t.Errorf("read %d bytes more, %v", n, err)
	}
	first.Body.Close()
	if b, err := io.ReadAll(second.Body); string(b) != "fine" || err != nil || s.conns.Load() != 1 {
		t.Errorf("read %q, %v, over %d connections", b, err, s.conns.Load())
	}
}

// clocked knows when its reads end.
type clocked struct {
	*net.TCPConn
	until time.Time
}

func (c *clocked) SetDeadline(t time.Time) error {
	c.until = t
	return c.TCPConn.SetDeadline(t)
}

// What stands behind an answer is read on for a moment when its call is over.
func TestLeanOutlasts(t *testing.T) {
	goOn, over := make(chan struct{}), make(chan struct{})
	l, s := serveRaw(t, func(c *rawConn) {
		for n := 0; ; n++ {
			if r, _ := c.asked(); r == nil {
				close(over)
				return
			}
			c.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
			if <-goOn; n == 0 {
				c.say("0\r\n\r\n")
			}
		}
	})
	dial := l.dial
	var conn *clocked
	l.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		conn = &clocked{TCPConn: c.(*net.TCPConn)}
		return conn, nil
	}
	begin := func(d time.Duration) io.ReadCloser {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		resp, _, err := l.begin(ctx, "x")
		if err != nil {
			t.Fatal(err)
		}
		io.ReadFull(resp.Body, make([]byte, 3))
		resp.Body.(lasting).outlast(d)
		return resp.Body
	}
	body := begin(time.Minute)
	if conn.until.IsZero() {
		t.Error("it is read on without end")
	}
	goOn <- struct{}{}
	if b, err := io.ReadAll(body); len(b) > 0 || err != nil || l.idles() != 1 || !conn.until.IsZero() {
		t.Errorf("read %q, %v; %d connections are idle, until %v", b, err, l.idles(), conn.until)
	}
	body = begin(time.Millisecond)
	if _, err := io.ReadAll(body); err == nil || l.idles() != 0 || s.conns.Load() != 1 {
		t.Errorf("it ended with %v; %d connections are idle", err, l.idles())
	}
	goOn <- struct{}{}
	<-over
}

// So many connections are kept idle, and for so long; the one that was used last is used
// next.
func TestLeanKeepsFew(t *testing.T) {
	l, s := serveRaw(t, func(c *rawConn) { c.closed() })
	var all []*leanConn
	for range maxIdle + 1 {
		c, err := l.take(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	for _, c := range all {
		l.put(c)
	}
	if _, err := all[maxIdle].Conn.Write(nil); l.idles() != maxIdle || !errors.Is(err, net.ErrClosed) {
		t.Errorf("%d are idle, and one more: %v", l.idles(), err)
	}
	last, err := l.take(t.Context())
	if err != nil || last != all[maxIdle-1] {
		t.Errorf("it is not the last one: %v", err)
	}
	// Those of which nobody knows since when they are dead.
	old := slices.Clone(l.idle)
	for _, c := range old[:10] {
		c.since = c.since.Add(-idleFor)
	}
	l.sweep()
	for i, c := range old {
		if _, err := c.Conn.Write(nil); errors.Is(err, net.ErrClosed) != (i < 10) {
			t.Errorf("%d: %v", i, err)
		}
	}
	if l.idles() != len(old)-10 || l.sweeps == nil {
		t.Errorf("%d are idle", l.idles())
	}
	old[len(old)-1].since = time.Now().Add(-idleFor)
	if c, err := l.take(t.Context()); err != nil || c != old[len(old)-2] {
		t.Errorf("an old one is used: %v", err)
	}
	l.CloseIdleConnections()
	l.put(last)
	if l.idles() != 0 {
		t.Errorf("%d are idle", l.idles())
	}
	for i, c := range all {
		if _, err := c.Conn.Write(nil); !errors.Is(err, net.ErrClosed) && c != old[len(old)-2] {
			t.Errorf("%d is open: %v", i, err)
		}
	}
	old[len(old)-2].Close()
	if int(s.conns.Load()) > maxIdle+1 {
		t.Errorf("there were %d connections", s.conns.Load())
	}
}

// What a request says is what the caller said, and nothing that could be read otherwise.
func TestLeanRequests(t *testing.T) {
	type request struct {
		r    *http.Request
		body string
	}
	asked := make(chan request, 1)
	l, s := serveRaw(t, func(c *rawConn) {
		for {
			r, body := c.asked()
			if r == nil {
				return
			}
			asked <- request{r, body}
			c.say(ok(""))
		}
	})
	send := func(verb string, u *url.URL, body []byte, header http.Header) (*upload, error) {
		up := &upload{body: body}
		resp, err := l.trip((&http.Request{Method: verb, URL: u, Header: header}).WithContext(t.Context()), up)
		if err == nil {
			resp.Body.Close()
		}
		return up, err
	}
	for _, h := range []http.Header{
		{"A B": {"x"}}, {"": {"x"}}, {"A:": {"x"}}, {"A\r\nB": {"x"}}, {"Ä": {"x"}},
		{"A": {"x\r\nB: y"}}, {"A": {"x\ny"}}, {"A": {"x\x00"}}, {"A": {"x", "\r"}},
	} {
		if u, err := send(http.MethodPost, l.url, []byte("x"), h); !errors.Is(err, errHeader) || u.sent.Load() {
			t.Errorf("%q: %v", h, err)
		}
	}
	for _, text := range []string{"http://other.example/mcp", "https://" + l.url.Host + "/mcp", "http://" + l.url.Host + "/mcp?a b"} {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if up, err := send(http.MethodPost, u, []byte("x"), nil); !errors.Is(err, errElsewhere) || up.sent.Load() {
			t.Errorf("%s: %v", u, err)
		}
	}
	if s.conns.Load() != 0 {
		t.Errorf("there were %d connections", s.conns.Load())
	}
	_, err := send(http.MethodPost, l.url, []byte("a body"), http.Header{"X-One": {" a ", "b"}, "Host": {"evil"}, "content-length": {"1"}, "Transfer-Encoding": {"chunked"}, "Trailer": {"x"}})
	got := <-asked
	if err != nil || got.body != "a body" || got.r.Method != "POST" || got.r.RequestURI != "/mcp" || got.r.Host != s.Addr().String() || got.r.ContentLength != 6 || len(got.r.TransferEncoding) > 0 ||
		fmt.Sprint(got.r.Header) != "map[Content-Length:[6] X-One:[a b]]" {
		t.Errorf("%v, it reads %+v", err, got)
	}
	u, _ := l.url.Parse("/other path?q=1")
	_, err = send(http.MethodGet, u, nil, nil)
	if got := <-asked; err != nil || got.r.Method != "GET" || got.r.RequestURI != "/other%20path?q=1" || fmt.Sprint(got.r.Header) != "map[]" || got.body != "" {
		t.Errorf("%v, it reads %+v", err, got)
	}
	if n := l.idles(); s.conns.Load() != 1 || n != 1 {
		t.Errorf("there were %d connections, of which %d are idle", s.conns.Load(), n)
	}
	// Whoever asks to close means it.
	if _, err = send(http.MethodGet, l.url, nil, http.Header{"Connection": {"close"}}); err != nil || l.idles() != 0 {
		t.Errorf("%v, %d are idle", err, l.idles())
	}
	<-asked
}

func TestLeanHosts(t *testing.T) {
	for text, want := range map[string]string{
		"http://tools.example/a?b":     "tools.example tools.example:80 /a?b",
		"http://tools.example:8080":    "tools.example:8080 tools.example:8080 /",
		"http://übung.example/":        "xn--bung-zra.example xn--bung-zra.example:80 /",
		"http://[::1]:1/":              "[::1]:1 [::1]:1 /",
		"http://[fe80::1%25eth0]:1/":   "[fe80::1]:1 [fe80::1%eth0]:1 /",
		"http://tools.example/a?b c":   "",
		"http://tools.example/a%0d%0a": "tools.example tools.example:80 /a%0d%0a",
	} {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		l, err := newLean(u, net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "80")), nil)
		got := ""
		if err == nil {
			got = l.host + " " + l.address + " " + l.uri
		}
		if got != want {
			t.Errorf("%s: %s, %v", text, got, err)
		}
	}
}

// A server may answer before it has read all.
func TestLeanAnsweredEarly(t *testing.T) {
	big := strings.Repeat("x", 32<<20)
	for name, does := range map[string]func(c *rawConn){
		"and reads no more": func(c *rawConn) {
			c.in.ReadString('\n')
			c.say(ok("enough"))
			<-t.Context().Done()
		},
		"and is gone": func(c *rawConn) {
			c.in.ReadString('\n')
			c.say(ok("enough"))
			c.Conn.(*net.TCPConn).CloseWrite()
			c.closed()
		},
		"and reads what it need not": func(c *rawConn) {
			c.in.ReadString('\n')
			c.say("HTTP/1.1 413 Content Too Large\r\nContent-Length: 6\r\n\r\nenough")
			c.closed()
		},
	} {
		l, s := serveRaw(t, func(c *rawConn) {
			if c.asked(); c.n == 1 {
				c.say(ok("first"))
				does(c)
				return
			}
			c.say(ok("next"))
		})
		if got, err := l.ask(t.Context(), "x"); err != nil || got != "first" {
			t.Fatal(got, err)
		}
		got, err := l.ask(t.Context(), big)
		if err != nil || got != "enough" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if got, err := l.ask(t.Context(), "x"); err != nil || got != "next" || s.conns.Load() != 2 {
			t.Errorf("%s: then %q, %v, over %d connections", name, got, err, s.conns.Load())
		}
	}
	// One that is read whole leaves a connection that can be used again.
	l, s := serveRaw(t, func(c *rawConn) {
		for {
			r, body := c.asked()
			if r == nil {
				return
			}
			c.say(ok(fmt.Sprint(len(body), bytes.Count([]byte(body), []byte("x")))))
		}
	})
	for range 2 {
		if got, err := l.ask(t.Context(), big); got != fmt.Sprint(len(big), len(big)) {
			t.Error(got, err)
		}
	}
	if n := s.conns.Load(); n > 2 {
		t.Errorf("there were %d connections", n)
	}
}

// An answer that came before the connection broke counts, though the request did not go
// out whole.
func TestLeanReadsBehindABrokenWrite(t *testing.T) {
	l, _ := serveRaw(t, func(*rawConn) {})
	l.dial = func(context.Context, string, string) (net.Conn, error) {
		return &refuses{Reader: strings.NewReader("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")}, nil
	}
	if got, err := l.ask(t.Context(), "x"); got != "no" || err != nil || l.idles() != 0 {
		t.Errorf("%q, %v; %d are idle", got, err, l.idles())
	}
}

// refuses is a connection that takes nothing.
type refuses struct {
	net.Conn
	io.Reader
}

func (r *refuses) Read(p []byte) (int, error)  { return r.Reader.Read(p) }
func (r *refuses) Write(p []byte) (int, error) { return 0, syscall.EPIPE }
func (r *refuses) Close() error                { return nil }

// Many at once read each their own.
func TestLeanManyAtOnce(t *testing.T) {
	l, s := serveRaw(t, func(c *rawConn) {
		for n := 0; ; n++ {
			r, body := c.asked()
			if r == nil {
				return
			}
			if c.say(ok(body)); n%7 == 6 {
				c.say("garbage")
			}
		}
	})
	var all sync.WaitGroup
	for i := range 32 {
		all.Go(func() {
			for n := range 50 {
				ctx, cancel := context.WithCancel(t.Context())
				say := fmt.Sprintf("%d of %d", n, i)
				if n%10 == 9 {
					go cancel()
				}
				got, err := l.ask(ctx, say)
				cancel()
				// The garbage may come in while the next request is on its way.
				if err == nil && got != say {
					t.Errorf("asked %q, read %q", say, got)
				}
			}
		})
	}
	all.Wait()
	if n := l.idles(); n > 32 {
		t.Errorf("%d idle of %d", n, s.conns.Load())
	}
}

// Who goes which way.
func TestWays(t *testing.T) {
	proxy := func(*http.Request) (*url.URL, error) { return nil, nil }
	for _, c := range []struct {
		url   string
		proxy func(*http.Request) (*url.URL, error)
		lean  bool
	}{
		{"http://tools.example/", nil, true},
		{"http://127.0.0.1:1/", nil, true},
		{"https://tools.example/", nil, false},
		{"http://tools.example/", proxy, false},
	} {
		s, err := New(Config{Tenants: []string{"a"}, Proxy: c.proxy, Servers: []Server{{Name: "x", URL: c.url}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := s.servers["x"].way.(*lean); ok != c.lean {
			t.Errorf("%s: %T", c.url, s.servers["x"].way)
		}
		s.Close(t.Context())
	}
}
