package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"toolbroker/gateway"
)

// Whether an agent has read an answer no protocol says. What its connection says of
// that is kept to here: one that is reset, or closed before everything that was
// written was taken in, ends with the answer unread. One that is closed in order, or
// carries a next request, has been read. A proxy in between answers for itself.

// Watch makes server's connections from l known to the doors that server serves.
func Watch(server *http.Server, l net.Listener) net.Listener {
	server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if t, ok := c.(*tls.Conn); ok {
			c = t.NetConn()
		}
		return context.WithValue(ctx, connKey{}, c)
	}
	return watched{l}
}

type connKey struct{}

type watched struct{ net.Listener }

func (w watched) Accept() (net.Conn, error) {
	c, err := w.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c}, nil
}

// A conn is an agent's connection. A nil one is one of which nothing is known.
type conn struct {
	net.Conn

	mu     sync.Mutex
	closed bool
	broken bool          // its client reset it, or is gone
	ended  bool          // its client sends no more
	calls  []gateway.Try // that were answered on it, since its last request
}

// connOf returns the connection that a request came in on.
func connOf(hr *http.Request) *conn {
	c, _ := hr.Context().Value(connKey{}).(*conn)
	return c
}

// Read also notes how a connection ends.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil && !errors.Is(err, net.ErrClosed) {
		if timeout, ok := errors.AsType[net.Error](err); !ok || !timeout.Timeout() {
			c.mu.Lock()
			c.ended = true
			c.broken = c.broken || !errors.Is(err, io.EOF)
			c.mu.Unlock()
		}
	}
	return n, err
}

// Write also notes that a connection has broken.
func (c *conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		c.mu.Lock()
		c.broken = true
		c.mu.Unlock()
	}
	return n, err
}

// lingers is how long a client may take to read an answer after which we close.
const lingers = 2 * time.Second

// Close closes the connection. What was answered last may still be on its way, if it is
// us who close: then the client is given time to take it in.
func (c *conn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return c.Conn.Close()
	}
	c.closed = true
	wait := len(c.calls) > 0 && !c.ended
	c.mu.Unlock()
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if wait && ok && half.CloseWrite() == nil {
		go func() {
			_ = c.Conn.SetReadDeadline(time.Now().Add(lingers))
			_, _ = io.Copy(io.Discard, struct{ io.Reader }{c})
			c.over()
			_ = c.Conn.Close()
		}()
		return nil
	}
	c.over()
	return c.Conn.Close()
}

// over says of what was answered last whether it was read.
func (c *conn) over() {
	how := gateway.EndArrived
	if c.unread() {
		how = gateway.EndLost
	}
	c.end(how)
}

// next says that a next request has come in on the connection.
func (c *conn) next() {
	if c != nil {
		c.end(gateway.EndArrived)
	}
}

func (c *conn) end(how gateway.RunEnd) {
	c.mu.Lock()
	calls := c.calls
	c.calls = nil
	c.mu.Unlock()
	for _, one := range calls {
		one.End(how, gateway.Attempt{})
	}
}

// watch has one told whether its answer, which was just written, arrived; false where
// nobody will.
func (c *conn) watch(one gateway.Try) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.calls = append(c.calls, one)
	return true
}

// left reports whether the client has closed the connection.
func (c *conn) left() bool {
	if c == nil {
		return false
	}
	l := c.look()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended || c.broken || l.ended
}

// unread reports whether the client is gone and left something unread.
func (c *conn) unread() bool {
	if c == nil {
		return false
	}
	l := c.look()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.broken || l.ended && l.waiting
}

// A looked is what the system says of a connection. The zero one is open.
type looked struct {
	ended   bool // the client sends no more
	broken  bool // it reset the connection; nobody is told that twice
	waiting bool // something that was written has not reached it
}

func (c *conn) look() (l looked) {
	if raw, ok := c.Conn.(syscall.Conn); ok {
		if rc, err := raw.SyscallConn(); err == nil {
			_ = rc.Control(func(fd uintptr) { l = lookAt(int(fd)) })
		}
	}
	if l.broken {
		c.mu.Lock()
		c.broken = true
		c.mu.Unlock()
	}
	return l
}
