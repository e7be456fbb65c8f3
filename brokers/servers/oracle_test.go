package servers

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"toolbroker/gateway"
)

// How replies were read before they were read in one pass: slowly, with jsontext
// and encoding/json, part by part. What is read now is held to it.
type slow struct{ space string }

func slowMembers(object []byte) ([]member, error) {
	d := jsontext.NewDecoder(bytes.NewBuffer(object)) // decodes in place, so that values alias object
	if t, err := d.ReadToken(); err != nil || t.Kind() != '{' {
		return nil, errRubbish
	}
	var all []member
	for d.PeekKind() != '}' {
		name, err := d.ReadToken()
		if err != nil {
			return nil, errRubbish
		}
		m := member{name: name.String()}
		// The name as written is behind the offset; its start is found from its
		// last quote, as no name holds an unescaped one.
		end := int(d.InputOffset())
		m.start = slowOpeningQuote(object, end)
		value, err := d.ReadValue()
		if err != nil {
			return nil, errRubbish
		}
		m.end = int(d.InputOffset())
		m.at = m.end - len(value)
		m.value = object[m.at:m.end:m.end]
		all = append(all, m)
	}
	if _, err := d.ReadToken(); err != nil {
		return nil, errRubbish
	}
	if _, err := d.ReadToken(); err != io.EOF {
		return nil, errRubbish
	}
	return all, nil
}

func slowElements(array []byte) ([]member, error) {
	d := jsontext.NewDecoder(bytes.NewBuffer(array))
	if t, err := d.ReadToken(); err != nil || t.Kind() != '[' {
		return nil, errRubbish
	}
	var all []member
	for d.PeekKind() != ']' {
		value, err := d.ReadValue()
		if err != nil {
			return nil, errRubbish
		}
		end := int(d.InputOffset())
		at := end - len(value)
		all = append(all, member{start: at, end: end, at: at, value: array[at:end:end]})
	}
	if _, err := d.ReadToken(); err != nil {
		return nil, errRubbish
	}
	return all, nil
}

func slowOpeningQuote(b []byte, end int) int {
	for i := end - 2; i >= 0; i-- {
		if b[i] != '"' {
			continue
		}
		slashes := 0
		for j := i - 1; j >= 0 && b[j] == '\\'; j-- {
			slashes++
		}
		if slashes%2 == 0 {
			return i
		}
	}
	return 0
}

func slowScrub(raw json.RawMessage, where string) json.RawMessage {
	// Nearly nothing has one; an escape may hide one.
	if !bytes.Contains(raw, []byte("toolbroker")) && !bytes.Contains(raw, []byte(`\u`)) {
		return raw
	}
	all, err := slowMembers(raw)
	if err != nil {
		return raw
	}
	for _, m := range all {
		if m.name != where || jsontext.Value(m.value).Kind() != '{' {
			continue
		}
		inner, err := slowMembers(m.value)
		if err != nil {
			return raw
		}
		var kept [][]byte
		for _, k := range inner {
			if !strings.HasPrefix(k.name, ours) {
				kept = append(kept, m.value[k.start:k.end])
			}
		}
		if len(kept) == len(inner) {
			return raw
		}
		return slices.Concat(raw[:m.at], []byte("{"), bytes.Join(kept, []byte(",")), []byte("}"), raw[m.end:])
	}
	return raw
}

func slowDepth(raw []byte) int {
	most := 0
	d := jsontext.NewDecoder(bytes.NewReader(raw), jsontext.AllowDuplicateNames(true))
	for {
		if _, err := d.ReadToken(); err != nil {
			return most
		}
		most = max(most, d.StackDepth())
	}
}

func slowParse(frame []byte) (message, error) {
	all, err := slowMembers(frame)
	if err != nil {
		return message{}, err
	}
	var m message
	var version, hasMethod bool
	for _, f := range all {
		kind := jsontext.Value(f.value).Kind()
		switch f.name {
		case "jsonrpc":
			version = string(f.value) == `"2.0"`
		case "id":
			if kind != '"' && kind != '0' && kind != 'n' {
				return message{}, errRubbish
			}
			m.id = f.value
		case "method":
			if kind != '"' {
				return message{}, errRubbish
			}
			name, err := jsontext.AppendUnquote(nil, f.value)
			if err != nil || len(name) == 0 {
				return message{}, errRubbish
			}
			m.method, hasMethod = string(name), true
		case "params":
			m.params = f.value
		case "result":
			if kind != '{' {
				return message{}, errRubbish
			}
			m.result = f.value
		case "error":
			if !slowValidFault(f.value) {
				return message{}, errRubbish
			}
			m.fault = f.value
		}
	}
	answers := 0
	for _, part := range []json.RawMessage{m.result, m.fault} {
		if part != nil {
			answers++
		}
	}
	if !version || hasMethod == (answers > 0) || answers > 1 || answers == 1 && m.id == nil {
		return message{}, errRubbish
	}
	return m, nil
}

func slowValidFault(raw json.RawMessage) bool {
	all, err := slowMembers(raw)
	if err != nil {
		return false
	}
	var code, words bool
	for _, f := range all {
		switch f.name {
		case "code":
			_, err := strconv.ParseInt(string(f.value), 10, 64)
			code = err == nil
		case "message":
			words = jsontext.Value(f.value).Kind() == '"'
		}
	}
	return code && words
}

func slowFinished(f gateway.Forward, e era, result json.RawMessage) (string, error) {
	all, err := slowMembers(result)
	if err != nil {
		return "", err
	}
	if slowDepth(result) > maxResultDepth {
		return "", unusable("the server's answer is nested too deep")
	}
	has := func(name string) jsontext.Value { return slowValueOf(all, name) }
	is := gateway.ResultComplete
	if v := has("resultType"); v != nil {
		var ok bool
		if is, ok = word(json.RawMessage(v)); !ok {
			return "", errRubbish
		}
	}
	asks := f.Method == gateway.MethodCall || f.Method == gateway.MethodGet || f.Method == gateway.MethodRead || f.Method == ""
	switch is {
	case gateway.ResultComplete:
		return is, slowComplete(f.Method, has)
	case gateway.ResultInput:
		switch {
		case e != modernEra || !asks:
			return "", unusable("the server answered with a result of type input_required, which it cannot")
		case has("inputRequests") == nil && has("requestState") == nil,
			has("inputRequests") != nil && has("inputRequests").Kind() != '{',
			has("requestState") != nil && has("requestState").Kind() != '"':
			return "", unusable("the server asks for input, but not so that anyone could give it")
		}
	case gateway.ResultTask:
		id, _ := word(json.RawMessage(has("taskId")))
		switch {
		case e != modernEra || f.Method != gateway.MethodCall && f.Method != "" || !takesTasks(f.Caps):
			return "", unusable("the server answered with a result of type task, which nobody can take")
		case id == "" || len(id) > maxRemote:
			return "", unusable("the server answered with a task that has no usable id")
		}
	default:
		return "", unusable("the server answered with a result of a type that is not supported")
	}
	return is, nil
}

func slowValueOf(all []member, name string) jsontext.Value {
	for _, m := range all {
		if m.name == name {
			return jsontext.Value(m.value)
		}
	}
	return nil
}

func slowComplete(method string, has func(string) jsontext.Value) error {
	switch method {
	case gateway.MethodCall, "":
		if v := has("content"); v != nil && !slowBlocks(v) {
			return unusable("the content of the server's answer is not a list of blocks")
		}
		if v := has("isError"); v != nil && v.Kind() != 't' && v.Kind() != 'f' {
			return unusable("isError in the server's answer is neither true nor false")
		}
		if has("task") != nil && has("content") == nil {
			return unusable("the server answered with a task, which is not supported")
		}
	case gateway.MethodRead:
		return slowList(has("contents"), "contents")
	case gateway.MethodGet:
		return slowList(has("messages"), "messages")
	case gateway.MethodComplete:
		if has("completion").Kind() != '{' {
			return unusable("the server's answer holds no completion")
		}
	case gateway.MethodTaskGet:
		if has("status").Kind() != '"' {
			return unusable("the server's answer about a task holds no status")
		}
		if v := has("result"); v != nil && v.Kind() == '{' {
			all, err := slowMembers(v)
			if err != nil {
				return err
			}
			return slowComplete(gateway.MethodCall, func(name string) jsontext.Value { return slowValueOf(all, name) })
		}
	}
	return nil
}

func slowList(v jsontext.Value, what string) error {
	all, err := slowElements(v)
	if err != nil {
		return unusable("the " + what + " of the server's answer are not a list")
	}
	for _, m := range all {
		if jsontext.Value(m.value).Kind() != '{' {
			return unusable("the " + what + " of the server's answer are not a list of objects")
		}
	}
	return nil
}

func slowBlocks(v jsontext.Value) bool {
	var all []struct {
		Type *string `json:"type"`
	}
	if v.Kind() != '[' || json.Unmarshal(v, &all) != nil {
		return false
	}
	for _, b := range all {
		if b.Type == nil {
			return false
		}
	}
	return true
}

func (s slow) rename(result json.RawMessage) json.RawMessage {
	if s.space == "" || !bytes.Contains(result, []byte("uri")) && !bytes.Contains(result, []byte(`\u`)) {
		return result
	}
	r := slowRenamer{space: s.space}
	r.result(result, 0)
	return r.apply(result)
}

func (r *slowRenamer) apply(raw json.RawMessage) json.RawMessage {
	if len(r.edits) == 0 {
		return raw
	}
	slices.SortFunc(r.edits, func(a, b edit) int { return a.at - b.at })
	out := make([]byte, 0, len(raw)+len(r.edits)*len(r.space))
	last := 0
	for _, e := range r.edits {
		out = append(append(out, raw[last:e.at]...), e.with...)
		last = e.end
	}
	return append(out, raw[last:]...)
}

func (s slow) renameFault(fault json.RawMessage) json.RawMessage {
	if s.space == "" {
		return fault
	}
	r := slowRenamer{space: s.space}
	slowInside(fault, 0, "data", r.uri)
	return r.apply(fault)
}

func slowInside(object []byte, base int, name string, f func([]byte, int)) {
	all, _ := slowMembers(object)
	for _, m := range all {
		if m.name == name {
			f(m.value, base+m.at)
		}
	}
}

func (r *slowRenamer) result(object []byte, base int) {
	all, _ := slowMembers(object)
	for _, m := range all {
		switch at := base + m.at; m.name {
		case "contents":
			slowEach(m.value, at, r.uri)
		case "content":
			r.blocks(m.value, at)
		case "messages":
			slowEach(m.value, at, func(message []byte, at int) { slowInside(message, at, "content", r.blocks) })
		case "result":
			if jsontext.Value(m.value).Kind() == '{' {
				r.result(m.value, at)
			}
		}
	}
}

func (r *slowRenamer) blocks(value []byte, base int) {
	if jsontext.Value(value).Kind() == '[' {
		slowEach(value, base, r.block)
	} else {
		r.block(value, base)
	}
}

func (r *slowRenamer) block(block []byte, base int) {
	all, _ := slowMembers(block)
	for _, m := range all {
		if m.name != "type" {
			continue
		}
		switch kind, _ := word(m.value); kind {
		case "resource_link":
			r.uri(block, base)
		case "resource":
			slowInside(block, base, "resource", r.uri)
		}
	}
}

func (r *slowRenamer) uri(object []byte, base int) { r.member(object, base, "uri") }

func (r *slowRenamer) member(object []byte, base int, name string) {
	all, _ := slowMembers(object)
	for _, m := range all {
		if uri, ok := word(m.value); ok && m.name == name {
			if quoted, err := jsontext.AppendQuote(nil, r.space+uri); err == nil {
				r.edits = append(r.edits, edit{base + m.at, base + m.end, quoted})
			}
		}
	}
}

func slowEach(array []byte, base int, f func([]byte, int)) {
	all, _ := slowElements(array)
	for _, m := range all {
		f(m.value, base+m.at)
	}
}

func (s slow) answer(f gateway.Forward, e era, m message) (gateway.Result, error) {
	if m.fault != nil {
		return gateway.Result{Error: s.renameFault(slowScrub(m.fault, "data"))}, nil
	}
	is, err := slowFinished(f, e, m.result)
	if err != nil {
		return gateway.Result{}, err
	}
	return gateway.Result{Type: is, Raw: s.rename(slowScrub(m.result, "_meta"))}, nil
}

type slowRenamer struct {
	space string
	edits []edit
}

func slowAnswer(space string, f gateway.Forward, e era, id int64, data []byte) (gateway.Result, error) {
	m, err := slowParse(data)
	if err == nil {
		err = isAnswer(id, m)
	}
	if err != nil {
		return gateway.Result{}, err
	}
	return slow{space}.answer(f, e, m)
}

type slowEvents events

// read gives each event's data to f, until f says that it is done or returns an
// error. A server that floods is cut off.
func (e *slowEvents) read(body io.Reader, f func(data []byte) (done bool, err error)) error {
	most := cmp.Or(e.most, 2*e.limit+4096)
	r := bufio.NewReader(&slowCapped{r: body, left: most, full: most, every: e.every, since: time.Now()})
	var data []byte
	var some bool
	id, name := "", ""
	for first := true; ; first = false {
		line, err := slowReadLine(r, e.limit+16)
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

// slowReadLine reads up to a line feed, and returns the line without its end. The
// line is good until the next read.
func slowReadLine(r *bufio.Reader, limit int64) ([]byte, error) {
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

type slowCapped capped

func (c *slowCapped) Read(p []byte) (int, error) {
	if int64(len(p)) > c.left+1 {
		p = p[:c.left+1]
	}
	n, err := c.r.Read(p)
	if c.left -= int64(n); c.left < 0 {
		return 0, errTooBig
	}
	return n, err
}
