package servers

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/http/httpguts"
)

const (
	maxHead  = 64 << 10    // of a response, with what comes before it (1xx)
	maxIdle  = 256         // connections to a server that nobody uses
	idleFor  = time.Minute // that one is kept
	inOne    = 32 << 10    // of a request's body, that is copied behind the head
	lastHead = 64 << 10    // of the room for a request that is kept
)

// lean is the way to a plain http server to which no proxy leads: HTTP/1.1, one request
// at a time on each connection, in the goroutine of whoever makes it. What a response
// says is read by net/http.
//
// A request is sent once. The bytes of one response are never read as the next one's: a
// connection is used again only when a response that allows it was read to its end, its
// request had gone out whole, and nothing stood behind it; and an idle one on which
// anything has come in since is not used.
type lean struct {
	url     *url.URL // of the server; nothing goes elsewhere
	uri     string   // of url
	host    string   // for the header
	address string   // to connect to
	dial    dialer

	mu     sync.Mutex
	idle   []*leanConn // the one that was used last comes last
	sweeps *time.Timer
	closed bool
}

// leanConn is a connection of a [lean]'s.
type leanConn struct {
	net.Conn
	in    *bufio.Reader
	left  int64           // that may come in now
	raw   syscall.RawConn // nil: it is used once
	wrote atomic.Bool     // that the request on it has gone out whole
	since time.Time       // when it became idle

	look  func(fd uintptr) bool
	seen  [1]byte
	quiet bool // what look found
	kill  func()
}

var (
	errElsewhere = errors.New("a request for another server")
	errHeader    = errors.New("a header cannot be sent over HTTP")
	errSwitches  = unusable("the server switches to something that nobody asked for")
)

// newLean makes the way to u, whose connections come from dial.
func newLean(u *url.URL, address string, dial dialer) (*lean, error) {
	l := &lean{url: u, uri: u.RequestURI(), dial: dial}
	host, err := httpguts.PunycodeHostPort(u.Host)
	if err == nil {
		l.address, err = httpguts.PunycodeHostPort(address)
	}
	if end := strings.LastIndexByte(host, ']'); end > 0 { // RFC 6874: a zone is nobody else's
		if at := strings.LastIndexByte(host[:end], '%'); at > 0 {
			host = host[:at] + host[end:]
		}
	}
	if l.host = host; err != nil || !httpguts.ValidHostHeader(host) || !sendable(l.uri) {
		return nil, errors.New("its URL is not one that a request can be sent to")
	}
	return l, nil
}

// sendable reports whether a URI stays within its line.
func sendable(uri string) bool {
	return !strings.ContainsFunc(uri, func(r rune) bool { return r <= ' ' || r == 0x7f })
}

var heads = sync.Pool{New: func() any { return new(make([]byte, 0, 4<<10)) }}

func putHead(room *[]byte, b []byte) {
	if *room = b[:0]; cap(b) <= lastHead {
		heads.Put(room)
	}
}

// trip implements [way].
func (l *lean) trip(r *http.Request, u *upload) (*http.Response, error) {
	ctx := r.Context()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	room := heads.Get().(*[]byte)
	b, err := l.head((*room)[:0], r, u.body)
	if err != nil {
		heads.Put(room)
		return nil, err
	}
	c, err := l.take(ctx)
	if err != nil {
		putHead(room, b)
		return nil, why(ctx, err)
	}
	t := &leanBody{l: l, c: c, ctx: ctx, stop: context.AfterFunc(ctx, c.kill)}
	u.sent.Store(true)
	c.write(room, b, u.body)
	resp, err := c.answer(r)
	if err != nil {
		t.Close()
		return nil, why(ctx, err)
	}
	// An older server may not know where its response ends.
	t.keep = !resp.Close && resp.ProtoMajor == 1 && resp.ProtoMinor == 1 && r.Header["Connection"] == nil
	t.from, resp.Body = resp.Body, t
	if t.from == http.NoBody {
		t.last = io.EOF
		t.end(true)
	}
	return resp, nil
}

// why is how a request or its response ended.
func why(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// head writes what comes before a body.
func (l *lean) head(b []byte, r *http.Request, body []byte) ([]byte, error) {
	uri := l.uri
	if r.URL != l.url {
		uri = r.URL.RequestURI()
		if r.URL.Scheme != l.url.Scheme || r.URL.Host != l.url.Host || !sendable(uri) {
			return b, errElsewhere
		}
	}
	b = append(append(b, r.Method...), ' ')
	b = append(append(b, uri...), " HTTP/1.1\r\nHost: "...)
	b = append(append(b, l.host...), "\r\n"...)
	if body != nil {
		b = append(b, "Content-Length: "...)
		b = append(strconv.AppendInt(b, int64(len(body)), 10), "\r\n"...)
	}
	for name, values := range r.Header {
		if framing(name) {
			continue
		}
		if !httpguts.ValidHeaderFieldName(name) {
			return b, errHeader
		}
		for _, v := range values {
			if !httpguts.ValidHeaderFieldValue(v) {
				return b, errHeader
			}
			b = append(append(b, name...), ": "...)
			b = append(append(b, textproto.TrimString(v)...), "\r\n"...)
		}
	}
	return append(b, "\r\n"...), nil
}

// framing reports whether a header says where a request goes or ends, as net/http and
// we say it ourselves.
func framing(name string) bool {
	for _, f := range [...]string{"Host", "Content-Length", "Transfer-Encoding", "Trailer"} {
		if strings.EqualFold(name, f) {
			return true
		}
	}
	return false
}

// take returns a connection that nobody else uses.
func (l *lean) take(ctx context.Context) (*leanConn, error) {
	for c := l.pop(); c != nil; c = l.pop() {
		if time.Since(c.since) < idleFor && c.untouched() {
			c.wrote.Store(false)
			return c, nil
		}
		c.Close()
	}
	conn, err := l.dial(ctx, "tcp", l.address)
	if err != nil {
		return nil, err
	}
	c := &leanConn{Conn: conn}
	c.in = bufio.NewReader(c)
	c.look, c.kill = c.lookAt, func() { conn.Close() }
	if s, ok := conn.(syscall.Conn); ok {
		c.raw, _ = s.SyscallConn()
	}
	return c, nil
}

func (l *lean) pop() *leanConn {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.idle) - 1
	if n < 0 {
		return nil
	}
	c := l.idle[n]
	l.idle[n] = nil
	l.idle = l.idle[:n]
	return c
}

// put keeps a connection for the next request.
func (l *lean) put(c *leanConn) {
	c.since = time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.idle) >= maxIdle || c.raw == nil {
		c.Close()
		return
	}
	l.idle = append(l.idle, c)
	if l.sweeps == nil {
		l.sweeps = time.AfterFunc(idleFor, l.sweep)
	}
}

// sweep closes what was idle for long.
func (l *lean) sweep() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(func(c *leanConn) bool { return time.Since(c.since) >= idleFor })
	if l.sweeps = nil; len(l.idle) > 0 {
		l.sweeps = time.AfterFunc(idleFor-time.Since(l.idle[0].since), l.sweep)
	}
}

// drop closes idle connections, from the oldest on, for as long as they are old.
func (l *lean) drop(old func(*leanConn) bool) {
	n := 0
	for n < len(l.idle) && old(l.idle[n]) {
		l.idle[n].Close()
		n++
	}
	l.idle = append(l.idle[:0:0], l.idle[n:]...)
}

// CloseIdleConnections implements [way].
func (l *lean) CloseIdleConnections() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.drop(func(*leanConn) bool { return true })
	if l.sweeps != nil {
		l.sweeps.Stop()
	}
}

// Read reads for [leanConn.in]. Only so much comes in as may.
func (c *leanConn) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, errTooBig
	}
	n, err := c.Conn.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}

// untouched reports whether nothing has come in on an idle connection: neither its end
// nor anything that nobody asked for.
func (c *leanConn) untouched() bool {
	c.quiet = false
	return c.raw.Read(c.look) == nil && c.quiet
}

// lookAt is called with the connection's descriptor, which is never waited for.
func (c *leanConn) lookAt(fd uintptr) bool {
	_, err := syscall.Read(int(fd), c.seen[:])
	c.quiet = err == syscall.EAGAIN
	return true
}

// write sends a request, in one piece. One that is big goes out beside everything else:
// a server may answer before it has read all of it. That a write fails is told by what is
// read: an answer may have come before.
func (c *leanConn) write(room *[]byte, head, body []byte) {
	if len(body) <= inOne {
		b := append(head, body...)
		_, err := c.Conn.Write(b)
		c.wrote.Store(err == nil)
		putHead(room, b)
		return
	}
	go func() {
		_, err := (&net.Buffers{head, body}).WriteTo(c.Conn)
		c.wrote.Store(err == nil)
		putHead(room, head)
	}()
}

// answer reads the head of the response.
func (c *leanConn) answer(r *http.Request) (*http.Response, error) {
	c.left = maxHead
	for {
		resp, err := http.ReadResponse(c.in, r)
		switch {
		case err != nil:
			return nil, err
		case resp.StatusCode >= 200:
			c.left = math.MaxInt64
			return resp, nil
		case resp.StatusCode < 100 || resp.StatusCode == http.StatusSwitchingProtocols:
			return nil, errSwitches
		}
	}
}

// leanBody is the body of a response. Read to its end it gives back the connection; closed
// before, it closes it. It implements [lasting].
type leanBody struct {
	l    *lean
	c    *leanConn
	ctx  context.Context
	stop func() bool // ctx no longer closes the connection; false: it does
	from io.Reader   // what net/http made
	keep bool        // the connection, where all goes well

	last  error // that Read returned
	timed bool
	over  atomic.Bool // the connection is somebody else's now
}

func (t *leanBody) Read(p []byte) (int, error) {
	if t.over.Load() {
		return 0, cmp.Or(t.last, http.ErrBodyReadAfterClose)
	}
	n, err := t.from.Read(p)
	if err != nil {
		if err != io.EOF {
			err = why(t.ctx, err)
		}
		t.last = err
		t.end(err == io.EOF)
	}
	return n, err
}

func (t *leanBody) Close() error {
	t.end(false)
	return nil
}

func (t *leanBody) end(whole bool) {
	if t.over.Swap(true) {
		return
	}
	if t.stop() && whole && t.keep && t.c.wrote.Load() && t.c.in.Buffered() == 0 && (!t.timed || t.c.SetDeadline(time.Time{}) == nil) {
		t.l.put(t.c)
		return
	}
	t.c.Close()
}

func (t *leanBody) outlast(d time.Duration) {
	if !t.over.Load() && t.stop() {
		t.stop, t.timed = func() bool { return true }, true
		_ = t.c.SetDeadline(time.Now().Add(d))
	}
}
