package servers

import (
	"bytes"
	"context"
	"encoding/json"
	"regexp"

	"github.com/go-json-experiment/json/jsontext"

	"toolbroker/gateway"
)

// maxSkipped bounds what is read of one line that is too long, and of all within a
// minute that answer nobody.
const maxSkipped = 256 << 20

// tooLong is the answer to a request of a server's that is too long to be read.
var tooLong = gateway.Result{Error: json.RawMessage(`{"code":-32600,"message":"the request is longer than is read here"}`)}

// skipped deals with a message that was too long to be kept, by what stands at its
// beginning and end: the call that it answers fails, and no other does.
func (d *desk) skipped(head, tail []byte, size int64, respond func(context.Context, []byte) error) error {
	if line := bytes.TrimLeft(head, " \t\r"); len(line) == 0 || line[0] != '{' {
		return d.wasted(size) // no message
	}
	id, method, answers := edges(head, tail)
	d.s.log.Debug("a message is longer than max_response", "server", d.s.Name, "bytes", size, "answer", answers)
	switch {
	case method && id != nil:
		ctx, cancel := context.WithTimeout(context.Background(), goodbye)
		defer cancel()
		_ = respond(ctx, reply(id, tooLong))
		return d.wasted(size)
	case method:
		return d.wasted(size)
	case !answers || id == nil:
		return errTooBig // nobody knows whose it is
	}
	d.mu.Lock()
	n := numberOf(id)
	w, known := d.waiting[n], d.first != 0 && n >= d.first && n <= d.last
	delete(d.waiting, n)
	d.mu.Unlock()
	switch {
	case !known:
		return errUnasked
	case w == nil: // its caller is gone
		return d.wasted(size)
	}
	w.answer <- message{tooLong: true}
	return nil
}

// wasted counts what was skipped and answered nobody.
func (d *desk) wasted(size int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.ignored(0); err != nil { // begins a new minute
		return err
	}
	if d.waste += size; d.waste > maxSkipped {
		return errNoise
	}
	return nil
}

// atTheEnd is what stands at the end of an answer that says there which it is. In JSON
// the brace that is last closes the message, so that what is before it is its own.
var atTheEnd = regexp.MustCompile(`\}\s*,\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*("[^"\\]*"|[0-9]+)\s*(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\s*$`)

// edges reads what it can of a message's beginning and end: its id, and whether it is
// a request or notification, or an answer.
func edges(head, tail []byte) (id json.RawMessage, method, answers bool) {
	d := jsontext.NewDecoder(bytes.NewReader(head))
	if _, err := d.ReadToken(); err != nil {
		return nil, false, false
	}
	for d.PeekKind() == '"' {
		name, err := d.ReadToken()
		if err != nil {
			break
		}
		key := name.String()
		method = method || key == "method"
		answers = answers || key == "result" || key == "error"
		value, err := d.ReadValue()
		if err != nil {
			break // it goes on where nobody looked
		}
		if key == "id" {
			id = json.RawMessage(value.Clone())
		}
	}
	if found := atTheEnd.FindSubmatch(tail); id == nil && found != nil {
		id = json.RawMessage(bytes.Clone(found[1]))
	}
	return id, method, answers && !method
}
