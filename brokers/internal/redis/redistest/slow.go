package redistest

import (
	"bytes"
	"net"
	"strings"
	"sync"
	"testing"

	"toolbroker/brokers/internal/redis"
)

// OpenSlow opens a store to which replies to one command are late: they are read
// from Redis at once, and handed on when late is closed. Nothing else waits.
func (s *Server) OpenSlow(t testing.TB, command string, late <-chan struct{}, tenants ...string) *redis.Store {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	t.Cleanup(func() { l.Close(); conns.Wait() })
	conns.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", s.addr)
			if err != nil {
				client.Close()
				continue
			}
			conns.Go(func() { relay(client, server, strings.ToLower(command), late) })
		}
	})
	return open(t, l.Addr().String(), tenants)
}

// relay serves one connection. A client sends one command, or one pipeline, and
// reads its replies before the next.
func relay(client, server net.Conn, command string, late <-chan struct{}) {
	defer client.Close()
	var mu sync.Mutex
	slow := false
	go func() {
		defer server.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := client.Read(buf)
			if err != nil {
				return
			}
			mu.Lock()
			slow = bytes.Contains(bytes.ToLower(buf[:n]), []byte("\r\n"+command+"\r\n"))
			mu.Unlock()
			if _, err := server.Write(buf[:n]); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := server.Read(buf)
		mu.Lock()
		wait := slow
		mu.Unlock()
		if wait {
			<-late
		}
		if _, werr := client.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}
