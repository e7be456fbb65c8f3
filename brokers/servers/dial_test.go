package servers

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"toolbroker/gateway"
)

func TestWhereAServerMayBe(t *testing.T) {
	var (
		usual   = reach{}
		here    = reach{loopback: true}
		private = reach{private: true}
		allowed = reach{allow: prefixes("10.1.0.0/16", "127.0.0.1/32", "169.254.169.254/32")}
	)
	for _, c := range []struct {
		ip                           string
		usual, here, private, allowd bool
	}{
		{"93.184.215.14", true, true, true, true},
		{"2606:2800:21f:cb07::1", true, true, true, true},
		{"127.0.0.1", false, true, false, true},
		{"127.9.9.9", false, true, false, false},
		{"::1", false, true, false, false},
		{"::ffff:127.0.0.1", false, true, false, true},
		{"10.1.2.3", false, false, true, true},
		{"::ffff:10.1.2.3", false, false, true, true},
		{"10.2.0.1", false, false, true, false},
		{"172.16.0.1", false, false, true, false},
		{"172.32.0.1", true, true, true, true},
		{"192.168.1.1", false, false, true, false},
		{"100.64.0.1", false, false, true, false},
		{"fc00::1", false, false, true, false},
		{"fd12::1", false, false, true, false},
		{"169.254.169.254", false, false, false, true}, // metadata
		{"::ffff:169.254.169.254", false, false, false, true},
		{"169.254.0.1", false, false, false, false},
		{"100.100.100.200", false, false, false, false},
		{"168.63.129.16", false, false, false, false},
		{"fd00:ec2::254", false, false, false, false},
		{"fe80::1", false, false, false, false},
		{"fe80::1%eth0", false, false, false, false},
		{"64:ff9b::a01:203", false, false, false, false}, // 10.1.2.3 by NAT64
		{"64:ff9b::7f00:1", false, false, false, false},
		{"2002:7f00:1::", false, false, false, false},
		{"2001:0:4136:e378::1", false, false, false, false},
		{"::7f00:1", false, false, false, false},
		{"0.0.0.0", false, false, false, false},
		{"0.1.2.3", false, false, false, false},
		{"::", false, false, false, false},
		{"224.0.0.1", false, false, false, false},
		{"ff02::1", false, false, false, false},
		{"255.255.255.255", false, false, false, false},
		{"240.0.0.1", false, false, false, false},
		{"198.18.0.1", false, false, false, false},
	} {
		ip := netip.MustParseAddr(c.ip)
		got := []bool{usual.permits(ip), here.permits(ip), private.permits(ip), allowed.permits(ip)}
		for i, want := range []bool{c.usual, c.here, c.private, c.allowd} {
			if got[i] != want {
				t.Errorf("%s under %s: %v", c.ip, []string{"no rule", "loopback", "private", "allow"}[i], got[i])
			}
		}
	}
}

// Whatever a name resolves to, what counts is the address that is connected to.
func TestTheAddressIsLookedAtWhenItIsUsed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, c := range []struct {
		s  Server
		ok bool
	}{
		{Server{URL: "https://tools.example/"}, false},
		{Server{URL: "https://tools.example/", AllowPrivate: true}, false},
		{Server{URL: "https://tools.example/", Allow: []string{"127.0.0.1/32"}}, true},
		{Server{URL: "http://localhost/"}, true},
	} {
		c.s.Name = "x"
		s, err := New(Config{Tenants: []string{"a"}, Servers: []Server{c.s}})
		if err != nil {
			t.Fatal(err)
		}
		conn, err := s.servers["x"].transport.DialContext(t.Context(), "tcp", l.Addr().String())
		if (err == nil) != c.ok || err != nil && !strings.Contains(err.Error(), "does not allow") {
			t.Errorf("%+v: %v", c.s, err)
		}
		if err == nil {
			conn.Close()
		}
		s.Close(t.Context())
	}
}

func TestAddressesThatMustBeAllowed(t *testing.T) {
	for _, c := range []struct {
		s  Server
		ok bool
	}{
		{Server{URL: "https://10.1.2.3/"}, false},
		{Server{URL: "https://10.1.2.3/", AllowPrivate: true}, true},
		{Server{URL: "https://10.1.2.3/", Allow: []string{"10.1.0.0/16"}}, true},
		{Server{URL: "https://10.1.2.3/", Allow: []string{"10.2.0.0/16"}}, false},
		{Server{URL: "http://169.254.169.254/", AllowPrivate: true}, false},
		{Server{URL: "http://[fd00:ec2::254]/", AllowPrivate: true}, false},
		{Server{URL: "http://[::ffff:a9fe:a9fe]/", AllowPrivate: true}, false},
		{Server{URL: "http://0.0.0.0/"}, false},
		{Server{URL: "http://127.0.0.1/"}, true},
		{Server{URL: "http://[::1]/"}, true},
		{Server{URL: "http://localhost/"}, true},
		{Server{URL: "https://tools.example/"}, true},
		{Server{URL: "https://tools.example/", Allow: []string{"10.1.2.3"}}, false},
		{Server{URL: "https://tools.example/", IdempotencyHeader: "Idempotency-Key"}, true},
		{Server{URL: "https://tools.example/", IdempotencyHeader: "CALL_KEY"}, true},
		{Server{URL: "https://tools.example/", IdempotencyHeader: "Authorization"}, false},
		{Server{URL: "https://tools.example/", IdempotencyHeader: "MCP_NAME"}, false}, // some read it as Mcp-Name
		{Server{URL: "https://tools.example/", IdempotencyHeader: "Mcp-Name"}, false},
		{Server{URL: "https://tools.example/", IdempotencyHeader: "a b"}, false},
		{Server{URL: "https://tools.example/", IdempotencyMeta: "io.modelcontextprotocol/protocolVersion"}, false},
		{Server{URL: "https://tools.example/", IdempotencyMeta: "io.toolbroker/x"}, false},
		{Server{URL: "https://tools.example/", IdempotencyMeta: "progressToken"}, false},
		{Server{URL: "https://tools.example/", IdempotencyMeta: `a"b`}, false},
		{Server{Command: []string{"/bin/true"}, IdempotencyHeader: "Key"}, false},
		{Server{Command: []string{"/bin/true"}, Protocol: SSE}, false},
	} {
		c.s.Name = "x"
		s, err := New(Config{Tenants: []string{"a"}, Servers: []Server{c.s}})
		if (err == nil) != c.ok {
			t.Errorf("%+v: %v", c.s, err)
		}
		if err == nil {
			s.Close(t.Context())
		}
	}
	if _, err := New(Config{Tenants: []string{"a"}, Servers: []Server{{Name: "3d", URL: "http://127.0.0.1"}, {Name: "x-3d", URL: "http://127.0.0.1"}}}); err == nil {
		t.Error("two servers share a name space")
	}
}

// One that cannot be reached is left alone for a while, for its own callers only;
// then one call tries it.
func TestTheBreaker(t *testing.T) {
	f := &fake{modern: true}
	var down atomic.Bool
	var calls atomic.Int32
	url := serveReal(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if down.Load() {
			calls.Add(1)
			c, _, _ := w.(http.Hijacker).Hijack()
			c.Close()
			return
		}
		f.ServeHTTP(w, r)
	}))
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: url}, {Name: "good", URL: (&fake{}).serve(t)}}})
	b := s.servers["x"].breaker
	down.Store(true)
	for range trips {
		if _, err := forward(t, s, "x__act", `{}`); err == nil || errors.Is(err, errOpen) {
			t.Fatalf("it ended with %v", err)
		}
	}
	was := calls.Load()
	_, err := forward(t, s, "x__act", `{}`)
	if !errors.Is(err, errOpen) || !errors.Is(err, gateway.ErrNotSent) || calls.Load() != was {
		t.Errorf("it ended with %v after %d calls", err, calls.Load()-was)
	}
	if _, err := forward(t, s, "good__act", `{}`); err != nil {
		t.Error(err)
	}
	// A probe that fails leaves it open; one that works closes it.
	lapse := func() {
		b.mu.Lock()
		b.until = b.until.Add(-b.cools)
		b.mu.Unlock()
	}
	lapse()
	if _, err := forward(t, s, "x__act", `{}`); err == nil || errors.Is(err, errOpen) {
		t.Errorf("it was not tried: %v", err)
	}
	if _, err := forward(t, s, "x__act", `{}`); !errors.Is(err, errOpen) {
		t.Errorf("it ended with %v", err)
	}
	down.Store(false)
	lapse()
	for range 2 {
		if _, err := forward(t, s, "x__act", `{}`); err != nil {
			t.Error(err)
		}
	}
}

// What counts against a server, and what does not.
func TestWhatTheBreakerCounts(t *testing.T) {
	for _, c := range []struct {
		err    error
		counts bool
	}{
		{notSent(errUnreachable), true},
		{lost("x"), true},
		{statusError(503), true},
		{statusError(500), false},
		{statusError(401), false},
		{errRubbish, false},
		{errTooBig, false},
		{context.DeadlineExceeded, false}, // slow, not gone: one agent could else shut out all
		{context.Canceled, false},
		{nil, false},
	} {
		b := &breaker{cools: cools}
		for range trips {
			done, err := b.enter()
			if err != nil {
				t.Fatal(err)
			}
			done(c.err)
		}
		if _, err := b.enter(); (err != nil) != c.counts {
			t.Errorf("after %v: %v", c.err, err)
		}
	}
	// One probe at a time; one that came to nothing is not held against anyone.
	b := &breaker{}
	for range trips {
		b.done(lost("x"))
	}
	probe, err := b.enter()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.enter(); err == nil {
		t.Error("two probes at once")
	}
	probe(context.Canceled)
	if _, err := b.enter(); err != nil {
		t.Error("no probe after one that was cancelled")
	}
}
