package serve

import (
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"toolbroker/authz"
	"toolbroker/cmd/toolbroker/internal/config"
	"toolbroker/gateway"
)

// onRedis is newConfig's config on a Redis of the benchmark's own.
func onRedis(b *testing.B) *config.Config {
	b.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		b.Skip("redis-server is not here")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	cmd := exec.Command(path, "--port", addr[strings.LastIndexByte(addr, ':')+1:], "--bind", "127.0.0.1", "--dir", b.TempDir(), "--save", "", "--appendonly", "no")
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	c, _ := newConfig(b, "identity: {verifications_per_second: 1000000}\n") // all are new at first
	c.Redis = config.Redis{URL: "redis://" + addr}
	return c
}

// What it costs to know who asks and that its task runs, of the 100,000 that run:
// the token was verified before, and nothing leaves the process.
func BenchmarkAdmit100k(b *testing.B) {
	const running = 100_000
	h, _ := start(b, onRedis(b), io.Discard)
	scope, err := authz.NewScope([]authz.ScopeRow{{Tool: "**", Action: "*", Verdict: "allow"}})
	if err != nil {
		b.Fatal(err)
	}
	creds := make([]gateway.Credential, running)
	var work sync.WaitGroup
	for w := range 64 {
		work.Go(func() {
			for i := w; i < running; i += 64 {
				now := time.Now().UTC()
				token, err := h.tasks.Start(b.Context(), gateway.Task{
					ID: fmt.Sprintf("task-%d", i), Tenant: "acme", Kind: "work", Purpose: "p", Owner: "alice", Principal: fmt.Sprintf("agent:%d", i%1000),
					StartedBy: "operator:alice", Scope: scope, State: gateway.TaskRunning, Started: now, Expires: now.Add(time.Hour),
				})
				if err != nil {
					b.Error(err)
					return
				}
				creds[i] = gateway.Credential{Bearer: token, Source: "127.0.0.1:1"}
				for { // verified, and its task known here, as soon as a busy machine can confirm it
					_, _, err := h.gateway.Admit(b.Context(), creds[i])
					if err == nil {
						break
					} else if gateway.CodeOf(err) != gateway.Internal {
						b.Error(err)
						return
					}
				}
			}
		})
	}
	work.Wait()
	if b.Failed() {
		return
	}
	b.ReportAllocs()
	b.ResetTimer()
	var n, stale atomic.Int64
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, _, err := h.gateway.Admit(b.Context(), creds[int(n.Add(7919))%running]); err != nil {
				stale.Add(1)
			}
		}
	})
	b.ReportMetric(float64(stale.Load())/float64(b.N), "stale/op")
}
