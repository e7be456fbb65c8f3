package audit

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gofrs/flock"
	"github.com/oklog/ulid/v2"
)

// A Config says where a log is and who writes it.
type Config struct {
	Dir     string  // one directory per writer; made, 0700, where it is missing
	Origin  string  // the log's name in checkpoints: "toolbroker.example/audit/r1"; no spaces, no plus
	Key     Key     // signs the checkpoints; its name is Origin
	Gateway Gateway // stamped on every event

	CheckpointEvery  time.Duration // at most so long until durable events are under a checkpoint; 0 means 1 s
	CheckpointEvents int           // and at most so many events; 0 means 1,000
	SegmentBytes     int64         // a new file is begun over this size; 0 means 64 MiB

	Now func() time.Time // nil means time.Now

	disk disk // nil means the real one
}

var (
	// ErrFaulted is wrapped by every answer of a log that could not write. What
	// was refused with it is not in the log.
	ErrFaulted = errors.New("audit: the log cannot be written")
	// ErrClosed is the answer of a closed log.
	ErrClosed = errors.New("audit: the log is closed")
)

const (
	queueLength = 1024                  // calls that may wait to be written
	groupBytes  = 256 << 10             // a group is closed over this size
	lazySync    = 20 * time.Millisecond // how long written events may wait for company
	company     = 8                     // who waited for one sync, from which the next one
	companyFor  = 2 * time.Millisecond  // waits so long for more
	retryEvery  = time.Second           // between tries to recover from a fault
	keyWindow   = 100_000               // keys remembered
	maxKey      = 256                   // bytes of a key
	reserveSize = 1 << 20               // some 800 outcomes
)

// A Log is an open log with one writer. It is safe for concurrent use.
//
// Three goroutines share the work: one encodes and writes lines in order and
// owns everything that has to do with order; one syncs what was written and
// releases whoever waits for that; one signs checkpoints over what is durable.
type Log struct {
	cfg    Config
	lock   *flock.Flock
	opened time.Time

	queue   chan *unit
	now     chan struct{} // somebody waits for a sync
	soon    chan struct{} // something was written
	due     chan struct{} // a checkpoint is due
	broken  chan struct{} // a fault was set
	closing chan struct{}
	exited  chan struct{} // the writer is done; nothing is written any more
	stop    chan struct{} // the other two are to end
	others  sync.WaitGroup
	once    sync.Once
	closed  error

	fault atomic.Pointer[fault]

	syncing  sync.Mutex   // held while syncing, and while the pending groups are given up
	released atomic.Int64 // how many the last sync let go on
	groups   sync.Pool    // of groups that nobody reads any more
	units    sync.Pool    // of units that were answered
	sum      hash.Hash    // under syncing, as are
	leaves   []byte       // the hashes of lines that are being settled

	mu      sync.Mutex
	pending []*group // written, not yet durable
	file    file     // the segment being written
	durable position // where the log stands as far as the disk has confirmed
	tree    tree     // of the durable lines
	hashes  []byte   // of the tree, not yet in the hashes file

	// The writer's own.
	event   Event // being encoded
	id      ulid.ULID
	at      position // where the log stands with all that was written
	enc     *encoder
	entropy *ulid.MonotonicEntropy
	keys    keyRing
	carry   []Event // accepted by Write, then lost to a fault; written first when it is over
	reserve bool    // the reserve file is there

	// Under signing.
	signing sync.Mutex
	signed  int64    // size under the newest checkpoint
	past    *os.File // the history
	pastAt  int64    // and its size
	sums    *os.File // the stored hashes
	sumsAt  int64

	unfinished []Event
}

// A position is where a log stands after a line.
type position struct {
	next    int64     // index of the next line
	prev    string    // its integrity.prev
	time    time.Time // of the last line
	segment int       // number of the segment
	size    int64     // bytes in it
}

// A fault is why the log cannot be written. With low set it can, but only
// outcomes are: the disk is full and the reserve is being used up.
type fault struct {
	cause error
	low   bool
}

func (f *fault) Error() string   { return fmt.Sprintf("%v: %v", ErrFaulted, f.cause) }
func (f *fault) Unwrap() []error { return []error{ErrFaulted, f.cause} }

// A unit is what one call of Append or Write wants written, adjacent.
type unit struct {
	events  []Event
	durable bool
	taken   atomic.Bool // by the writer, or by a caller who gave up
	done    chan error
}

// Append writes events, in order and adjacent, and returns when all are
// durable. An event whose Key is among the last 100,000 logged keys, across
// restarts, is left out and counts as written.
//
// An error means that none of the events is in the log: they were refused
// (unknown type, too long), ctx ended while they waited for their turn, the log
// is closed, or it cannot be written (ErrFaulted). Once their turn has come
// they are waited for, however long the disk takes. A crash during Append may
// leave the first few of the events.
func (l *Log) Append(ctx context.Context, events ...Event) error { return l.put(ctx, true, events) }

// Write is Append, but returns when the events are written; they become durable
// with the next group, at most some 50 ms later. If that fails, they are
// written again, before anything else, when the log recovers.
func (l *Log) Write(ctx context.Context, events ...Event) error { return l.put(ctx, false, events) }

func (l *Log) put(ctx context.Context, durable bool, events []Event) error {
	if len(events) == 0 {
		return nil
	}
	for i := range events {
		if _, known := catalogue[events[i].Type]; !known {
			return fmt.Errorf("audit: %q is not in the catalogue", events[i].Type)
		}
		if len(events[i].Key) > maxKey {
			return fmt.Errorf("audit: a key of %d bytes is over the limit of %d", len(events[i].Key), maxKey)
		}
	}
	if err := l.refuses(events); err != nil {
		return err
	}
	select {
	case <-l.closing:
		return ErrClosed
	default:
	}
	u, given := l.units.Get().(*unit)
	if !given {
		u = &unit{done: make(chan error, 1)}
	}
	u.events, u.durable = events, durable
	select {
	case l.queue <- u:
	default:
		select {
		case l.queue <- u:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-l.closing:
			return ErrClosed
		}
	}
	var err error
	select {
	case err = <-u.done:
	case <-ctx.Done():
		if u.taken.CompareAndSwap(false, true) {
			return context.Cause(ctx)
		}
		err = <-u.done
	case <-l.exited:
		if u.taken.CompareAndSwap(false, true) {
			return ErrClosed
		}
		err = <-u.done
	}
	u.events = nil // answered: nobody else looks at it any more
	u.taken.Store(false)
	l.units.Put(u)
	return err
}

// refuses answers for a log that cannot write these events.
func (l *Log) refuses(events []Event) error {
	f := l.fault.Load()
	if f == nil {
		return nil
	}
	if f.low {
		for i := range events {
			if !events[i].Type.outcome() {
				return f
			}
		}
		return nil
	}
	return f
}

// Fault returns why the log cannot be written, wrapping ErrFaulted, or nil. A
// fault ends by itself once writing works again: that is tried every second.
func (l *Log) Fault() error {
	if f := l.fault.Load(); f != nil {
		return f
	}
	return nil
}

// Unfinished returns what the log said was still open when it was opened:
// allowed calls without an outcome (their tool.call.allowed events) and approval
// requests without an end (their approval.requested events), oldest first.
func (l *Log) Unfinished() []Event { return l.unfinished }

// Checkpoint returns the newest signed checkpoint, for others to hold.
func (l *Log) Checkpoint() ([]byte, error) { return readCheckpoint(l.cfg.Dir) }

// Close writes what waits, says that the log was closed in order, signs a last
// checkpoint and gives the directory free. Calls after it answer ErrClosed.
func (l *Log) Close() error {
	l.once.Do(func() {
		close(l.closing)
		<-l.exited
		close(l.stop)
		l.others.Wait()
		l.closed = l.finish()
	})
	return l.closed
}

func (l *Log) finish() error {
	var err error
	if f := l.fault.Load(); f != nil && !f.low {
		err = f
	} else {
		err = l.checkpoint()
	}
	return errors.Join(err, l.past.Sync(), l.release())
}

// release closes what is open. It is for Close, and for an Open that fails.
func (l *Log) release() error {
	var err error
	if l.file != nil {
		err = l.file.Close()
	}
	for _, f := range []*os.File{l.past, l.sums} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return errors.Join(err, l.lock.Close())
}

// stamp fills in what is not the caller's to say.
func (l *Log) stamp(e *Event) error {
	k := catalogue[e.Type]
	e.Code, e.Phase, e.Severity, e.FirstClass = k.code, k.phase, k.severity, k.class
	now := l.cfg.Now().UTC().Truncate(time.Microsecond)
	if now.Before(l.at.time) {
		now = l.at.time
	}
	err := l.id.SetTime(ulid.Timestamp(now))
	if err == nil {
		err = l.entropy.MonotonicRead(l.id.Time(), l.id[6:])
	}
	if err != nil {
		return fmt.Errorf("audit: make an event id: %w", err)
	}
	l.at.time = now
	var b [ulid.EncodedSize + len(timeFormat)]byte
	_ = l.id.MarshalTextTo(b[:ulid.EncodedSize]) // fails only where there is no room
	text := string(appendTime(b[:ulid.EncodedSize], now))
	e.ID, e.Time = text[:ulid.EncodedSize], text[ulid.EncodedSize:]
	e.MonoNS = int64(time.Since(l.opened).Truncate(time.Microsecond))
	e.Gateway = l.cfg.Gateway
	e.Integrity = Integrity{Index: l.at.next, Log: l.cfg.Origin, Prev: l.at.prev}
	e.V = 1
	return nil
}

// appendTime appends a time, which is in UTC, in timeFormat.
func appendTime(b []byte, t time.Time) []byte {
	year, month, day := t.Date()
	if year < 0 || year > 9999 {
		return t.AppendFormat(b, timeFormat)
	}
	hour, minute, second := t.Clock()
	b = append(b, timeFormat...)
	at := b[len(b)-len(timeFormat):]
	digits(at[0:4], year)
	digits(at[5:7], int(month))
	digits(at[8:10], day)
	digits(at[11:13], hour)
	digits(at[14:16], minute)
	digits(at[17:19], second)
	digits(at[20:26], t.Nanosecond()/1000)
	return b
}

// digits writes the last digits of n, as many as there is room for.
func digits(b []byte, n int) {
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = byte('0' + n%10)
		n /= 10
	}
}

// own is an event of the log about itself.
func own(t Type, format string, args ...any) Event {
	return Event{Type: t, Tenant: Unknown, Unbound: "not about a task", Detail: fmt.Sprintf(format, args...)}
}

func newEntropy() *ulid.MonotonicEntropy { return ulid.Monotonic(rand.Reader, 0) }

// A keyRing remembers the last keys.
type keyRing struct {
	slot map[string]int
	ring []string
	next int
}

func (k *keyRing) add(key string) {
	if k.slot == nil {
		k.slot = make(map[string]int)
	}
	if len(k.ring) < keyWindow {
		k.ring = append(k.ring, "")
	}
	if old := k.ring[k.next]; old != "" && k.slot[old] == k.next {
		delete(k.slot, old)
	}
	k.ring[k.next], k.slot[key] = key, k.next
	k.next = (k.next + 1) % keyWindow
}

func (k *keyRing) has(key string) bool { _, ok := k.slot[key]; return ok }

// forget takes back a key whose line was cut off.
func (k *keyRing) forget(key string) { delete(k.slot, key) }
