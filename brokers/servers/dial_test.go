package servers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

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
		{Server{URL: "http://tools.example/"}, false},
		{Server{URL: "http://tools.example/", AllowPrivate: true}, false},
		{Server{URL: "http://tools.example/", Allow: []string{"127.0.0.1/32"}}, true},
	} {
		c.s.Name = "x"
		s, err := New(Config{Tenants: []string{"a"}, Servers: []Server{c.s}})
		if err != nil {
			t.Fatal(err)
		}
		var dial dialer
		switch w := s.servers["x"].way.(type) {
		case full:
			dial = w.DialContext
		case *lean:
			dial = w.dial
		}
		conn, err := dial(t.Context(), "tcp", l.Addr().String())
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

// lapse has a breaker let one call try.
func (b *breaker) lapse() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all.until = time.Time{}
	for _, c := range b.troubled {
		c.until = time.Time{}
	}
}

// One that cannot be reached is left alone for a while, for its own callers only;
// then one call tries it.
func TestTheBreaker(t *testing.T) {
	f := &fake{modern: true}
	web := httptest.NewServer(f)
	t.Cleanup(func() { web.Close() })
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: web.URL}, {Name: "good", URL: (&fake{}).serve(t)}}})
	another := func(f *gateway.Forward) { f.Principal = gateway.Principal{ID: "q", Tenant: "b"}; f.Task.Tenant = "b" }
	address := web.Listener.Addr().String()
	web.CloseClientConnections()
	web.Close()
	_, _ = forward(t, s, "x__act", `{}`) // over a connection that was there
	for range trips {
		if _, err := forward(t, s, "x__act", `{}`); err == nil {
			t.Fatal("it reached something")
		}
	}
	for _, who := range []func(*gateway.Forward){func(*gateway.Forward) {}, another} {
		if _, err := forward(t, s, "x__act", `{}`, who); !errors.Is(err, errOpen) || !errors.Is(err, gateway.ErrNotSent) {
			t.Errorf("it ended with %v", err)
		}
	}
	if _, err := forward(t, s, "good__act", `{}`); err != nil {
		t.Error(err)
	}
	// A probe that fails leaves it open; one that works closes it.
	s.servers["x"].breaker.lapse()
	if _, err := forward(t, s, "x__act", `{}`); err == nil || errors.Is(err, errOpen) {
		t.Errorf("it was not tried: %v", err)
	}
	if _, err := forward(t, s, "x__act", `{}`); !errors.Is(err, errOpen) {
		t.Errorf("it ended with %v", err)
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	back := &httptest.Server{Listener: l, Config: &http.Server{Handler: f}}
	back.Start()
	defer back.Close()
	s.servers["x"].breaker.lapse()
	for range 2 {
		if _, err := forward(t, s, "x__act", `{}`); err != nil {
			t.Error(err)
		}
	}
}

// What one workload's calls bring a server to do to them shuts nobody else out, and no
// call of that workload to another server.
func TestOneWorkloadOpensNoBreakerForAll(t *testing.T) {
	for name, drops := range map[string]func(w http.ResponseWriter){
		"hangs up":     func(w http.ResponseWriter) { c, _, _ := w.(http.Hijacker).Hijack(); c.Close() },
		"times out":    func(w http.ResponseWriter) { w.WriteHeader(http.StatusGatewayTimeout) },
		"is no server": func(w http.ResponseWriter) { w.WriteHeader(http.StatusBadGateway) },
	} {
		for _, modern := range []bool{true, false} {
			f := &fake{modern: modern, session: "s"}
			f.before = func(w http.ResponseWriter, _ *http.Request, m fakeMessage) bool {
				bad := strings.Contains(string(m.Params), "evil")
				if bad {
					drops(w)
				}
				return bad
			}
			s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: f.serve(t)}}})
			evil := `{"a":"evil"}`
			for range 3 * trips {
				_, _ = forward(t, s, "x__act", evil)
			}
			if _, err := forward(t, s, "x__act", evil); !errors.Is(err, errShort) || !errors.Is(err, gateway.ErrNotSent) {
				t.Errorf("%s, modern %v: its own calls end with %v", name, modern, err)
			}
			for _, who := range []gateway.Principal{{ID: "q", Tenant: "a"}, {ID: "p", Tenant: "b"}} {
				if _, err := forward(t, s, "x__act", `{}`, func(f *gateway.Forward) { f.Principal, f.Task.Tenant = who, who.Tenant }); err != nil {
					t.Errorf("%s, modern %v: another's end with %v", name, modern, err)
				}
			}
			s.servers["x"].breaker.lapse()
			for range 2 {
				if _, err := forward(t, s, "x__act", `{}`); err != nil {
					t.Errorf("%s, modern %v: a good one ends with %v", name, modern, err)
				}
			}
		}
	}
}

// What counts against a server, and for whom.
func TestWhatTheBreakerCounts(t *testing.T) {
	p, q := workload{"a", "p"}, workload{"b", "q"}
	for _, c := range []struct {
		err       error
		own, alls bool
	}{
		{notSent(fmt.Errorf("%w: %w", errUnreachable, syscall.ECONNREFUSED)), true, true},
		{lost("x"), true, false},
		{statusError(503), true, false},
		{notSent(fmt.Errorf("%w: %w: %w", errUnreachable, errWaited, context.DeadlineExceeded)), true, false}, // its time may have gone elsewhere
		{notSent(errors.New("a header")), false, false},
		{statusError(500), false, false},
		{statusError(401), false, false},
		{errRubbish, false, false},
		{errTooBig, false, false},
		{context.DeadlineExceeded, false, false}, // slow, not gone: one agent could else shut out all
		{context.Canceled, false, false},
		{nil, false, false},
	} {
		b := &breaker{cools: cools}
		for range trips {
			done, err := b.enter(p)
			if err != nil {
				t.Fatal(err)
			}
			done(c.err)
		}
		if _, err := b.enter(p); (err != nil) != c.own {
			t.Errorf("after %v: %v", c.err, err)
		}
		if _, err := b.enter(q); (err != nil) != c.alls {
			t.Errorf("after %v, another: %v", c.err, err)
		}
		if b.works(); b.failing(p) != nil {
			t.Errorf("after %v it does not close", c.err)
		}
	}
	// One probe at a time; one that came to nothing is not held against anyone.
	for _, why := range []error{notSent(errUnreachable), lost("x")} {
		b := &breaker{cools: cools}
		for range trips {
			b.done(p, why)
		}
		b.lapse()
		probe, err := b.enter(p)
		if err != nil {
			t.Fatal(err)
		}
		if b.failing(p) == nil {
			t.Error("two probes at once")
		}
		probe(context.Canceled)
		if err := b.failing(p); err != nil {
			t.Error("no probe after one that was cancelled")
		}
	}
	// Nobody keeps others waiting with a memory full of workloads.
	b := &breaker{cools: cools}
	for i := range 2 * maxTroubled {
		b.done(workload{"a", fmt.Sprint(i)}, lost("x"))
	}
	if len(b.troubled) > maxTroubled {
		t.Errorf("%d are remembered", len(b.troubled))
	}
}

func (b *breaker) failing(of workload) error { _, err := b.enter(of); return err }
