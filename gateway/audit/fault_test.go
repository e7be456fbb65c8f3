package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A faultyDisk is the real one until it is told to fail.
type faultyDisk struct {
	write, sync, open, truncate atomic.Pointer[error]
	short                       atomic.Int64 // bytes that a failing write still writes
	syncs, synced               atomic.Int64 // how often, and bytes of the segment
	gate                        sync.RWMutex
}

func (d *faultyDisk) OpenFile(path string, flag int, perm os.FileMode) (file, error) {
	if err := d.open.Load(); err != nil {
		return nil, *err
	}
	f, err := os.OpenFile(path, flag, perm)
	return &faultyFile{f, d}, err
}

// hold makes writes wait until release is called.
func (d *faultyDisk) hold() (release func()) {
	d.gate.Lock()
	return d.gate.Unlock
}

func (d *faultyDisk) heal() {
	for _, p := range []*atomic.Pointer[error]{&d.write, &d.sync, &d.open, &d.truncate} {
		p.Store(nil)
	}
}

type faultyFile struct {
	*os.File
	d *faultyDisk
}

func (f *faultyFile) Write(b []byte) (int, error) {
	f.d.gate.RLock()
	defer f.d.gate.RUnlock()
	if err := f.d.write.Load(); err != nil {
		n, _ := f.File.Write(b[:min(len(b), int(f.d.short.Load()))])
		return n, *err
	}
	return f.File.Write(b)
}

func (f *faultyFile) Sync() error {
	if err := f.d.sync.Load(); err != nil {
		return *err
	}
	info, err := f.Stat()
	if err == nil {
		err = f.File.Sync()
	}
	if err == nil {
		f.d.syncs.Add(1)
		f.d.synced.Store(info.Size())
	}
	return err
}

func (f *faultyFile) Truncate(n int64) error {
	if err := f.d.truncate.Load(); err != nil {
		return *err
	}
	return f.File.Truncate(n)
}

// recovered waits until the fault is over.
func recovered(t testing.TB, l *Log) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); l.Fault() != nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still %v", l.Fault())
		}
	}
}

// Whatever fails, and wherever: who was told no finds nothing in the log, who
// was told yes finds his event there, the log is whole at each moment, and it
// goes on by itself.
func TestFaults(t *testing.T) {
	eio, full := error(syscall.EIO), error(syscall.ENOSPC)
	for _, row := range []struct {
		name string
		fail func(d *faultyDisk)
	}{
		{"write", func(d *faultyDisk) { d.write.Store(&eio) }},
		{"short write", func(d *faultyDisk) { d.short.Store(700); d.write.Store(&eio) }},
		{"write of whole lines", func(d *faultyDisk) { d.short.Store(1 << 20); d.write.Store(&eio) }},
		{"sync", func(d *faultyDisk) { d.sync.Store(&eio) }},
		{"sync and truncate", func(d *faultyDisk) { d.truncate.Store(&eio); d.sync.Store(&eio) }},
		{"everything", func(d *faultyDisk) { d.write.Store(&eio); d.sync.Store(&eio); d.open.Store(&eio) }},
		{"disk full for good", func(d *faultyDisk) { d.write.Store(&full); d.open.Store(&full) }},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			cfg := config(t)
			d := &faultyDisk{}
			cfg.disk = d
			l := open(t, cfg)
			ctx := t.Context()
			if err := l.Append(ctx, call("before", CallAllowed)); err != nil {
				t.Fatal(err)
			}
			keyed := call("after", CallAllowed)
			keyed.Key = "k"
			release := d.hold()
			wrote := make(chan error, 1)
			go func() { wrote <- l.Write(ctx, call("written", CallCompleted)) }()
			release()
			if err := <-wrote; err != nil {
				t.Fatal(err)
			}
			row.fail(d)
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					e := call(fmt.Sprint("refused", i), CallAllowed)
					e.Key = "k" // a key that was refused is free again
					if err := l.Append(ctx, e); !errors.Is(err, ErrFaulted) {
						t.Errorf("append on a broken disk: %v", err)
					}
				})
			}
			wg.Wait()
			if err := l.Fault(); !errors.Is(err, ErrFaulted) {
				t.Errorf("fault: %v", err)
			}
			if err := l.Write(ctx, call("refused at once", CallAllowed)); !errors.Is(err, ErrFaulted) {
				t.Errorf("write on a broken disk: %v", err)
			}
			if d.truncate.Load() == nil && d.open.Load() == nil {
				whole(t, cfg) // and nothing refused is in it
				if got := string(must(os.ReadFile(segmentPath(cfg.Dir, 1)))); strings.Contains(got, "refused") {
					t.Error("a refused event is in the log")
				}
			}
			d.heal()
			recovered(t, l)
			if err := l.Append(ctx, keyed); err != nil {
				t.Fatal(err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			whole(t, cfg)
			var ids []string
			count := 0
			for line := range Read(cfg.Dir, 0) {
				if c := line.Event.Call; c != nil {
					ids = append(ids, c.ID)
					if again := line.Event.At != ""; again && c.ID != "written" {
						t.Errorf("%s was written twice", c.ID)
					}
				}
				if line.Event.Type == AuditRecovered {
					count++
				}
			}
			if got := strings.Join(ids, " "); got != "before written after" || count != 1 {
				t.Errorf("log: %s; recovered %d times", got, count)
			}
			reopen(t, cfg)
		})
	}
}

// A fault while many write: the same promises without a script.
func TestFaultsUnderLoad(t *testing.T) {
	cfg := config(t)
	d := &faultyDisk{}
	cfg.disk = d
	cfg.CheckpointEvery = time.Millisecond
	l := open(t, cfg)
	eio := error(syscall.EIO)
	ctx, cancel := context.WithCancel(t.Context())
	var yes, no sync.Map
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				id := fmt.Sprintf("%d.%d", w, i)
				put := l.Append
				if i%4 == 3 {
					put = l.Write
				}
				switch err := put(t.Context(), call(id, CallAllowed)); {
				case err == nil:
					yes.Store(id, true)
				case errors.Is(err, ErrFaulted):
					no.Store(id, true)
					time.Sleep(time.Millisecond)
				default:
					t.Error(err)
				}
			}
		})
	}
	for i := range 4 {
		time.Sleep(20 * time.Millisecond)
		if i%2 == 0 {
			d.sync.Store(&eio)
		} else {
			d.short.Store(int64(i * 1000))
			d.write.Store(&eio)
		}
		for l.Fault() == nil {
			time.Sleep(time.Millisecond)
		}
		d.heal()
		recovered(t, l)
	}
	cancel()
	wg.Wait()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	whole(t, cfg)
	seen := make(map[string]int)
	for line := range Read(cfg.Dir, 0) {
		if c := line.Event.Call; c != nil {
			seen[c.ID]++
		}
	}
	yes.Range(func(id, _ any) bool {
		if seen[id.(string)] != 1 {
			t.Errorf("%s was accepted and stands %d times in the log", id, seen[id.(string)])
		}
		return true
	})
	no.Range(func(id, _ any) bool {
		if seen[id.(string)] != 0 {
			t.Errorf("%s was refused and is in the log", id)
		}
		return true
	})
}

// A crash after a fault that could not be cut back finds the lines again. They
// are whole, they follow, and an allowed call among them is unfinished.
func TestACrashDuringAFault(t *testing.T) {
	cfg := config(t)
	d := &faultyDisk{}
	cfg.disk = d
	l := open(t, cfg)
	eio := error(syscall.EIO)
	d.truncate.Store(&eio)
	d.sync.Store(&eio)
	if err := l.Append(t.Context(), call("c", CallAllowed)); !errors.Is(err, ErrFaulted) {
		t.Fatal(err)
	}
	if err := l.checkpoint(); err != nil {
		t.Fatal(err)
	}
	if c := must(OpenCheckpoint(must(l.Checkpoint()), cfg.Key.VKey())); c.Size != 1 {
		t.Errorf("a checkpoint over %d lines, of which one is durable", c.Size)
	}
	again := cfg
	again.Dir, again.disk = copyDir(t, cfg.Dir), nil
	l2 := open(t, again)
	if u := l2.Unfinished(); len(u) != 1 || u[0].Call.ID != "c" {
		t.Errorf("unfinished: %v", u)
	}
	l2.Close()
	whole(t, again)
}

// On a full disk new calls are refused, and how the running ones ended is still
// recorded.
func TestAFullDiskKeepsRoomForOutcomes(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Skipf("skipped: no small disk to fill: mount: %v %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v %s", err, out)
		}
	})
	cfg := config(t)
	cfg.Dir = filepath.Join(dir, "audit")
	l := open(t, cfg)
	ctx := t.Context()
	if err := l.Append(ctx, call("running", CallAllowed)); err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(dir, "ballast")
	f := must(os.Create(ballast))
	for _, err := f.Write(bytes.Repeat([]byte("x"), 4096)); err == nil; _, err = f.Write(bytes.Repeat([]byte("x"), 4096)) {
	}
	f.Close()
	var taken int
	var err error
	for ; err == nil; taken++ {
		err = l.Append(ctx, call(fmt.Sprint("new", taken), CallAllowed))
	}
	if !errors.Is(err, ErrFaulted) || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("append on a full disk: %v", err)
	}
	for l.Fault() == nil || !l.fault.Load().low {
		time.Sleep(time.Millisecond)
	}
	if err := l.Append(ctx, call("new", CallAllowed)); !errors.Is(err, ErrFaulted) {
		t.Errorf("a new call on a full disk: %v", err)
	}
	if err := l.Append(ctx, call("running", CallCompleted)); err != nil {
		t.Errorf("an outcome on a full disk: %v", err)
	}
	whole(t, cfg)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	recovered(t, l)
	if err := l.Append(ctx, call("after", CallAllowed)); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	whole(t, cfg)
	want := "audit.started" + strings.Repeat(" tool.call.allowed", taken) +
		" audit.degraded tool.call.completed audit.recovered tool.call.allowed audit.stopped"
	if got := types(t, cfg.Dir); got != want {
		t.Errorf("log: %s\nwant %s", got, want)
	}
}

// A checkpoint that cannot be written stops the log too: lines without one are
// only half a record.
func TestACheckpointThatCannotBeWrittenIsAFault(t *testing.T) {
	cfg := config(t)
	cfg.CheckpointEvery = time.Millisecond
	l := open(t, cfg)
	block := filepath.Join(cfg.Dir, checkpointFile+".new")
	if err := os.Mkdir(block, 0o700); err != nil {
		t.Fatal(err)
	}
	for l.Fault() == nil {
		if err := l.Append(t.Context(), call("c", CallDenied)); err != nil && !errors.Is(err, ErrFaulted) {
			t.Fatal(err)
		}
	}
	time.Sleep(2*retryEvery + retryEvery/2) // a few tries in vain
	if err := os.Remove(block); err != nil {
		t.Fatal(err)
	}
	recovered(t, l)
	l.Close()
	whole(t, cfg)
	if got := types(t, cfg.Dir); strings.Count(got, "audit.recovered") != 1 {
		t.Errorf("log: %s", got)
	}
}

// What was accepted and lost to a fault is written again, and says when it was.
func TestAnAcceptedEventIsWrittenAgain(t *testing.T) {
	cfg := config(t)
	d := &faultyDisk{}
	cfg.disk = d
	l := open(t, cfg)
	eio := error(syscall.EIO)
	d.sync.Store(&eio)
	first := call("c", CallCompleted)
	first.Key = "once"
	if err := l.Write(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	for l.Fault() == nil {
		time.Sleep(time.Millisecond)
	}
	d.heal()
	recovered(t, l)
	if err := l.Append(t.Context(), first); err != nil { // it is there already
		t.Fatal(err)
	}
	l.Close()
	whole(t, cfg)
	if got := types(t, cfg.Dir); got != "audit.started audit.recovered tool.call.completed audit.stopped" {
		t.Errorf("log: %s", got)
	}
	for line := range Read(cfg.Dir, 2) {
		if e := line.Event; e.At == "" || e.At >= e.Time {
			t.Errorf("at %q, time %q", e.At, e.Time)
		}
		break
	}
}

// Stored hashes that could not be written are written with the next checkpoint.
func TestStoredHashesOutliveAFailedCheckpoint(t *testing.T) {
	cfg := config(t)
	l := open(t, cfg)
	if err := l.Append(t.Context(), call("c", CallDenied), call("d", CallDenied)); err != nil {
		t.Fatal(err)
	}
	sums := l.sums
	l.sums = must(os.Open(sums.Name())) // cannot be written
	if l.checkpoint() == nil {
		t.Fatal("no error")
	}
	l.sums.Close()
	l.sums = sums
	l.Close()
	whole(t, cfg)
	for i := range int64(4) {
		if _, err := Prove(cfg.Dir, i); err != nil {
			t.Error(err)
		}
	}
}
