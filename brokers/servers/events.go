package servers

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"strconv"
	"sync"
	"time"
)

var errStreamEnded = errors.New("the server ended its reply before the answer")

// events reads streams of server-sent events. What it learns of one stream is there
// for the one that continues it.
type events struct {
	limit int64         // bytes of one event's data
	most  int64         // bytes in all; zero: twice the limit
	every time.Duration // with this, in all means in each such time
	last  string        // the id of the last event
	retry time.Duration // that the server asks for before the stream is continued; zero: it did not
	name  string        // of the event that is being handed on
}

// read gives each event's data to f, until f says that it is done or returns an
// error. A server that floods is cut off.
func (e *events) read(body io.Reader, f func(data []byte) (done bool, err error)) error {
	most := cmp.Or(e.most, 2*e.limit+4096)
	r := lines{from: &capped{r: body, left: most, full: most, every: e.every, since: time.Now()}, limit: e.limit + 16}
	if e.every == 0 {
		room := rooms.Get().(*[]byte)
		r.room = *room
		defer func() {
			if *room = r.room; len(r.room) <= mostRoom {
				rooms.Put(room)
			}
		}()
	}
	var data []byte
	var some bool
	id, name := "", ""
	for first := true; ; first = false {
		line, err := r.next()
		if first {
			line = bytes.TrimPrefix(line, []byte("\ufeff"))
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch {
		case err == io.EOF:
			return errStreamEnded // an event without the empty line behind it does not count
		case err != nil:
			return err
		case len(line) == 0:
			if id != "" {
				e.last = id
			}
			if some {
				e.name = name
				if done, err := f(data); done || err != nil {
					return err
				}
			}
			// What f was given is its own now.
			data, some, id, name = nil, false, "", ""
		case string(field) == "data":
			if some {
				data = append(data, '\n')
			}
			data, some = append(data, value...), true
			if int64(len(data)) > e.limit {
				return errTooBig
			}
		case string(field) == "event":
			name = clip(string(value))
		case string(field) == "id" && len(value) <= maxSession && !bytes.ContainsFunc(value, control):
			id = string(value)
		case string(field) == "retry":
			if ms, err := strconv.ParseUint(string(value), 10, 31); err == nil {
				e.retry = time.Duration(ms) * time.Millisecond
			}
		}
	}
}

// control reports whether no header can hold r.
func control(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }

// lines reads a stream line by line.
type lines struct {
	from    io.Reader
	limit   int64  // bytes of a line
	room    []byte // what was read and not handed on stands in room[at:end]
	at, end int
	err     error // what comes behind that
}

const (
	smallRoom = 4 << 10   // for a stream that lasts, and says little
	mostRoom  = 256 << 10 // that is kept for what comes later
)

// rooms are for streams that end with an answer.
var rooms = sync.Pool{New: func() any { return new(make([]byte, 16<<10)) }}

// next returns the next line without its end. It is good until the next one.
func (l *lines) next() ([]byte, error) {
	for looked := 0; ; {
		have := l.room[l.at:l.end]
		if i := bytes.IndexByte(have[looked:], '\n'); i >= 0 {
			line := have[:looked+i]
			end := len(line) + 1
			if line = bytes.TrimSuffix(line, []byte("\r")); int64(len(line)) > l.limit {
				return nil, errTooBig
			}
			l.at += end
			return line, nil
		}
		if looked = len(have); int64(looked) > l.limit+1 {
			return nil, errTooBig
		}
		if l.err != nil {
			return nil, l.err
		}
		l.more()
	}
}

// skip reads on to the end of the line for which next said errTooBig, and returns how
// long it is and what stands at its beginning and at its end. Of one that is longer
// than most it returns errTooBig.
func (l *lines) skip(most int64) (head, tail []byte, size int64, err error) {
	head, _, _ = bytes.Cut(l.room[l.at:min(l.end, l.at+maxEdge)], []byte("\n"))
	head = bytes.Clone(head)
	for {
		have := l.room[l.at:l.end]
		i := bytes.IndexByte(have, '\n')
		if i >= 0 {
			have = have[:i]
		}
		size += int64(len(have))
		tail = append(tail, have[max(0, len(have)-maxEdge):]...)
		tail = append(tail[:0], tail[max(0, len(tail)-maxEdge):]...)
		l.at += len(have)
		switch {
		case i >= 0:
			l.at++
			return head, tail, size, nil
		case size > most:
			return nil, nil, size, errTooBig
		case l.err != nil:
			return nil, nil, size, l.err
		}
		l.more()
	}
}

// maxEdge is how much of a line that is too long is looked at, from either end.
const maxEdge = 4 << 10

// more reads once, and makes room for it before.
func (l *lines) more() {
	have := l.room[l.at:l.end]
	switch {
	case len(have) == 0 && len(l.room) > mostRoom, l.room == nil:
		l.room = make([]byte, smallRoom)
		l.at, l.end = 0, 0
	case len(have) == 0:
		l.at, l.end = 0, 0
	case l.end < len(l.room):
	case len(have) <= len(l.room)/2:
		l.at, l.end = 0, copy(l.room, have)
	default:
		l.room = make([]byte, 2*len(l.room))
		l.at, l.end = 0, copy(l.room, have)
	}
	for range 100 {
		var n int
		n, l.err = l.from.Read(l.room[l.end:])
		if l.end += n; n > 0 || l.err != nil {
			return
		}
	}
	l.err = io.ErrNoProgress
}

// readBody reads a whole body of at most limit bytes; hint is its length where
// that is known.
func readBody(body io.Reader, hint, limit int64) ([]byte, error) {
	if hint > limit {
		return nil, errTooBig
	}
	if hint > 0 {
		b := make([]byte, hint+1)
		n, err := io.ReadFull(body, b)
		switch {
		case err == nil:
			return nil, errTooBig // for what it says
		case err == io.ErrUnexpectedEOF && int64(n) == hint:
			return b[:n:n], nil
		}
		return nil, err
	}
	var b bytes.Buffer
	_, err := b.ReadFrom(&capped{r: body, left: limit})
	return b.Bytes(), err
}

// capped fails once more than left bytes were read: unlike io.LimitReader it
// never passes a cut-off body for a whole one. With every, left is full again after
// each such time.
type capped struct {
	r          io.Reader
	left, full int64
	every      time.Duration
	since      time.Time
}

func (c *capped) Read(p []byte) (int, error) {
	if c.every > 0 && time.Since(c.since) > c.every {
		c.left, c.since = c.full, time.Now()
	}
	if int64(len(p)) > c.left+1 {
		p = p[:c.left+1]
	}
	n, err := c.r.Read(p)
	if c.left -= int64(n); c.left < 0 {
		return n - 1, errTooBig
	}
	return n, err
}
