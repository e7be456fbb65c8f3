package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const origin = "toolbroker.example/audit/test"

// house is a log in a temporary directory.
func config(t testing.TB) Config {
	t.Helper()
	dir := t.TempDir()
	key, err := NewKey(filepath.Join(dir, "checkpoint.key"), origin)
	if err != nil {
		t.Fatal(err)
	}
	return Config{
		Dir: filepath.Join(dir, "audit"), Origin: origin, Key: key,
		Gateway:         Gateway{Boot: "b", Build: "c", ConfigHash: "sha256:0", Mode: "serve", Replica: "r1", Version: "0"},
		CheckpointEvery: time.Hour, CheckpointEvents: 1 << 30,
	}
}

func open(t testing.TB, cfg Config) *Log {
	t.Helper()
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// whole is the oracle: it verifies the log after a step.
func whole(t testing.TB, cfg Config) Report {
	t.Helper()
	r, err := Verify(cfg.Dir, VerifyOptions{VKey: cfg.Key.VKey()})
	if err != nil {
		t.Fatal(err)
	}
	if r.Bad != nil {
		t.Fatalf("the log is broken: %v", r.Bad)
	}
	return r
}

// types lists the log's events by type.
func types(t testing.TB, dir string) string {
	t.Helper()
	var all []string
	for line, err := range Read(dir, 0) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, string(line.Event.Type))
	}
	return strings.Join(all, " ")
}

func call(id string, t Type) Event {
	return Event{
		Type: t, Tenant: "acme",
		Call: &Call{ID: id, JSONRPCID: "1", Method: "tools/call", Protocol: "2026-07-28", Session: "s", Source: "127.0.0.1", TraceID: Unknown},
		Args: &Args{Bytes: 12, Digest: "sha256:" + strings.Repeat("0", 64), RawDigest: "sha256:" + strings.Repeat("1", 64)},
		Decision: &Decision{Effect: "allow", Engine: "casbin/2", Need: []Need{}, PolicyRev: "sha256:" + strings.Repeat("2", 64),
			Reason: "a row allows it", ReasonCode: "ok", Rules: []string{"policy.csv:12: p, role:triage, acme, triage, github/*, call, , allow"}},
		Task: &Task{Expires: "2026-11-23T07:43:38Z", ID: "t-1", Kind: "triage", OnBehalf: "ann", Owner: "bob",
			Parent: "none", Purpose: "triage incoming issues", ScopeHash: "sha256:" + strings.Repeat("3", 64), State: "running"},
		Tool:     &Tool{Definition: "sha256:" + strings.Repeat("4", 64), Name: "issues_close", Server: "github"},
		Workload: &Workload{Authn: "task_token", Credential: "k-1", Delegation: []string{}, ID: "agent:triage", Owner: "bob"},
	}
}

func TestALogHoldsWhatItWasGiven(t *testing.T) {
	cfg := config(t)
	l := open(t, cfg)
	ctx := t.Context()
	if err := l.Append(ctx, call("c1", CallAllowed)); err != nil {
		t.Fatal(err)
	}
	whole(t, cfg)
	if err := l.Write(ctx, call("c1", CallCompleted), call("c2", CallDenied)); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	r := whole(t, cfg)
	if want := "audit.started tool.call.allowed tool.call.completed tool.call.denied audit.stopped"; types(t, cfg.Dir) != want {
		t.Errorf("log: %s\nwant %s", types(t, cfg.Dir), want)
	}
	if r.Events != 5 || r.Size != 5 || r.Uncovered != 0 || r.Origin != origin {
		t.Errorf("report: %+v", r)
	}
	for line := range Read(cfg.Dir, 3) {
		e := line.Event
		if e.Code != "TG2003W" || e.Phase != "decision" || e.FirstClass != "denial" || e.Severity != "medium" ||
			e.Gateway != cfg.Gateway || e.V != 1 || len(e.ID) != 26 || e.Integrity.Log != origin || e.Integrity.Index != 3 {
			t.Errorf("stamped: %s", line.Raw)
		}
		break
	}
	if err := l.Append(ctx, call("c3", CallAllowed)); !errors.Is(err, ErrClosed) {
		t.Errorf("append to a closed log: %v", err)
	}
}

func TestFilesAreForTheirOwnerOnly(t *testing.T) {
	cfg := config(t)
	open(t, cfg).Close()
	for _, e := range must(os.ReadDir(cfg.Dir)) {
		if info := must(e.Info()); info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v", e.Name(), info.Mode())
		}
	}
	if info := must(os.Stat(cfg.Dir)); info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v", info.Mode())
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// closed makes a log of n calls' events, with a checkpoint on the way, and closes it.
func closed(t testing.TB, cfg Config, n int) {
	t.Helper()
	l := open(t, cfg)
	for i := range n {
		e := call(fmt.Sprint("c", i), CallAllowed)
		e.Decision, e.Args, e.Task = nil, nil, nil // short, for those who read it a thousand times
		if err := l.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		if i == n/2 {
			if err := l.checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func benchEvent(b *testing.B) Event {
	var e Event
	l := must(json.Marshal(call("01JD8W4C8Q7T0000000000000A", CallAllowed)))
	if err := json.Unmarshal(l, &e); err != nil {
		b.Fatal(err)
	}
	return e
}

func BenchmarkAppend(b *testing.B) {
	for _, writers := range []int{1, 8, 64, 256} {
		b.Run(fmt.Sprint(writers), func(b *testing.B) {
			cfg := config(b)
			cfg.CheckpointEvery, cfg.CheckpointEvents = 0, 0
			l := open(b, cfg)
			e := benchEvent(b)
			b.SetParallelism(writers / 2)
			b.ReportAllocs()
			start := cpu()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := l.Append(b.Context(), e); err != nil {
						b.Error(err)
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
			b.ReportMetric(float64((cpu()-start).Nanoseconds())/float64(b.N), "cpu-ns/op")
		})
	}
}

func BenchmarkWrite(b *testing.B) {
	cfg := config(b)
	cfg.CheckpointEvery, cfg.CheckpointEvents = 0, 0
	l := open(b, cfg)
	e := benchEvent(b)
	b.ReportAllocs()
	for b.Loop() {
		if err := l.Write(b.Context(), e); err != nil {
			b.Error(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

func BenchmarkEncode(b *testing.B) {
	enc, e := newEncoder(), benchEvent(b)
	for b.Loop() {
		line, err := enc.line(&e)
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(len(line)))
	}
}

func BenchmarkVerify(b *testing.B) {
	cfg := config(b)
	l := open(b, cfg)
	e := benchEvent(b)
	const n = 50_000
	for range n {
		if err := l.Write(b.Context(), e); err != nil {
			b.Fatal(err)
		}
	}
	l.Close()
	var bytes int64
	for _, s := range must(segments(cfg.Dir)) {
		bytes += must(os.Stat(s.path)).Size()
	}
	b.SetBytes(bytes)
	start := cpu()
	for b.Loop() {
		whole(b, cfg)
	}
	b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(n*b.N)/(cpu()-start).Seconds(), "events/cpu-s")
}

// cpu is the time this process has spent computing: on a shared machine it says
// more than the clock.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
