package servers

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

// full is net/http's own way: for https, and where a proxy may be used.
type full struct{ *http.Transport }

// By these headers, in this writing, net/http takes a request for one that it may send
// again by itself. We send a call once.
var resent = []string{"Idempotency-Key", "X-Idempotency-Key"}

// trip implements [way].
func (f full) trip(r *http.Request, u *upload) (*http.Response, error) {
	for _, values := range r.Header {
		if slices.ContainsFunc(values, func(v string) bool { return !httpguts.ValidHeaderFieldValue(v) }) {
			return nil, errHeader
		}
	}
	for _, name := range resent {
		if value, ok := r.Header[name]; ok {
			delete(r.Header, name)
			r.Header[strings.ToLower(name)] = value
		}
	}
	inner, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	b := &fullBody{stop: context.AfterFunc(r.Context(), cancel), cancel: cancel}
	r = r.WithContext(httptrace.WithClientTrace(inner, &httptrace.ClientTrace{WroteHeaders: func() { u.sent.Store(true) }}))
	if u.body != nil {
		// Of a body of this type net/http knows that it is in memory: it writes one of
		// those together with the header, and any other behind it.
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(u.body)), int64(len(u.body))
		// It asks again only where nothing was sent yet: an idle connection that turned
		// out to be closed.
		r.GetBody = func() (io.ReadCloser, error) {
			u.sent.Store(false)
			return io.NopCloser(bytes.NewReader(u.body)), nil
		}
	}
	resp, err := f.Transport.RoundTrip(r)
	if err != nil {
		b.stop()
		cancel()
		return nil, err
	}
	b.ReadCloser, resp.Body = resp.Body, b
	return resp, nil
}

// fullBody is the body of a response that came by [full]. It implements [lasting].
type fullBody struct {
	io.ReadCloser
	stop   func() bool
	cancel context.CancelFunc
	ends   *time.Timer // with outlast
}

func (b *fullBody) outlast(d time.Duration) {
	if b.stop() {
		b.ends = time.AfterFunc(d, b.cancel)
	}
}

func (b *fullBody) Close() error {
	err := b.ReadCloser.Close()
	b.stop()
	b.cancel()
	if b.ends != nil {
		b.ends.Stop()
	}
	return err
}
