package servers

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"toolbroker/gateway"
	"toolbroker/gateway/audit"
)

// A server writes so much into a record within an hour and no more; how much more
// there was is said. Other servers, and other tenants, lose nothing by it.
func TestARecordIsRationed(t *testing.T) {
	d := newDiary()
	s, err := New(Config{Tenants: []string{"a", "b"}, Recorder: d})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(context.Background())
	now := time.Now()
	s.ration.now = func() time.Time { return now }
	fact := func(server string, typ audit.Type) gateway.Fact {
		return gateway.Fact{Type: typ, Tool: &gateway.Tool{Server: server, Name: "t", Kind: "http"}}
	}
	for range 500 {
		s.record("a", fact("x", audit.ToolsChanged), fact("x", audit.ToolWithheld), fact("x", audit.ServerUnsafe))
	}
	s.record("a", fact("y", audit.ToolsChanged))
	s.record("b", fact("x", audit.ToolsChanged))
	said := strings.Join(d.types(), "\n")
	for what, want := range map[string]int{"a tool.": maxToldHour + 2, "a server.unsafe": 500, "a tool.definition.changed the server caused 120 events": 1, "b tool.": 1} {
		if got := strings.Count("\n"+said, "\n"+what); got != want {
			t.Errorf("%s stands there %d times, not %d", what, got, want)
		}
	}
	if s.sum(false); strings.Contains(strings.Join(d.types(), "\n"), "were not written") {
		t.Error("the hour is not over, and is summed up")
	}
	now = now.Add(time.Hour)
	s.sum(false)
	s.sum(false)
	s.record("a", fact("x", audit.ToolsChanged))
	d.mu.Lock()
	last := d.facts[len(d.facts)-2:]
	d.mu.Unlock()
	if f := last[0]; f.Tenant != "a" || f.Count != 1000-maxToldHour || f.Tool.Server != "x" || f.Tool.Name != "" || !strings.Contains(f.Detail, "were not written") {
		t.Errorf("on record is %+v", f)
	}
	if last[1].Tool.Name != "t" {
		t.Error("the next hour begins with nothing")
	}
	for range 500 {
		s.record("a", fact("x", audit.ServerUp))
	}
	if s.sum(true); !strings.HasSuffix(d.types()[len(d.types())-1], fmt.Sprint(501-maxToldHour)+" more events about the server were not written") {
		t.Errorf("at the end: %s", d.types()[len(d.types())-1])
	}
}

// A server that says all the time that it changed, and does, is listed more and more
// slowly, and its record ends.
func TestAStormOfChanges(t *testing.T) {
	var mu sync.Mutex
	var asked []time.Time
	var n atomic.Int64
	f := &fake{modern: true, changes: true}
	f.before = func(w http.ResponseWriter, r *http.Request, m fakeMessage) bool {
		switch m.Method {
		case "tools/list":
			mu.Lock()
			asked = append(asked, time.Now())
			mu.Unlock()
			var all []string
			for range 30 {
				all = append(all, fmt.Sprintf(`{"name":"t%d","inputSchema":{}}`, n.Add(1)))
			}
			says(contentJSON, `{"jsonrpc":"2.0","id":ID,"result":{"tools":[`+strings.Join(all, ",")+`]}}`)(w, r, m)
		case "subscriptions/listen":
			w.Header().Set("Content-Type", contentSSE)
			fmt.Fprint(w, "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/subscriptions/acknowledged\"}\n\n")
			for r.Context().Err() == nil {
				fmt.Fprint(w, "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/tools/list_changed\"}\n\n")
				w.(http.Flusher).Flush()
				time.Sleep(2 * time.Millisecond)
			}
		default:
			return false
		}
		return true
	}
	s, err := New(Config{Tenants: []string{"a"}, Servers: []Server{{Name: "x", URL: f.serve(t), Refresh: time.Hour}}, Recorder: newDiary()})
	if err != nil {
		t.Fatal(err)
	}
	d := s.config.Recorder.(*diary)
	s.pace.gap, s.pace.last = 5*time.Millisecond, 160*time.Millisecond
	done := make(chan struct{})
	go func() { defer close(done); s.Run(t.Context()) }()
	for i := 1; ; i++ {
		if strings.HasPrefix(d.await(t, audit.ToolsChanged, "x", i).Detail, "the server caused ") {
			break
		}
	}
	for { // 10 listings: 5, 10, 20, 40, 80 ms and then 160 between two
		mu.Lock()
		all := asked
		mu.Unlock()
		if len(all) < 10 {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if took := all[9].Sub(all[1]); took < 400*time.Millisecond {
			t.Errorf("it was asked 8 times in %v", took)
		}
		break
	}
	s.Close(context.Background())
	<-done
	if last := d.types()[len(d.types())-1]; !strings.Contains(last, "were not written") {
		t.Errorf("the last on record is %s", last)
	}
}

// Quiet gives a server its usual pace back, and so does being asked for another reason.
func TestSpacing(t *testing.T) {
	f := &feed{all: &Servers{pace: usualPace}}
	now := time.Now()
	step := func(prompts bool, after time.Duration) time.Duration {
		f.prompts, now = prompts, now.Add(after)
		f.space(now)
		f.listed = now
		return f.spacing / time.Second
	}
	for _, row := range []struct {
		prompts bool
		after   time.Duration
		want    time.Duration
	}{{false, 0, 2}, {true, 2, 4}, {true, 4, 8}, {true, 16, 16}, {true, 16, 32}, {true, 32, 60}, {true, 60, 60}, {true, 121, 2}, {true, 2, 4}, {true, 4, 8}, {false, 8, 2}} {
		if got := step(row.prompts, row.after*time.Second); got != row.want {
			t.Errorf("%+v: %d s", row, got)
		}
	}
}
