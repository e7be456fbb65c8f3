package audit

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// reopen opens a log, closes it, and has it verified.
func reopen(t testing.TB, cfg Config) Report {
	t.Helper()
	open(t, cfg).Close()
	return whole(t, cfg)
}

// However far a crash got with the last lines, the log opens, every line that is
// whole is kept, and what was cut is on record.
func TestATornTailIsCutAndRecorded(t *testing.T) {
	cfg := config(t)
	l := open(t, cfg)
	if err := l.checkpoint(); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := l.Append(t.Context(), call(fmt.Sprint(i), CallAllowed)); err != nil {
			t.Fatal(err)
		}
	}
	crashed := copyDir(t, cfg.Dir) // as a kill would leave it: no checkpoint over the last three
	l.Close()
	tail := must(os.ReadFile(segmentPath(crashed, 1)))
	first := bytes.IndexByte(tail, '\n') + 1
	for cut := first; cut < len(tail); cut += 1 + len(tail)/40 {
		for _, fill := range []string{"", strings.Repeat("\x00", 300), "\x00\x00\n" + string(tail[first:])} {
			again := cfg
			again.Dir = copyDir(t, crashed)
			data := append(bytes.Clone(tail[:cut]), fill...)
			if err := os.WriteFile(segmentPath(again.Dir, 1), data, 0o600); err != nil {
				t.Fatal(err)
			}
			kept := bytes.Count(tail[:cut], []byte("\n"))
			torn := len(data) - (bytes.LastIndexByte(tail[:cut], '\n') + 1)
			if r := must(Verify(again.Dir, VerifyOptions{VKey: cfg.Key.VKey()})); r.Bad != nil || r.Events != int64(kept) || (torn > 0) != (len(r.Notes) == 1) {
				t.Fatalf("cut at %d: before: %+v", cut, r)
			}
			reopen(t, again)
			want := strings.Repeat(" tool.call.allowed", kept-1) + " audit.started"
			if kept > 1 { // what no checkpoint covered
				want += " audit.recovered"
			}
			if torn > 0 {
				want += " audit.recovered"
			}
			if got := types(t, again.Dir); got != "audit.started"+want+" audit.stopped" {
				t.Fatalf("cut at %d: %s", cut, got)
			}
			for line := range Read(again.Dir, 0) {
				e := line.Event
				if e.Type == AuditRecovered && e.Detail != fmt.Sprintf("took over %d lines, from event 1 on, that no checkpoint covered", kept-1) &&
					!strings.HasPrefix(e.Detail, fmt.Sprintf("cut off %d bytes", torn)) {
					t.Fatalf("cut at %d: %s", cut, e.Detail)
				}
			}
		}
	}
}

// After an orderly stop only a start may follow: a line that somebody adds while
// nobody runs is found, although no key is needed to chain it.
func TestLineAddedAfterAStop(t *testing.T) {
	cfg := config(t)
	l := must(Open(cfg))
	if err := l.Append(t.Context(), call("1", CallAllowed)); err != nil {
		t.Fatal(err)
	}
	l.Close()
	text := must(os.ReadFile(segmentPath(cfg.Dir, 1)))
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	at := len(lines)
	forged := strings.Replace(lines[1], `"idx":1`, fmt.Sprintf(`"idx":%d`, at), 1)
	prev := regexp.MustCompile(`"prev":"sha256:[0-9a-f]{64}"`)
	forged = prev.ReplaceAllString(forged, `"prev":"`+lineHash([]byte(lines[at-1]))+`"`)
	stamp := regexp.MustCompile(`"time":"[^"]*"`)
	forged = stamp.ReplaceAllString(forged, stamp.FindString(lines[at-1]))
	if err := os.WriteFile(segmentPath(cfg.Dir, 1), append(text, forged+"\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	r := must(Verify(cfg.Dir, VerifyOptions{VKey: cfg.Key.VKey()}))
	if r.Bad == nil || r.Bad.Index != int64(at) || r.Bad.Code != Inserted {
		t.Errorf("verify: %+v", r.Bad)
	}
	if l, err := Open(cfg); err == nil {
		l.Close()
		t.Error("the next start signs it")
	}
}

func TestOpenRefusesWhatACrashCannotLeave(t *testing.T) {
	cfg := config(t)
	closed(t, cfg, 10)
	for name, spoil := range map[string]func(dir string, log []byte) []byte{
		"cut below the checkpoint":     func(_ string, b []byte) []byte { return b[:len(b)/2] },
		"zeros below the checkpoint":   func(_ string, b []byte) []byte { b[len(b)/2] = 0; return b },
		"a break before the end":       func(_ string, b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"a line too many, well formed": func(_ string, b []byte) []byte { return append(b, "{}\n"...) },
		"no lines at all":              func(string, []byte) []byte { return nil },
		"no checkpoint":                func(dir string, b []byte) []byte { os.Remove(filepath.Join(dir, checkpointFile)); return b },
		"a checkpoint of rubbish": func(dir string, b []byte) []byte {
			os.WriteFile(filepath.Join(dir, checkpointFile), nil, 0o600)
			return b
		},
		"a missing file and its history": func(dir string, b []byte) []byte { os.Remove(filepath.Join(dir, historyFile)); return b[:len(b)/3] },
		"a chain made anew": func(dir string, _ []byte) []byte {
			lines := segmentLines(t, dir)
			lines[len(lines)-1] = append(lines[len(lines)-1], '\n')
			lines[5] = forged(lines[5])
			return bytes.Join(relay(lines, 6), nil)
		},
	} {
		again := cfg
		again.Dir = copyDir(t, cfg.Dir)
		log := spoil(again.Dir, must(os.ReadFile(segmentPath(cfg.Dir, 1))))
		os.WriteFile(segmentPath(again.Dir, 1), log, 0o600)
		l, err := Open(again)
		if err == nil {
			l.Close()
			t.Errorf("%s: opened", name)
		} else if f, ok := errors.AsType[*Finding](err); !ok {
			t.Errorf("%s: %v", name, err)
		} else if r := must(Verify(again.Dir, VerifyOptions{VKey: cfg.Key.VKey()})); r.Bad == nil {
			t.Errorf("%s: refused (%v) but verifies", name, f)
		}
		if got := must(os.ReadFile(segmentPath(again.Dir, 1))); !bytes.Equal(got, log) {
			t.Errorf("%s: the evidence was touched", name)
		}
	}
	other := cfg
	other.Key = must(NewKey(filepath.Join(t.TempDir(), "k"), origin))
	if _, err := Open(other); err == nil {
		t.Error("opened with another key")
	}
	other = cfg
	other.Origin = "other.example/log"
	if _, err := Open(other); err == nil {
		t.Error("opened under another name")
	}
}

func TestATornHistoryIsMended(t *testing.T) {
	cfg := config(t)
	closed(t, cfg, 30)
	good := must(os.ReadFile(filepath.Join(cfg.Dir, historyFile)))
	for cut := 0; cut < len(good); cut += 37 {
		for _, fill := range []string{"", "\x00\x00\x00"} {
			again := cfg
			again.Dir = copyDir(t, cfg.Dir)
			os.WriteFile(filepath.Join(again.Dir, historyFile), append(bytes.Clone(good[:cut]), fill...), 0o600)
			open(t, again).Close()
			r := must(Verify(again.Dir, VerifyOptions{VKey: cfg.Key.VKey()}))
			if cut >= 200 && r.Bad != nil {
				t.Errorf("cut at %d: %v", cut, r.Bad)
			}
			if len(r.Notes) > 0 {
				t.Errorf("cut at %d: %v", cut, r.Notes)
			}
		}
	}
}

func TestOneWriterPerDirectory(t *testing.T) {
	cfg := config(t)
	l := open(t, cfg)
	if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second writer: %v", err)
	}
	l.Close()
	reopen(t, cfg)
}

// TestMain is also the writer that TestKill kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv("AUDIT_TEST_WRITER"); dir != "" {
		writeUntilKilled(dir)
		return
	}
	os.Exit(m.Run())
}

func writerConfig(dir string) (Config, error) {
	key, err := NewKey(filepath.Join(dir, "key"), origin)
	return Config{Dir: filepath.Join(dir, "audit"), Origin: origin, Key: key, CheckpointEvery: 5 * time.Millisecond, CheckpointEvents: 20, SegmentBytes: 100 << 10}, err
}

// writeUntilKilled appends from many goroutines and prints each id once its
// event is durable.
func writeUntilKilled(dir string) {
	cfg, err := writerConfig(dir)
	if err == nil {
		var l *Log
		if l, err = Open(cfg); err == nil {
			fmt.Println("open")
			for w := range 16 {
				go func() {
					for i := 0; ; i++ {
						id := fmt.Sprintf("%d-%d-%d", os.Getpid(), w, i)
						if i%3 == 0 {
							_ = l.Write(context.Background(), call("w"+id, CallDenied))
						}
						if err := l.Append(context.Background(), call(id, CallAllowed), call(id, CallCompleted)); err != nil {
							panic(err)
						}
						fmt.Println(id)
					}
				}()
			}
			select {}
		}
	}
	fmt.Println("error:", err)
	os.Exit(1)
}

// Killed at any moment, the log opens again, verifies, and holds every event
// that anyone was told is durable.
func TestKill(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped: kills a process many times")
	}
	dir := t.TempDir()
	acked := make(map[string]bool)
	const rounds = 8
	for round := range rounds {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "AUDIT_TEST_WRITER="+dir)
		out := must(cmd.StdoutPipe())
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		quota := rand.IntN(150) // killed after so many acknowledgements, wherever it then is
		for n := 0; n <= quota && lines.Scan(); n++ {
			if strings.HasPrefix(lines.Text(), "error:") {
				t.Fatalf("round %d: %s", round, lines.Text())
			}
			if lines.Text() != "open" {
				acked[lines.Text()] = true
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() {
			if i := lines.Text(); strings.Count(i, "-") == 2 {
				acked[i] = true
			}
		}
		_ = cmd.Wait()
		cfg := must(writerConfig(dir))
		if r := must(Verify(cfg.Dir, VerifyOptions{VKey: cfg.Key.VKey()})); r.Bad != nil {
			t.Fatalf("round %d: %v", round, r.Bad)
		}
	}
	cfg := must(writerConfig(dir))
	l := open(t, cfg)
	for _, e := range l.Unfinished() {
		if acked[e.Call.ID] {
			t.Errorf("%s has an outcome, and is unfinished", e.Call.ID)
		}
	}
	l.Close()
	r := whole(t, cfg)
	seen := make(map[string]int)
	for line, err := range Read(cfg.Dir, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if line.Event.Call != nil {
			seen[line.Event.Call.ID]++
		}
	}
	for id := range acked {
		if seen[id] != 2 {
			t.Errorf("%s was acknowledged and stands %d times in the log, not 2", id, seen[id])
		}
	}
	t.Logf("%d kills, %d acknowledged, %d events", rounds, len(acked), r.Events)
}

func TestUnfinished(t *testing.T) {
	cfg := config(t)
	l := open(t, cfg)
	request := func(id string, typ Type) Event {
		return Event{Type: typ, Tenant: "acme", Approval: &Approval{ID: id}}
	}
	other := call("c1", CallCompleted)
	other.Tenant = "other"
	err := l.Append(t.Context(),
		call("c0", CallAllowed), call("c1", CallAllowed), call("c2", CallAllowed), call("c3", CallHeld), call("c4", CallAllowed), other,
		request("a1", ApprovalRequested), request("a2", ApprovalRequested), request("a3", ApprovalRequested),
		request("a1", ApprovalGranted), request("a2", ApprovalGranted), request("a2", ApprovalConsumed), request("a3", ApprovalDenied),
		call("c0", CallFailed), call("c2", CallCompleted), call("c4", CallDenied))
	if err != nil {
		t.Fatal(err)
	}
	again := cfg
	again.Dir = copyDir(t, cfg.Dir) // killed
	l2 := open(t, again)
	var got []string
	for _, e := range l2.Unfinished() {
		if e.Type == CallAllowed {
			got = append(got, e.Call.ID)
		} else {
			got = append(got, e.Approval.ID)
		}
	}
	if !slices.Equal(got, []string{"c1", "a1"}) {
		t.Errorf("unfinished: %v", got)
	}
}

func TestAKeyIsLoggedOnceAcrossRestarts(t *testing.T) {
	cfg := config(t)
	keyed := func(key string) Event {
		e := call(key, ApprovalVote)
		e.Key = key
		return e
	}
	for range 3 {
		l := open(t, cfg)
		for range 2 {
			if err := l.Append(t.Context(), keyed("k1"), keyed("k2"), call("c", CallDenied)); err != nil {
				t.Fatal(err)
			}
			if err := l.Write(t.Context(), keyed("k2")); err != nil {
				t.Fatal(err)
			}
		}
		l.Close()
	}
	whole(t, cfg)
	if got := types(t, cfg.Dir); strings.Count(got, "approval.vote") != 2 || strings.Count(got, "tool.call.denied") != 6 {
		t.Errorf("log: %s", got)
	}
	var k keyRing
	for i := range keyWindow + 10 {
		k.add(fmt.Sprint(i))
	}
	if k.has("9") || !k.has("10") || len(k.slot) != keyWindow {
		t.Error("the window is not the last keys")
	}
}

func TestTimeNeverRunsBackAndIDsRise(t *testing.T) {
	cfg := config(t)
	now := time.Date(2026, 11, 23, 7, 0, 0, 0, time.FixedZone("", 3600))
	cfg.Now = func() time.Time { now = now.Add(time.Duration(rand.IntN(2000)-1500) * time.Millisecond); return now }
	for range 3 {
		l := open(t, cfg)
		for range 20 {
			if err := l.Append(t.Context(), call("c", CallDenied)); err != nil {
				t.Fatal(err)
			}
		}
		l.Close()
	}
	whole(t, cfg)
	var last Event
	for line := range Read(cfg.Dir, 0) {
		if e := line.Event; e.Time < last.Time || e.ID <= last.ID {
			t.Fatalf("%s %s after %s %s", e.Time, e.ID, last.Time, last.ID)
		}
		last = line.Event
	}
}

func TestSegments(t *testing.T) {
	cfg := config(t)
	cfg.SegmentBytes = 2048
	closed(t, cfg, 40)
	if segs := must(segments(cfg.Dir)); len(segs) < 5 {
		t.Fatalf("%d segments", len(segs))
	}
	whole(t, cfg)
	closed(t, cfg, 10)
	if r := whole(t, cfg); r.Events != 54 {
		t.Errorf("%d events", r.Events)
	}
	os.Remove(segmentPath(cfg.Dir, 3))
	if r := must(Verify(cfg.Dir, VerifyOptions{VKey: cfg.Key.VKey()})); r.Bad == nil || r.Bad.Code != Dropped {
		t.Errorf("a segment is gone: %v", r.Bad)
	}
}

// Many writers at once: each one's events in order, each unit adjacent, and far
// fewer syncs than events.
func TestGroupCommit(t *testing.T) {
	cfg := config(t)
	d := &faultyDisk{}
	cfg.disk = d
	cfg.CheckpointEvery, cfg.CheckpointEvents = time.Millisecond, 50
	l := open(t, cfg)
	const writers, each = 32, 30
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				id := fmt.Sprintf("%d.%d", w, i)
				put := l.Append
				if i%2 == 1 {
					put = l.Write
				}
				if err := put(t.Context(), call(id, CallAllowed), call(id, CallCompleted)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	l.Close()
	r := whole(t, cfg)
	if r.Events != 2*writers*each+2 {
		t.Errorf("%d events", r.Events)
	}
	next := make(map[string]int)
	var open string
	for line := range Read(cfg.Dir, 1) {
		if line.Event.Type == AuditStopped {
			break
		}
		id := line.Event.Call.ID
		w, n, _ := strings.Cut(id, ".")
		switch {
		case open == "" && line.Event.Type == CallAllowed && n == fmt.Sprint(next[w]):
			open = id
		case open == id && line.Event.Type == CallCompleted:
			open = ""
			next[w]++
		default:
			t.Fatalf("event %d: %s %s out of order", line.Index, id, line.Event.Type)
		}
	}
	if n := d.syncs.Load(); n >= writers*each {
		t.Errorf("%d syncs for %d units", n, writers*each)
	}
}

func TestAppendReturnsNoSoonerThanTheSync(t *testing.T) {
	cfg := config(t)
	d := &faultyDisk{}
	cfg.disk = d
	l := open(t, cfg)
	for i := range 30 {
		if err := l.Append(t.Context(), call(fmt.Sprint(i), CallAllowed)); err != nil {
			t.Fatal(err)
		}
		if size := must(os.Stat(segmentPath(cfg.Dir, 1))).Size(); d.synced.Load() != size {
			t.Fatalf("%d bytes synced of %d", d.synced.Load(), size)
		}
	}
}

func TestWrittenEventsBecomeDurableWithoutMoreTraffic(t *testing.T) {
	cfg := config(t)
	l := open(t, cfg)
	if err := l.Write(t.Context(), call("c", CallCompleted)); err != nil {
		t.Fatal(err)
	}
	for l.durableSize() != 2 {
		time.Sleep(time.Millisecond)
	}
}

func (l *Log) durableSize() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.durable.next
}

func TestAFullQueueWaitsForItsCaller(t *testing.T) {
	cfg := config(t)
	d := &faultyDisk{}
	cfg.disk = d
	l := open(t, cfg)
	release := d.hold()
	var wg sync.WaitGroup
	var took, gave sync.Map
	ctx, cancel := context.WithCancel(t.Context())
	for i := range queueLength + 200 {
		wg.Go(func() {
			id := fmt.Sprint(i)
			if err := l.Append(ctx, call(id, CallAllowed)); err == nil {
				took.Store(id, true)
			} else if errors.Is(err, context.Canceled) {
				gave.Store(id, true)
			} else {
				t.Error(err)
			}
		})
	}
	for len(l.queue) < queueLength {
		time.Sleep(time.Millisecond)
	}
	cancel() // who still waits for a turn is let go; who has one is waited for
	release()
	wg.Wait()
	l.Close()
	whole(t, cfg)
	var n int
	for line := range Read(cfg.Dir, 0) {
		if c := line.Event.Call; c != nil {
			n++
			if _, ok := took.Load(c.ID); !ok {
				t.Errorf("%s was reported as not written", c.ID)
			}
		}
	}
	took.Range(func(any, any) bool { n--; return true })
	if n != 0 {
		t.Errorf("%d events too many", n)
	}
}

func TestFollowAndFind(t *testing.T) {
	cfg := config(t)
	cfg.SegmentBytes = 4096
	l := open(t, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan int64)
	go func() {
		defer close(got)
		for line, err := range Follow(ctx, cfg.Dir, 1, Filter{Types: []Type{"tool.call.*"}}) {
			if err != nil {
				t.Error(err)
				return
			}
			got <- line.Index
		}
	}()
	for i := range int64(20) {
		if err := l.Append(t.Context(), call(fmt.Sprint(i), CallAllowed)); err != nil {
			t.Fatal(err)
		}
		if n := <-got; n != i+1 {
			t.Fatalf("followed to %d, not %d", n, i+1)
		}
	}
	cancel()
	if _, more := <-got; more {
		t.Error("it goes on after its context")
	}
	odd := call("x", CallDenied)
	odd.Tenant, odd.Task = "other", &Task{ID: "t-2"}
	if err := l.Append(t.Context(), odd, Event{Type: PolicyLoaded}); err != nil {
		t.Fatal(err)
	}
	count := func(f Filter) (n int) {
		for _, err := range Find(cfg.Dir, 0, f) {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		return n
	}
	for _, row := range []struct {
		f    Filter
		want int
	}{
		{Filter{}, 23}, {Filter{Tenant: "acme"}, 20}, {Filter{Tenant: "other", Task: "t-2"}, 1}, {Filter{Tenant: "acme", Task: "t-2"}, 0},
		{Filter{Call: "7"}, 1}, {Filter{FirstClass: "denial"}, 1}, {Filter{Types: []Type{AuditStarted, "policy.*"}}, 2}, {Filter{Types: []Type{"tool.call"}}, 0},
	} {
		if n := count(row.f); n != row.want {
			t.Errorf("%+v: %d, not %d", row.f, n, row.want)
		}
	}
	n := 0
	for range ReadTask(cfg.Dir, "other", "t-2") {
		n++
	}
	if n != 1 {
		t.Errorf("task: %d", n)
	}
}
