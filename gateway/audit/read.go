package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"strings"
	"time"
)

// A Line is one event as it stands in the log. Raw has no newline and is the
// reader's to keep.
type Line struct {
	Index int64
	Raw   []byte
	Event Event
}

// A Filter picks events. Its zero value picks all; what is set must all match.
type Filter struct {
	Types      []Type // any of these; "approval.*" stands for all that begin so
	Tenant     string
	Task       string // a task's id
	Call       string // a call's id
	FirstClass string // denial, escalation, override or none
}

// Match reports whether f picks e.
func (f Filter) Match(e *Event) bool {
	return (len(f.Types) == 0 || slices.ContainsFunc(f.Types, e.Type.is)) &&
		(f.Tenant == "" || f.Tenant == e.Tenant) &&
		(f.Task == "" || e.Task != nil && f.Task == e.Task.ID) &&
		(f.Call == "" || e.Call != nil && f.Call == e.Call.ID) &&
		(f.FirstClass == "" || f.FirstClass == e.FirstClass)
}

// mayMatch leaves out most lines that do not match without decoding them.
func (f Filter) mayMatch(h *head) bool {
	return (f.Tenant == "" || f.Tenant == string(h.tenant)) &&
		(f.Task == "" || f.Task == string(h.task)) &&
		(f.Call == "" || f.Call == string(h.call))
}

func (t Type) is(pattern Type) bool {
	if prefix, ok := strings.CutSuffix(string(pattern), "*"); ok {
		return strings.HasPrefix(string(t), prefix)
	}
	return t == pattern
}

// Read yields the lines from index from on, in order, as they stand: it checks
// form, not truth; that is Verify's. A last line without its newline is left
// out: it is being written, or a crash tore it. After an error it ends. Read may
// run beside the writer.
func Read(dir string, from int64) iter.Seq2[Line, error] { return Find(dir, from, Filter{}) }

// ReadTask yields all events of one task, in order.
func ReadTask(dir, tenant, task string) iter.Seq2[Line, error] {
	return Find(dir, 0, Filter{Tenant: tenant, Task: task})
}

// Find is Read for the events that f picks.
func Find(dir string, from int64, f Filter) iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		lines, err := openLines(dir)
		if err != nil {
			yield(Line{}, err)
			return
		}
		defer lines.close()
		for {
			raw, whole, err := lines.next()
			if err == io.EOF || err == nil && lines.torn(raw, whole) {
				return
			}
			if err == nil && !whole {
				err = errors.New("audit: a line without end")
			}
			if err != nil {
				yield(Line{}, err)
				return
			}
			line, picked, err := pick(raw, from, f)
			if err != nil {
				yield(Line{}, err)
				return
			}
			if picked && !yield(line, nil) {
				return
			}
		}
	}
}

func pick(raw []byte, from int64, f Filter) (line Line, picked bool, err error) {
	var h head
	if err := h.parse(raw); err != nil {
		return line, false, fmt.Errorf("audit: a line that is no event: %w", err)
	}
	if h.index < from || !f.mayMatch(&h) {
		return line, false, nil
	}
	line = Line{Index: h.index, Raw: bytes.Clone(raw)}
	if err := json.Unmarshal(line.Raw, &line.Event); err != nil {
		return line, false, fmt.Errorf("audit: event %d: %w", h.index, err)
	}
	return line, f.Match(&line.Event), nil
}

// pollEvery is how often Follow looks for more.
const pollEvery = 100 * time.Millisecond

// Follow is Find that goes on: having yielded what is there it waits for more,
// until ctx ends. It may yield a line that a fault of the disk takes back a
// moment later; only lines under a checkpoint are there to stay.
func Follow(ctx context.Context, dir string, from int64, f Filter) iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		var at segment // the one being read
		var off int64  // where its next line starts
		tick := time.NewTicker(pollEvery)
		defer tick.Stop()
		for ctx.Err() == nil {
			segs, err := segments(dir)
			if err != nil {
				yield(Line{}, err)
				return
			}
			for _, seg := range segs {
				if seg.number < at.number {
					continue
				}
				if seg.number > at.number {
					at, off = seg, 0
				}
				if off, err = tail(seg.path, off, from, f, yield); err != nil {
					if !errors.Is(err, errStop) {
						yield(Line{}, err)
					}
					return
				}
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	}
}

var errStop = errors.New("the reader has had enough")

// tail yields the whole lines of a segment from off on, and returns where they
// end.
func tail(path string, off, from int64, f Filter, yield func(Line, error) bool) (int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return off, fmt.Errorf("audit: %w", err)
	}
	if info.Size() <= off {
		return min(off, info.Size()), nil
	}
	lines := &lines{segs: []segment{{path: path}}, seg: -1, start: off, r: newLineReader()}
	defer lines.close()
	for {
		raw, whole, err := lines.next()
		if err == io.EOF || err == nil && lines.torn(raw, whole) {
			return off, nil
		}
		if err == nil && !whole {
			err = errors.New("audit: a line without end")
		}
		if err != nil {
			return off, err
		}
		off = lines.pos
		line, picked, err := pick(raw, from, f)
		if err != nil {
			return off, err
		}
		if picked && !yield(line, nil) {
			return off, errStop
		}
	}
}
