package servers

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"toolbroker/gateway"
)

// An answer over max_response fails its own call, which says so; the child, and what
// else it works on, go on.
func TestAnswersThatAreTooLong(t *testing.T) {
	c := self("c", "good")
	c.MaxResponse = 64 << 10
	s, _ := start(t, Config{Servers: []Server{c}})
	r, err := act(t, s, "c", "pid")
	pid := said(t, r, err)
	type answer struct {
		r   gateway.Result
		err error
	}
	for _, big := range []string{"big", "big at the end"} {
		other := make(chan answer, 1)
		go func() {
			r, err := act(t, s, "c", "later")
			other <- answer{r, err}
		}()
		d := deskOf(t, s)
		awaitWaiting(t, d, 1)
		if _, err := act(t, s, "c", big); !errors.Is(err, gateway.ErrTooLong) || errors.Is(err, gateway.ErrNotSent) || !strings.Contains(err.Error(), "max_response") {
			t.Errorf("%s: its call ended with %v", big, err)
		}
		r, err := act(t, s, "c", "now")
		said(t, r, err)
		if a := <-other; a.err != nil || said(t, a.r, a.err) != "later" {
			t.Errorf("%s: a call beside it ended with %v", big, a.err)
		}
	}
	r, err = act(t, s, "c", "big question")
	if got := said(t, r, err); !strings.HasPrefix(got, `{"jsonrpc":"2.0","id":"q1","error":{"code":-32600`) {
		t.Errorf("a question that is too long was answered %s", got)
	}
	r, err = act(t, s, "c", "big remark")
	said(t, r, err)
	if r, err := act(t, s, "c", "pid"); said(t, r, err) != pid {
		t.Error("the child was ended")
	}
}

// What answers nobody has an end.
func TestTooLongForNobody(t *testing.T) {
	d := newDesk(&server{Server: Server{MaxResponse: 1 << 20}})
	for range 4 {
		if err := d.wasted(maxSkipped / 4); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.wasted(1); !errors.Is(err, gateway.ErrBadAnswer) {
		t.Errorf("more in a minute: %v", err)
	}
	for name, c := range map[string]struct {
		in         string
		size       int64
		head, tail string
		err        error
	}{
		"short":    {"aaaaaaaaab\nnext\n", 10, "aaaaaaaaab", "aaaaaaaaab", nil},
		"long":     {"a" + strings.Repeat("x", 3*maxEdge) + "b\nnext\n", 3*maxEdge + 2, "a" + strings.Repeat("x", maxEdge-1), strings.Repeat("x", maxEdge-1) + "b", nil},
		"too long": {strings.Repeat("x", 5*maxEdge) + "\nnext\n", 0, "", "", errTooBig},
		"no end":   {strings.Repeat("x", 20), 0, "", "", io.EOF},
	} {
		for _, from := range []io.Reader{strings.NewReader(c.in), iotest.HalfReader(strings.NewReader(c.in))} {
			l := lines{from: from, limit: 8}
			if _, err := l.next(); err != errTooBig {
				t.Fatal(err)
			}
			head, tail, size, err := l.skip(4 * maxEdge)
			if err != c.err {
				t.Errorf("%s: %v", name, err)
			}
			if err != nil {
				continue
			}
			if size != c.size || !strings.HasPrefix(c.head, string(head)) || len(head) < 9 || string(tail) != c.tail {
				t.Errorf("%s: %d bytes, %.20q to %.20q", name, size, head, tail)
			}
			if next, err := l.next(); err != nil || string(next) != "next" {
				t.Errorf("%s: then %q %v", name, next, err)
			}
		}
	}
}

// Whose a message is that is not kept shows at its beginning or at its end, and nowhere
// inside it.
func TestTheEdgesOfAMessage(t *testing.T) {
	for _, c := range []struct {
		head, tail, id string
		method, answer bool
	}{
		{`{"jsonrpc":"2.0","id":7,"result":{"x":"aaa`, `aaa"}}`, "7", false, true},
		{`{"jsonrpc":"2.0","id":7,"error":{"x":"aaa`, `aaa"}}`, "7", false, true},
		{`{"result":{"x":"aaa`, `aaa"}, "jsonrpc":"2.0","id":7}`, "7", false, true},
		{`{"result":{"x":"aaa`, `aaa"},"id":7,"jsonrpc" : "2.0" } `, "7", false, true},
		{`{"result":{"x":"aaa`, `aaa"},"id":7}`, "7", false, true},
		{`{"result":{"x":"aaa`, `"x"},"id":7}}`, "", false, true}, // inside the result
		{`{"result":{"x":"aaa`, `}, \"id\":7}"}}`, "", false, true},
		{`{"method":"x","params":{"x":"aaa`, `aaa"},"jsonrpc":"2.0","id":"q"}`, `"q"`, true, false},
		{`{"jsonrpc":"2.0","id":7,"method":"x","params":{"x":"aaa`, `aaa"}}`, "7", true, false},
		{`{"jsonrpc":"2.0","method":"x","params":{"x":"aaa`, `aaa"}}`, "", true, false},
		{`{"result":{},"method":"x","params":{"x":"aaa`, `aaa"},"id":7}`, "7", true, false},
		{`{"x":"aaa`, `aaa","result":{},"id":7}`, "7", false, false}, // it may be a request
		{`{aaa`, ``, "", false, false},
	} {
		id, method, answer := edges([]byte(c.head), []byte(c.tail))
		if !bytes.Equal(id, []byte(c.id)) || method != c.method || answer != c.answer {
			t.Errorf("%s…%s is %s, method %v, answer %v", c.head, c.tail, id, method, answer)
		}
	}
}
