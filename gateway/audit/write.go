package audit

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// A group is what goes to the disk in one write.
type group struct {
	lines   []byte
	ends    []int    // of each line, in lines
	keys    []string // that its lines brought
	waiting []*unit  // to be released when it is durable
	lazy    []*unit  // to be released when it is written
	lazyAt  []int    // the indices, in ends, of their lines
	after   position
}

// line returns the i'th line without its newline.
func (g *group) line(i int) []byte {
	start := 0
	if i > 0 {
		start = g.ends[i-1]
	}
	return g.lines[start : g.ends[i]-1]
}

// write is the writer.
func (l *Log) write() {
	defer close(l.exited)
	var retry <-chan time.Time
	for {
		select {
		case u := <-l.queue:
			l.writeGroup(u)
		case <-l.broken:
		case <-retry:
			retry = nil
			l.retry()
		case <-l.closing:
			l.writeLast()
			return
		}
		if f := l.fault.Load(); f != nil {
			l.giveUp()
			if retry == nil {
				retry = time.After(retryEvery)
			}
		}
	}
}

// writeLast writes what waits, and that the log was closed in order.
func (l *Log) writeLast() {
	if l.fault.Load() != nil {
		l.giveUp()
		l.retry()
	}
	for {
		select {
		case u := <-l.queue:
			l.writeGroup(u)
			continue
		default:
		}
		break
	}
	stopped := &unit{events: []Event{own(AuditStopped, "closed in order")}, durable: true, done: make(chan error, 1)}
	l.writeGroup(stopped)
	l.sync()
	if l.fault.Load() != nil {
		l.giveUp()
	}
}

// writeGroup writes first and whatever else waits, in one go.
func (l *Log) writeGroup(first *unit) {
	if l.at.size >= l.cfg.SegmentBytes {
		l.nextSegment()
	}
	// Whoever is about to write as well comes first: a write for many costs as much
	// as one for one.
	runtime.Gosched()
	g := l.newGroup()
	for u := first; u != nil; {
		if u.taken.CompareAndSwap(false, true) {
			if err := l.refuses(u.events); err != nil {
				u.done <- err
			} else {
				l.encode(g, u)
			}
		}
		u = nil
		if len(g.lines) < groupBytes {
			select {
			case u = <-l.queue:
			default:
			}
		}
	}
	if len(g.waiting)+len(g.lazy) == 0 {
		l.spent(g)
		return
	}
	g.after = l.at
	_, err := l.file.Write(g.lines)
	lazy, signal := g.lazy, l.soon
	if len(g.waiting) > 0 {
		signal = l.now
	}
	if err == nil {
		g.lazy = nil // from here on they count as accepted, and a fault may not lose them
	} else {
		l.fail(fmt.Errorf("write: %w", err)) // before any sync could count it
	}
	l.mu.Lock()
	l.pending = append(l.pending, g) // and is the syncer's from here on
	l.mu.Unlock()
	if err != nil {
		return // giveUp answers them
	}
	for _, u := range lazy {
		u.done <- nil
	}
	notify(signal)
}

// encode adds a unit's lines to g, all or none.
func (l *Log) encode(g *group, u *unit) {
	at, size, lines, keys := l.at, len(g.lines), len(g.ends), len(g.keys)
	e := &l.event
	for i := range u.events {
		if *e = u.events[i]; e.Key != "" && l.keys.has(e.Key) {
			continue
		}
		err := l.stamp(e)
		var line []byte
		if err == nil {
			line, err = l.enc.line(e)
		}
		if err != nil {
			for _, key := range g.keys[keys:] {
				l.keys.forget(key)
			}
			l.at, g.lines, g.ends, g.keys = at, g.lines[:size], g.ends[:lines], g.keys[:keys]
			u.done <- err
			return
		}
		if e.Key != "" {
			l.keys.add(e.Key)
			g.keys = append(g.keys, e.Key)
		}
		g.lines = append(g.lines, line...)
		g.ends = append(g.ends, len(g.lines))
		l.at.next++
		l.at.prev = lineHash(line[:len(line)-1])
		l.at.size += int64(len(line))
	}
	if u.durable {
		g.waiting = append(g.waiting, u)
		return
	}
	g.lazy = append(g.lazy, u)
	for i := lines; i < len(g.ends); i++ {
		g.lazyAt = append(g.lazyAt, i)
	}
}

// syncer syncs what was written: at once where somebody waits for it, else when
// more has had a moment to come. Where many waited for the last sync, many more
// are on their way: a moment's wait spares most of them a sync of their own.
func (l *Log) syncer() {
	defer l.others.Done()
	var later <-chan time.Time
	for {
		select {
		case <-l.now:
		case <-later:
		case <-l.soon:
			if later == nil {
				later = time.After(lazySync)
			}
			continue
		case <-l.stop:
			return
		}
		later = nil
		if l.released.Load() >= company {
			time.Sleep(companyFor)
		}
		l.sync()
	}
}

// sync makes durable what was written before it was called. A sync that failed
// is never tried again: the kernel may have dropped the pages and call the next
// one good.
func (l *Log) sync() {
	l.syncing.Lock()
	defer l.syncing.Unlock()
	l.mu.Lock()
	groups, f := l.pending, l.file
	l.mu.Unlock()
	if fault := l.fault.Load(); fault != nil && !fault.low || len(groups) == 0 {
		return
	}
	if err := f.Sync(); err != nil {
		l.fail(fmt.Errorf("sync: %w", err))
		return // giveUp answers them
	}
	l.settle(groups)
	released := 0
	for _, g := range groups {
		released += len(g.waiting)
		for _, u := range g.waiting {
			u.done <- nil
		}
		l.spent(g)
	}
	l.released.Store(int64(released))
}

// newGroup and spent let groups use each other's memory, one after another.
func (l *Log) newGroup() *group {
	if g, ok := l.groups.Get().(*group); ok {
		return g
	}
	return new(group)
}

// spent takes a group that nobody reads any more.
func (l *Log) spent(g *group) {
	clear(g.waiting)
	clear(g.lazy)
	*g = group{
		lines: g.lines[:0], ends: g.ends[:0], keys: g.keys[:0], waiting: g.waiting[:0], lazyAt: g.lazyAt[:0],
	}
	l.groups.Put(g)
}

// settle counts groups, the first of the pending ones, as durable.
func (l *Log) settle(groups []*group) {
	leaves := l.leaves[:0]
	for _, g := range groups {
		for i := range g.ends {
			leaves = appendLeaf(leaves, l.sum, g.line(i))
		}
	}
	l.leaves = leaves
	l.mu.Lock()
	defer l.mu.Unlock()
	for ; len(leaves) > 0; leaves = leaves[tlog.HashSize:] {
		for _, h := range l.tree.add(tlog.Hash(leaves)) {
			l.hashes = append(l.hashes, h[:]...)
		}
	}
	l.durable = groups[len(groups)-1].after
	l.pending = l.pending[len(groups):]
	if len(l.hashes) >= l.cfg.CheckpointEvents*tlog.HashSize*2 {
		notify(l.due)
	}
}

// appendLeaf is [tlog.RecordHash] without its memory.
func appendLeaf(leaves []byte, sum hash.Hash, line []byte) []byte {
	sum.Reset()
	sum.Write(leafPrefix)
	sum.Write(line)
	return sum.Sum(leaves)
}

var leafPrefix = []byte{0}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// nextSegment begins a new file. A sync covers one file only, so what is in the
// old one is made durable first.
func (l *Log) nextSegment() {
	if l.fault.Load() != nil {
		return
	}
	l.sync()
	l.mu.Lock()
	settled := len(l.pending) == 0
	l.mu.Unlock()
	if !settled {
		return // the sync failed
	}
	f, err := l.newSegment(l.at.segment + 1)
	if err != nil {
		l.fail(fmt.Errorf("new segment: %w", err))
		return
	}
	l.syncing.Lock()
	defer l.syncing.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.file
	l.at.segment, l.at.size = l.at.segment+1, 0
	l.file, l.durable = f, l.at
	if err := old.Close(); err != nil {
		l.fail(fmt.Errorf("close segment: %w", err))
	}
}

// newSegment makes an empty segment whose name survives a crash. Lines after it
// never go to an older one.
func (l *Log) newSegment(number int) (file, error) {
	f, err := l.cfg.disk.OpenFile(segmentPath(l.cfg.Dir, number), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syncDir(l.cfg.Dir); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// fail sets the fault; the writer sees to the rest.
func (l *Log) fail(cause error) {
	next := &fault{cause: cause}
	for {
		f := l.fault.Load()
		if f != nil && !f.low || l.fault.CompareAndSwap(f, next) {
			break
		}
	}
	notify(l.broken)
}

// giveUp follows a fault: it cuts the segment back to the last durable line and
// only then tells those who wait that nothing of theirs is in the log. A crash
// before the cut leaves lines that nobody was told about either way. Where the
// cut fails too, the lines may come back: they say what was about to happen, and
// a call among them that never was made is found unfinished.
func (l *Log) giveUp() {
	f := l.fault.Load()
	if f.low {
		return
	}
	l.syncing.Lock()
	defer l.syncing.Unlock()
	l.mu.Lock()
	lost, old := l.pending, l.file
	l.pending, l.file, l.at = nil, nil, l.durable
	l.mu.Unlock()
	if old != nil {
		old.Close()
		_ = l.cut() // tried again by recover, and required there
	}
	for _, g := range lost {
		for _, key := range g.keys {
			l.keys.forget(key)
		}
		if g.lazy == nil { // it was written, and its lazy units were told so
			for _, i := range g.lazyAt {
				var e Event
				if json.Unmarshal(g.line(i), &e) == nil {
					if e.At == "" {
						e.At = e.Time
					}
					l.carry = append(l.carry, e)
				}
			}
		}
		for _, u := range append(g.waiting, g.lazy...) {
			u.done <- f
		}
	}
	full := errors.Is(f.cause, syscall.ENOSPC) || errors.Is(f.cause, syscall.EDQUOT)
	if full && l.reserve {
		l.reserve = false
		if os.Remove(l.path(reserveFile)) == nil &&
			l.recover(own(AuditDegraded, "no space left; only outcomes are recorded, on the reserve")) == nil {
			l.fault.CompareAndSwap(f, &fault{cause: f.cause, low: true})
		}
	}
}

// retry tries to end a fault. It needs a reserve, every durable line under a
// checkpoint, and a place to write; where it lacks one the fault stays.
func (l *Log) retry() {
	f := l.fault.Load()
	if f == nil || !l.reserve && l.makeReserve() != nil {
		return
	}
	if f.low {
		if l.fault.CompareAndSwap(f, nil) {
			l.writeGroup(&unit{events: []Event{own(AuditRecovered, "space again after: %v", f.cause)}, durable: true, done: make(chan error, 1)})
		}
		return
	}
	if l.checkpoint() != nil {
		return
	}
	l.syncing.Lock()
	defer l.syncing.Unlock()
	if l.recover(own(AuditRecovered, "writing works again after: %v", f.cause)) == nil {
		l.fault.CompareAndSwap(f, nil)
	}
}

// recover begins a new segment after the last durable line, with first and the
// events that were accepted and then lost. It leaves no trace where it fails.
func (l *Log) recover(first Event) error {
	if err := l.cut(); err != nil {
		return err
	}
	number := l.durable.segment
	if l.durable.size > 0 {
		number++
	}
	f, err := l.newSegment(number)
	if err != nil {
		return err
	}
	g := new(group)
	l.at = l.durable
	l.at.segment, l.at.size = number, 0
	for _, e := range append([]Event{first}, l.carry...) {
		// One by one: what cannot be encoded now could not be then.
		l.encode(g, &unit{events: []Event{e}, durable: true, done: make(chan error, 1)})
	}
	g.after = l.at
	_, err = f.Write(g.lines)
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		f.Close()
		os.Remove(segmentPath(l.cfg.Dir, number))
		for _, key := range g.keys {
			l.keys.forget(key)
		}
		l.at = l.durable
		return err
	}
	l.carry = nil
	l.mu.Lock()
	l.file, l.pending = f, []*group{g}
	l.mu.Unlock()
	l.settle([]*group{g})
	return nil
}

// cut cuts the segment back to the last durable line, and makes sure that this
// is still the file it was.
func (l *Log) cut() error {
	path, want := segmentPath(l.cfg.Dir, l.durable.segment), l.durable.size
	info, err := os.Stat(path)
	if want == 0 && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Size() < want {
		return fmt.Errorf("%s has lost durable lines", path)
	}
	if want > 0 {
		if prev, err := hashBefore(path, want); err != nil || prev != l.durable.prev {
			return fmt.Errorf("%s does not end in the last durable line: %w", path, err)
		}
	}
	f, err := l.cfg.disk.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if info.Size() > want {
		err = f.Truncate(want)
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// hashBefore hashes the line that ends at end.
func hashBefore(path string, end int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	start := max(0, end-maxLine-1)
	b := make([]byte, end-start)
	if _, err := f.ReadAt(b, start); err != nil {
		return "", err
	}
	line, ok := bytes.CutSuffix(b, []byte{'\n'})
	if !ok {
		return "", errors.New("no line ends there")
	}
	return lineHash(line[bytes.LastIndexByte(line, '\n')+1:]), nil
}

// makeReserve takes some disk space, to be given back when there is no other.
// It is noise, so that no file system makes it small.
func (l *Log) makeReserve() error {
	if info, err := os.Stat(l.path(reserveFile)); err == nil && info.Size() == reserveSize {
		l.reserve = true
		return nil
	}
	noise := make([]byte, reserveSize)
	rand.Read(noise)
	// Not synced: space is set aside when it is written, and all of it is lost
	// in a crash at worst.
	if err := os.WriteFile(l.path(reserveFile), noise, 0o600); err != nil {
		os.Remove(l.path(reserveFile))
		return err
	}
	l.reserve = true
	return nil
}

func (l *Log) path(name string) string { return filepath.Join(l.cfg.Dir, name) }
