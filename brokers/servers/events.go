package servers

import (
	"bufio"
	"bytes"
	"errors"
	"io"
)

var errStreamEnded = errors.New("the server ended its reply before the answer")

// readEvents reads a stream of server-sent events and gives each one's data to
// f, until f says that it is done or returns an error. It takes no data bigger
// than limit, and twice as much in all: a server that floods is cut off.
func readEvents(body io.Reader, limit int64, f func(data []byte) (done bool, err error)) error {
	r := bufio.NewReader(&capped{body, 2*limit + 4096})
	var data []byte
	var some bool
	for first := true; ; first = false {
		line, err := readLine(r, limit+16)
		if first {
			line = bytes.TrimPrefix(line, []byte("\ufeff"))
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		switch {
		case err == io.EOF:
			return errStreamEnded // an event without the empty line behind it does not count
		case err != nil:
			return err
		case len(line) == 0 && some:
			if done, err := f(data); done || err != nil {
				return err
			}
			// What f was given is its own now.
			data, some = nil, false
		case string(field) == "data":
			if some {
				data = append(data, '\n')
			}
			data, some = append(data, bytes.TrimPrefix(value, []byte(" "))...), true
			if int64(len(data)) > limit {
				return errTooBig
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
	_, err := b.ReadFrom(&capped{body, limit})
	return b.Bytes(), err
}

// capped fails once more than left bytes were read: unlike io.LimitReader it
// never passes a cut-off body for a whole one.
type capped struct {
	r    io.Reader
	left int64
}

func (c *capped) Read(p []byte) (int, error) {
	if int64(len(p)) > c.left+1 {
		p = p[:c.left+1]
	}
	n, err := c.r.Read(p)
	if c.left -= int64(n); c.left < 0 {
		return 0, errTooBig
	}
	return n, err
}
