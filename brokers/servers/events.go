package servers

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"io"
	"strconv"
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
	r := bufio.NewReader(&capped{r: body, left: most, full: most, every: e.every, since: time.Now()})
	var data []byte
	var some bool
	id, name := "", ""
	for first := true; ; first = false {
		line, err := readLine(r, e.limit+16)
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
		case string(field) == "id" && len(value) <= maxSession && !bytes.ContainsRune(value, 0):
			id = string(value)
		case string(field) == "retry":
			if ms, err := strconv.ParseUint(string(value), 10, 31); err == nil {
				e.retry = time.Duration(ms) * time.Millisecond
			}
		}
	}
}

// readLine reads up to a line feed, and returns the line without its end. The
// line is good until the next read.
func readLine(r *bufio.Reader, limit int64) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if err == bufio.ErrBufferFull {
		long := bytes.Clone(line)
		for err == bufio.ErrBufferFull {
			if int64(len(long)) > limit {
				return nil, errTooBig
			}
			line, err = r.ReadSlice('\n')
			long = append(long, line...)
		}
		line = long
	}
	if err != nil {
		return nil, err
	}
	if line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r")); int64(len(line)) > limit {
		return nil, errTooBig
	}
	return line, nil
}

// readBody reads a whole body of at most limit bytes; hint is its length where
// that is known.
func readBody(body io.Reader, hint, limit int64) ([]byte, error) {
	if hint > limit {
		return nil, errTooBig
	}
	var b bytes.Buffer
	if hint > 0 {
		b.Grow(int(hint) + bytes.MinRead)
	}
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
		return 0, errTooBig
	}
	return n, err
}
