package servers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"syscall"
	"time"
)

// Where a server is never looked for, whatever a name resolves to, unless the
// config names the network: this machine, the link, and what the Internet does not
// route; cloud metadata is among them or named beside.
var (
	privateNets = prefixes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
	closedNets  = prefixes(
		"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4",
		"::/128", "::1/128", "fe80::/10", "fec0::/10", "ff00::/8", "100::/64", "2001::/23", "2002::/16", "64:ff9b::/96", "64:ff9b:1::/48", "::/96",
		"168.63.129.16/32", "100.100.100.200/32", "fd00:ec2::254/128", "fd20:ce::254/128") // metadata of clouds
)

func prefixes(all ...string) (out []netip.Prefix) {
	for _, s := range all {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// A reach is which addresses a server may be at.
type reach struct {
	loopback bool // it is configured to be on this machine
	private  bool
	allow    []netip.Prefix
}

func (r reach) permits(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	switch {
	case !ip.IsValid():
		return false
	case among(ip, r.allow), r.loopback && ip.IsLoopback():
		return true
	case among(ip, closedNets):
		return false
	}
	return r.private || !among(ip, privateNets)
}

func among(ip netip.Addr, nets []netip.Prefix) bool {
	for _, n := range nets {
		if n.Contains(ip) {
			return true
		}
	}
	return false
}

// check is asked with the address that is about to be connected to, so that what a
// name resolves to in the next moment is of no use to anyone.
func (r reach) check(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return errors.New("the server's address cannot be read")
	}
	if !r.permits(at.Addr()) {
		return fmt.Errorf("the server's name leads to %s, where the config does not allow it to be", at.Addr())
	}
	return nil
}

// A way takes requests to one server and brings back what it answers: over nobody
// else's connections, following no redirect and keeping no cookie.
type way interface {
	// trip sends a request, whose body u holds, at most once. It sets u.sent before
	// anything can have gone out. All ends with the request's context, the body of
	// the response too, unless it is a [lasting] one.
	trip(r *http.Request, u *upload) (*http.Response, error)
	CloseIdleConnections()
}

// lasting is a body that can be read on when its request's context has ended.
type lasting interface{ outlast(d time.Duration) }

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// way makes the way to one server. Where a proxy may be used, it may be the proxy that is
// connected to.
func (s *Servers) way(srv *server, u *url.URL) (way, error) {
	r := reach{loopback: local(u), private: srv.AllowPrivate}
	for _, text := range srv.Allow {
		n, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, errors.New("allow holds something that is not a network such as 10.1.0.0/16")
		}
		r.allow = append(r.allow, n)
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil && !r.permits(ip) {
		return nil, errors.New("its address is one that must be allowed: see allow and allow_private")
	}
	checked := &net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second, Control: r.check}
	plain := &net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	own := net.JoinHostPort(u.Hostname(), port)
	if u.Scheme == "http" && s.config.Proxy == nil {
		return newLean(u, own, checked.DialContext)
	}
	return full{&http.Transport{
		Proxy:           s.config.Proxy,
		TLSClientConfig: s.config.TLS.Clone(),
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if s.config.Proxy != nil && address != own {
				return plain.DialContext(ctx, network, address)
			}
			return checked.DialContext(ctx, network, address)
		},
		TLSHandshakeTimeout:    5 * time.Second,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true, // bytes are the server's; and nothing small becomes big
		MaxIdleConns:           maxIdle,
		MaxIdleConnsPerHost:    maxIdle, // there is one
		IdleConnTimeout:        idleFor,
		MaxResponseHeaderBytes: maxHead,
	}}, nil
}

// local reports whether a URL says of itself that it is on this machine.
func local(u *url.URL) bool {
	ip, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() == "localhost" || err == nil && ip.Unmap().IsLoopback()
}
