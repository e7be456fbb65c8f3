package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/mod/sumdb/tlog"
)

// Open opens a log, or begins one where there is none, and records
// audit.started. It reads every line: a log that is broken, or shorter than its
// checkpoint, is refused with an error that wraps a *Finding. What a crash left
// of a line that was never durable is cut off, and recorded as audit.recovered.
// A directory that another process writes to is refused.
func Open(cfg Config) (*Log, error) {
	if cfg.Key.signer == nil || cfg.Key.signer.Name() != cfg.Origin {
		return nil, fmt.Errorf("audit: the key is not one for %q", cfg.Origin)
	}
	if cfg.CheckpointEvery <= 0 {
		cfg.CheckpointEvery = time.Second
	}
	if cfg.CheckpointEvents <= 0 {
		cfg.CheckpointEvents = 1000
	}
	if cfg.SegmentBytes <= 0 {
		cfg.SegmentBytes = 64 << 20
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.disk == nil {
		cfg.disk = realDisk{}
	}
	if err := makeDir(cfg.Dir); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	l := &Log{
		cfg:     cfg,
		lock:    flock.New(filepath.Join(cfg.Dir, lockFile), flock.SetPermissions(0o600)),
		opened:  time.Now(),
		queue:   make(chan *unit, queueLength),
		now:     make(chan struct{}, 1),
		soon:    make(chan struct{}, 1),
		due:     make(chan struct{}, 1),
		broken:  make(chan struct{}, 1),
		closing: make(chan struct{}),
		exited:  make(chan struct{}),
		stop:    make(chan struct{}),
		enc:     newEncoder(),
		sum:     sha256.New(),
		entropy: newEntropy(),
	}
	if got, err := l.lock.TryLock(); err != nil {
		return nil, fmt.Errorf("audit: lock: %w", err)
	} else if !got {
		l.lock.Close()
		return nil, fmt.Errorf("audit: %s is in use by another writer", cfg.Dir)
	}
	first, err := l.load()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("audit: open %s: %w", cfg.Dir, err), l.release())
	}
	l.others.Add(2)
	go l.write()
	go l.syncer()
	go l.checkpointer()
	err = l.Append(context.Background(), first...)
	if err == nil {
		err = l.checkpoint()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("audit: open %s: %w", cfg.Dir, err), l.Close())
	}
	return l, nil
}

// makeDir makes the directory where it is missing, so that it survives a crash.
func makeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

// load brings the log to where its last line left it, and returns the events to
// record first.
func (l *Log) load() ([]Event, error) {
	var err error
	if err := writeOver(l.path(vkeyFile), []byte(l.cfg.Key.vkey+"\n")); err != nil {
		return nil, err
	}
	if l.past, err = os.OpenFile(l.path(historyFile), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	if l.sums, err = os.OpenFile(l.path(hashesFile), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	if err := l.makeReserve(); err != nil {
		return nil, err
	}
	newest, tornPast, err := l.loadCheckpoint()
	if err != nil {
		return nil, err
	}
	s, err := l.scan(newest)
	if err != nil {
		return nil, err
	}
	l.unfinished = s.unfinished()

	// What stands in the file may not have reached the disk before the last
	// writer died; from here on it counts as durable.
	number := 1
	if n := len(s.lines.segs); n > 0 {
		number = s.lines.segs[n-1].number
	}
	f, err := l.cfg.disk.OpenFile(segmentPath(l.cfg.Dir, number), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	l.file = f
	if s.torn > 0 {
		if err := f.Truncate(s.end); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(f.Sync(), syncDir(l.cfg.Dir)); err != nil {
		return nil, err
	}
	l.durable = position{next: s.chain.next, prev: s.chain.prev, segment: number, size: s.end}
	if s.chain.next == 0 {
		l.durable.prev = emptyPrev
	} else if t, err := time.Parse(timeFormat, s.chain.time); err != nil {
		return nil, err
	} else {
		// A new millisecond, so that ids keep rising.
		l.durable.time = t.Truncate(time.Millisecond).Add(time.Millisecond)
	}
	l.at, l.tree = l.durable, s.chain.tree
	first := []Event{own(AuditStarted, "checkpoints are signed by %s", l.cfg.Key.vkey)}
	if n := s.chain.next - newest.Size; n > 0 {
		// After a crash nobody signed the newest lines; whoever could write the
		// file then could have added some. The reader is told which they are.
		first = append(first, own(AuditRecovered, "took over %d lines, from event %d on, that no checkpoint covered", n, newest.Size))
	}
	if s.torn > 0 {
		first = append(first, own(AuditRecovered, "cut off %d bytes of a line that was never durable, sha256:%x", s.torn, s.tornSum))
	}
	if tornPast > 0 {
		first = append(first, own(AuditRecovered, "cut off %d bytes at the end of the history of checkpoints", tornPast))
	}
	return first, nil
}

// loadCheckpoint finds the newest checkpoint and makes the history end in it.
// An empty log has one too, of size 0: lines without any are not ours.
func (l *Log) loadCheckpoint() (newest Checkpoint, torn int64, err error) {
	newest, l.pastAt, err = lastCheckpoint(l.past, l.cfg.Key)
	if err != nil {
		return newest, 0, err
	}
	info, err := l.past.Stat()
	if err != nil {
		return newest, 0, err
	}
	if torn = info.Size() - l.pastAt; torn > 0 {
		if err := l.past.Truncate(l.pastAt); err != nil {
			return newest, 0, err
		}
	}
	signed, err := readCheckpoint(l.cfg.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		segs, err := segments(l.cfg.Dir)
		if err != nil {
			return newest, 0, err
		}
		if len(segs) > 0 || newest.Size > 0 {
			return newest, 0, &Finding{0, BadCheckpoint, "the checkpoint is missing"}
		}
		l.signed = -1
		return Checkpoint{Origin: l.cfg.Origin, Root: (&tree{}).root()}, 0, l.checkpoint()
	}
	if err != nil {
		return newest, 0, err
	}
	c, err := openCheckpoint(signed, l.cfg.Key.v)
	if err != nil {
		return newest, 0, &Finding{0, BadCheckpoint, err.Error()}
	}
	l.signed = c.Size
	if c.Size > newest.Size || l.pastAt == 0 {
		// A crash took the end of the history.
		return c, torn, l.remember(signed)
	}
	return newest, torn, nil
}

// lastCheckpoint reads the last whole checkpoint of a history, and where it
// ends. What follows is what a crash left of another.
func lastCheckpoint(f *os.File, key Key) (c Checkpoint, end int64, err error) {
	info, err := f.Stat()
	if err != nil {
		return c, 0, err
	}
	start := max(0, info.Size()-64<<10)
	b := make([]byte, info.Size()-start)
	if _, err := f.ReadAt(b, start); err != nil && err != io.EOF {
		return c, 0, err
	}
	b = append([]byte{'\n'}, b...)
	head := []byte("\n" + key.v.Name() + "\n")
	for i := bytes.LastIndex(b, head); i >= 0; i = bytes.LastIndex(b[:i+1], head) {
		end := i + 1
		for range noteLines {
			n := bytes.IndexByte(b[end:], '\n')
			if n < 0 {
				end = -1
				break
			}
			end += n + 1
		}
		if end < 0 {
			continue
		}
		if c, err := openCheckpoint(b[i+1:end], key.v); err == nil {
			return c, start + int64(end) - 1, nil
		}
	}
	if start > 0 {
		return c, 0, &Finding{0, BadHistory, "the history of checkpoints cannot be read"}
	}
	return Checkpoint{}, 0, nil
}

// A scan is one reading of all lines.
type scan struct {
	lines   *lines
	chain   chain
	end     int64 // bytes of the last segment that are whole lines
	torn    int64 // bytes after them
	tornSum [sha256.Size]byte
	open    map[string]openEvent // allowed calls and approval requests without an end
}

type openEvent struct {
	index int64
	line  []byte
}

func (l *Log) scan(newest Checkpoint) (*scan, error) {
	lines, err := openLines(l.cfg.Dir)
	if err != nil {
		return nil, err
	}
	defer lines.close()
	s := &scan{lines: lines, chain: chain{origin: l.cfg.Origin}, open: make(map[string]openEvent)}
	sums := stored{f: l.sums}
	var h head
	for {
		if s.chain.next == newest.Size && s.chain.tree.root() != newest.Root {
			return nil, &Finding{0, Rewritten, fmt.Sprintf("the lines are not those under the checkpoint of size %d", newest.Size)}
		}
		line, whole, err := lines.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if lines.torn(line, whole) && s.chain.next >= newest.Size {
			if s.torn, s.tornSum, err = rest(lines.segs[lines.seg].path, lines.off); err != nil {
				return nil, err
			}
			s.end = lines.off
			break
		}
		if !whole {
			return nil, &Finding{s.chain.next, Malformed, "the line is cut off, or has no end"}
		}
		if f := s.chain.add(line, &h); f != nil {
			return nil, f
		}
		s.end = lines.pos
		if !lines.last() {
			s.end = 0 // of a last segment that has no line yet
		}
		s.note(line, &h)
		if len(h.key) > 0 {
			l.keys.add(string(h.key))
		}
		if err := sums.add(s.chain.stored); err != nil {
			return nil, err
		}
	}
	if s.chain.next < newest.Size {
		return nil, &Finding{s.chain.next, Truncated, fmt.Sprintf("the checkpoint covers %d events, the log has %d", newest.Size, s.chain.next)}
	}
	l.sumsAt, err = sums.finish()
	return s, err
}

// note keeps account of what is open.
func (s *scan) note(line []byte, h *head) {
	t := Type(h.typ)
	call := "call " + string(h.tenant) + " " + string(h.call)
	approval := "approval " + string(h.tenant) + " " + string(h.approval)
	switch t {
	case CallAllowed:
		s.open[call] = openEvent{h.index, bytes.Clone(line)}
	case CallCompleted, CallFailed, CallCancelled, CallInDoubt, CallDenied:
		delete(s.open, call)
	case ApprovalRequested:
		s.open[approval] = openEvent{h.index, bytes.Clone(line)}
	case ApprovalDenied, ApprovalExpired, ApprovalCancelled, ApprovalVoided, ApprovalConsumed:
		delete(s.open, approval)
	}
}

func (s *scan) unfinished() []Event {
	var all []Event
	for _, o := range s.open {
		var e Event
		if json.Unmarshal(o.line, &e) == nil {
			all = append(all, e)
		}
	}
	slices.SortFunc(all, func(a, b Event) int { return int(a.Integrity.Index - b.Integrity.Index) })
	return all
}

// rest measures and hashes what follows off in a file.
func rest(path string, off int64) (n int64, sum [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, sum, err
	}
	defer f.Close()
	h := sha256.New()
	n, err = io.Copy(h, io.NewSectionReader(f, off, 1<<62))
	return n, [sha256.Size]byte(h.Sum(nil)), err
}

// stored brings the hashes file in line with the tree, writing only what
// differs.
type stored struct {
	f        *os.File
	buf, old []byte
	at       int64
}

func (s *stored) add(hashes []tlog.Hash) error {
	for _, h := range hashes {
		s.buf = append(s.buf, h[:]...)
	}
	if len(s.buf) < 64<<10 {
		return nil
	}
	return s.flush()
}

func (s *stored) flush() error {
	s.old = append(s.old[:0], s.buf...)
	clear(s.old)
	if _, err := s.f.ReadAt(s.old, s.at); err != nil && err != io.EOF {
		return err
	}
	if !bytes.Equal(s.old, s.buf) {
		if _, err := s.f.WriteAt(s.buf, s.at); err != nil {
			return err
		}
	}
	s.at += int64(len(s.buf))
	s.buf = s.buf[:0]
	return nil
}

func (s *stored) finish() (size int64, err error) {
	if err := s.flush(); err != nil {
		return 0, err
	}
	return s.at, s.f.Truncate(s.at)
}
