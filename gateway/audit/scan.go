package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// A segment is one file of lines.
type segment struct {
	path   string
	number int
}

func segmentPath(dir string, number int) string {
	return filepath.Join(dir, fmt.Sprintf("%06d.jsonl", number))
}

// segments lists a log's segments in order.
func segments(dir string) ([]segment, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	var all []segment
	for _, e := range entries {
		base, ok := strings.CutSuffix(e.Name(), ".jsonl")
		n, err := strconv.Atoi(base)
		if !ok || err != nil || n <= 0 || segmentPath(dir, n) != filepath.Join(dir, e.Name()) {
			continue
		}
		if !e.Type().IsRegular() { // a pipe would block, a link leads elsewhere
			return nil, fmt.Errorf("audit: %s is not a regular file", e.Name())
		}
		all = append(all, segment{filepath.Join(dir, e.Name()), n})
	}
	slices.SortFunc(all, func(a, b segment) int { return a.number - b.number })
	return all, nil
}

// A lines reads a log's lines, segment by segment.
type lines struct {
	segs  []segment
	start int64 // where in the first segment to start
	seg   int   // the segment that the last line came from
	off   int64 // where in it that line started
	pos   int64 // and ended
	f     *os.File
	r     *bufio.Reader
}

func newLineReader() *bufio.Reader { return bufio.NewReaderSize(nil, 2*maxLine) }

func openLines(dir string) (*lines, error) {
	segs, err := segments(dir)
	if err != nil {
		return nil, err
	}
	return &lines{segs: segs, seg: -1, r: newLineReader()}, nil
}

func (l *lines) close() {
	if l.f != nil {
		l.f.Close()
		l.f = nil
	}
}

// next returns the next line without its newline, valid until the next call.
// whole is false where it has none, or where it is longer than any line may be:
// then the rest is not read. It returns io.EOF after the last line.
func (l *lines) next() (line []byte, whole bool, err error) {
	for {
		if l.f == nil {
			if l.seg+1 >= len(l.segs) {
				return nil, false, io.EOF
			}
			l.seg++
			if l.f, err = os.Open(l.segs[l.seg].path); err != nil {
				return nil, false, fmt.Errorf("audit: %w", err)
			}
			if l.pos, err = l.f.Seek(l.start, io.SeekStart); err != nil {
				return nil, false, fmt.Errorf("audit: %w", err)
			}
			l.start = 0
			l.r.Reset(l.f)
		}
		l.off = l.pos
		line, err = l.r.ReadSlice('\n')
		l.pos += int64(len(line))
		switch {
		case err == nil:
			return line[:len(line)-1], true, nil
		case err == io.EOF && len(line) == 0:
			l.close()
			continue
		case err == io.EOF, errors.Is(err, bufio.ErrBufferFull):
			return line, false, nil
		default:
			return nil, false, fmt.Errorf("audit: %w", err)
		}
	}
}

// last reports whether the last line came from the last segment.
func (l *lines) last() bool { return l.seg == len(l.segs)-1 }

// torn reports whether the line that next just returned is what a crash leaves
// of a group that was never synced: no newline, or zeros where a block never
// reached the disk. No line of ours holds a zero byte.
func (l *lines) torn(line []byte, whole bool) bool {
	return l.last() && (!whole && len(line) < 2*maxLine || bytes.IndexByte(line, 0) >= 0)
}

// A Finding is what is wrong with a log, and where it starts.
type Finding struct {
	Index int64 // of the first line that is not proven to be what was written
	Code  Code
	What  string // in words
}

// A Code names a kind of finding. The set may grow; a code never changes its
// meaning.
type Code string

// What can be wrong with a log.
const (
	Changed       Code = "changed"        // the line is not the one that was written
	Dropped       Code = "dropped"        // a line is missing here
	Inserted      Code = "inserted"       // a line that was not written here
	Duplicated    Code = "duplicated"     // an earlier line, once more
	Reordered     Code = "reordered"      // a later line stands here, and this one later
	Truncated     Code = "truncated"      // lines that a checkpoint covers are gone from the end
	Malformed     Code = "malformed"      // not an event
	NotCanonical  Code = "not_canonical"  // JSON, but not in the one form
	TimeRunsBack  Code = "time_runs_back" // earlier than the line before
	WrongLog      Code = "wrong_log"      // a line of another log
	BadCheckpoint Code = "bad_checkpoint" // missing, unreadable, or not signed by the key
	BadHistory    Code = "bad_history"    // the history of checkpoints contradicts itself
	Rewritten     Code = "rewritten"      // the lines are not those that a checkpoint covers
)

func (f *Finding) Error() string {
	return fmt.Sprintf("event %d: %s: %s", f.Index, f.Code, f.What)
}

// A chain follows the lines of a log and holds each to the ones before.
type chain struct {
	origin string // empty until the first line says it
	next   int64  // index of the next line
	prev   string // what its integrity.prev must say
	time   string // of the line before
	closed bool   // by the line before
	tree   tree

	leaf   tlog.Hash   // of the line before
	stored []tlog.Hash // what tlog stores for it, until the next
}

// emptyPrev is the first line's integrity.prev: the hash of nothing.
var emptyPrev = lineHash(nil)

func lineHash(line []byte) string {
	sum := sha256.Sum256(line)
	var b [7 + 2*sha256.Size]byte
	copy(b[:], "sha256:")
	hex.Encode(b[7:], sum[:])
	return string(b[:])
}

// add takes the next line, without its newline, and fills h from it.
func (c *chain) add(line []byte, h *head) *Finding {
	bad := func(code Code, format string, args ...any) *Finding {
		return &Finding{c.next, code, fmt.Sprintf(format, args...)}
	}
	if c.next == 0 {
		c.prev = emptyPrev
	}
	if len(line)+1 > maxLine {
		return bad(Malformed, "over %d bytes", maxLine)
	}
	if err := h.parse(line); errors.Is(err, errNotCanonical) {
		return bad(NotCanonical, "%v", err)
	} else if err != nil {
		return bad(Malformed, "%v", err)
	}
	switch {
	case h.index > c.next:
		return bad(Dropped, "the line says it is event %d", h.index)
	case h.index < c.next:
		return bad(Inserted, "the line says it is event %d", h.index)
	case string(h.prev) != c.prev:
		return bad(Changed, "it does not follow the line before: that one hashes to %s", c.prev)
	case c.origin != "" && string(h.log) != c.origin:
		return bad(WrongLog, "the line is of log %q, not %q", h.log, c.origin)
	case string(h.time) < c.time:
		return bad(TimeRunsBack, "%s comes after %s", h.time, c.time)
	case c.closed && Type(h.typ) != AuditStarted:
		return bad(Inserted, "the log was closed by the line before, and nothing opened it again")
	}
	c.closed = Type(h.typ) == AuditStopped
	c.grow(line)
	if c.origin == "" {
		c.origin = string(h.log)
	}
	if string(h.time) != c.time {
		c.time = string(h.time)
	}
	return nil
}

func (c *chain) grow(line []byte) {
	c.prev = lineHash(line)
	c.leaf = tlog.RecordHash(line)
	c.stored = c.tree.add(c.leaf)
	c.next++
}

// readCheckpoint reads the checkpoint file, and nothing that is not a small file.
func readCheckpoint(dir string) ([]byte, error) { return readSmall(filepath.Join(dir, checkpointFile)) }

func readSmall(path string) ([]byte, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > 64<<10 {
		return nil, fmt.Errorf("%s is not a small file", filepath.Base(path))
	}
	return os.ReadFile(path)
}

// The files beside the segments.
const (
	checkpointFile = "checkpoint"  // the newest
	historyFile    = "checkpoints" // all
	hashesFile     = "hashes"      // the tree, in tlog's order; can be made again from the lines
	vkeyFile       = "key.pub"
	lockFile       = "lock"
	reserveFile    = "reserve" // space for outcomes when the disk is full
)
