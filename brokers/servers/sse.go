package servers

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/url"
	"time"

	"toolbroker/gateway"
)

// A spool is a link to a server of 2024-11-05 over HTTP: one stream is open for as
// long as the link, it names the address to POST to, and every answer comes over it.
type spool struct {
	*desk
	web  *web // makes its requests, with the address that the stream named
	end  context.CancelFunc
	done chan struct{} // closed when the stream is closed
}

// connect opens the stream and waits for the address, which must be of the same
// origin: a credential goes there.
func (s *server) connect(ctx context.Context, lease gateway.Lease) (*spool, error) {
	inner, end := context.WithCancel(context.WithoutCancel(ctx))
	w := newWeb(s, lease.Headers, true) // modern: it has no session and no stream of its own
	p := &spool{desk: newDesk(s), web: w, end: end, done: make(chan struct{})}
	stop := context.AfterFunc(ctx, end)
	defer stop()
	resp, err := w.get(inner, "")
	if err != nil {
		end()
		if errors.Is(err, errNotOffered) {
			err = errEra
		}
		return nil, err
	}
	named := make(chan string, 1)
	s.tidy(func() {
		defer close(p.done)
		defer resp.Body.Close()
		p.desk.fail(p.read(resp.Body, named))
	})
	select {
	case address := <-named:
		if w.address, err = sameOrigin(s.URL, address); err == nil {
			return p, nil
		}
	case <-p.broken:
		err = p.why
	case <-ctx.Done():
		err = over(ctx)
	}
	p.close(ctx)
	return nil, err
}

// sameOrigin resolves the address that a stream named.
func sameOrigin(base, address string) (*url.URL, error) {
	b, err := url.Parse(base)
	if err != nil {
		return nil, errRubbish
	}
	u, err := b.Parse(address)
	if err != nil || u.Scheme != b.Scheme || u.Host != b.Host || u.User != nil || u.Fragment != "" {
		return nil, unusable("the server names an address for messages that is not its own")
	}
	return u, nil
}

// read reads the stream until it ends.
func (p *spool) read(body io.Reader, named chan<- string) error {
	// What was asked for counts here too, so that there is room for a lot of it; what
	// nobody asked for is counted by the desk.
	e := &events{limit: p.s.MaxResponse, most: 32 * p.s.MaxResponse, every: time.Second}
	err := e.read(body, func(data []byte) (bool, error) {
		if e.name == "endpoint" {
			select {
			case named <- string(data):
			default: // it is settled
			}
			return false, nil
		}
		if len(data) == 0 {
			return false, nil
		}
		m, err := parse(data)
		if err != nil {
			return false, err
		}
		return false, p.desk.take(m, len(data), p.web.post)
	})
	if errors.Is(err, gateway.ErrBadAnswer) || errors.Is(err, errStreamEnded) {
		return err
	}
	return broken(err)
}

func (p *spool) speaks() era                           { return legacyEra }
func (p *spool) settle(version string, c capabilities) { p.version, p.caps = version, c }
func (p *spool) attend(context.Context) error          { return nil }

func (p *spool) do(ctx context.Context, c call) (message, error) {
	id, w := p.join(c, true)
	defer p.leave(id)
	if p.dead() {
		return message{}, notSent(p.why)
	}
	if err := p.web.push(ctx, frame(id, c.method, c.params), c.header); err != nil {
		if ctx.Err() != nil && !errors.Is(err, gateway.ErrNotSent) {
			p.cancel(id)
		}
		return message{}, err
	}
	return p.await(ctx, id, w, sent, p.cancel)
}

func (p *spool) cancel(id int64) {
	p.s.tidy(func() {
		ctx, cancel := context.WithTimeout(context.Background(), goodbye)
		defer cancel()
		_ = p.note(ctx, "notifications/cancelled", cancelled(id))
	})
}

func (p *spool) note(ctx context.Context, method string, params json.RawMessage) error {
	return p.web.post(ctx, frame(0, method, params))
}

func (p *spool) listen(ctx context.Context, _ filter, open func(), _ func(message)) error {
	open()
	select {
	case <-p.broken:
		return p.why
	case <-ctx.Done():
		return over(ctx)
	}
}

func (p *spool) close(ctx context.Context) error {
	p.end()
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
