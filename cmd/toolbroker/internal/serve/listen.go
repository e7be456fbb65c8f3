package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"toolbroker/cmd/toolbroker/internal/config"
)

// A listener is one address that serves HTTP, with a certificate or without.
type listener struct {
	name string
	net.Listener
	server *http.Server
	cert   *certificate // nil where the way is plaintext
}

// listen opens the address; nobody is answered before serve.
func listen(name, address string, files config.TLS, server *http.Server, log *slog.Logger) (*listener, error) {
	l := &listener{name: name, server: server}
	server.ErrorLog = slog.NewLogLogger(log.With("listener", name).Handler(), slog.LevelDebug)
	if files.Cert != "" {
		l.cert = &certificate{files: files}
		if err := l.cert.load(); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		server.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: l.cert.get}
	}
	inner, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	l.Listener = inner
	return l, nil
}

// serve answers until shutdown.
func (l *listener) serve() error {
	serve := l.server.Serve
	if l.cert != nil {
		serve = func(inner net.Listener) error { return l.server.ServeTLS(inner, "", "") }
	}
	if err := serve(l.Listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("%s: %w", l.name, err)
	}
	return nil
}

// shutdown stops accepting, lets what runs finish, and cuts it off when ctx ends.
func (l *listener) shutdown(ctx context.Context) {
	if err := l.server.Shutdown(ctx); err != nil {
		l.server.Close()
	}
}

// A certificate is read again on SIGHUP; one that cannot be read leaves the old.
type certificate struct {
	files config.TLS
	now   atomic.Pointer[tls.Certificate]
}

func (c *certificate) load() error {
	if err := private(string(c.files.Key)); err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(string(c.files.Cert), string(c.files.Key))
	if err != nil {
		return err
	}
	c.now.Store(&pair)
	return nil
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.now.Load(), nil }

// limited is an HTTP server whose clients cannot hold it by being slow before
// their request is whole. Answers may take as long as a held call does.
func limited(h http.Handler) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
	}
}
