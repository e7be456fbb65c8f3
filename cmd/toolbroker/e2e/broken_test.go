package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// A client whose connection breaks in the middle of a call sends it again, with the
// same id and the same bytes. The server runs it once, and the client learns what
// came of it: the answer, or that nobody knows.
func TestBrokenConnections(t *testing.T) {
	for _, era := range clientEras {
		t.Run(era, func(t *testing.T) {
			url, runs, arrived, left, release := counting(t)
			h := newHouse(t, Options{Redis: redis(t), Policy: countingRows, Servers: fmt.Sprintf("  - {name: c, url: %q, timeout: 5s}\n", url)})
			b := h.Replica("r2")
			_, token := h.Task("agent:a")
			h.shows(token, "c__waits")
			b.shows(token, "c__waits")
			c := newRaw(t, h.MCP, token, era, "{}")

			send := func(c *raw, id, args string) (rpcAnswer, error) {
				for {
					a, err := c.send(t.Context(), id, "tools/call", `{"name":"c__waits","arguments":`+args+`}`)
					if err != nil || !busy(a.Body) {
						return a, err
					}
				}
			}
			// breaks makes a call whose connection breaks once the server has it.
			breaks := func(c *raw, id, args string) {
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() {
					defer close(done)
					c.send(ctx, id, "tools/call", `{"name":"c__waits","arguments":`+args+`}`)
				}()
				<-arrived
				cancel()
				<-done
			}
			known := func(a rpcAnswer, err error) {
				t.Helper()
				if err != nil || !strings.Contains(a.Body, `run `) && !strings.Contains(a.Body, "in_doubt") {
					t.Errorf("the repeated call: %v %s", err, a.Body)
				}
				if strings.Contains(a.Body, "run ") && strings.Contains(a.Body, "in_doubt") {
					t.Errorf("both: %s", a.Body)
				}
			}
			// At another replica, which is told as soon as it is known here what became of the
			// first, and can take a quarter of a second to hear it.
			elsewhere := func(id, args string) {
				t.Helper()
				time.Sleep(300 * time.Millisecond)
				known(send(c.at(b), id, args))
			}
			// Before the first is known here to be over, and after. Without a session, one who
			// sends the same is taken for the same client only once the first one's is seen to
			// be gone.
			breaks(c, "501", `{"n":1}`)
			if c.session == "" {
				<-left
			}
			known(send(c, "501", `{"n":1}`))
			known(send(c, "501", `{"n":1}`))
			elsewhere("501", `{"n":1}`)
			if n := runs.Load(); n != 1 {
				t.Errorf("it ran %d times", n)
			}
			// Other bytes, or another id, are another call.
			close(release)
			for i, other := range [][2]string{{"502", `{"n":1}`}, {"501", `{"n":2}`}} {
				if a, err := send(c, other[0], other[1]); err != nil || a.text() != fmt.Sprintf("run %d", 2+i) {
					t.Errorf("another call: %v %s", err, a.Body)
				}
			}
			for _, h := range []*House{h, b} {
				h.Stop()
				h.Verify()
			}
		})
	}
}
