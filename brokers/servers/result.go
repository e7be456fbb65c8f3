package servers

import (
	"encoding/json"
	"strings"

	"toolbroker/gateway"
)

// maxResultDepth is far above what any tool answers and below what clients read.
const maxResultDepth = 256

// What a server asks an agent, or says beside its answers, is for people and models to
// read: it holds text and not data.
const (
	maxInputs = 32     // questions in an answer
	maxAsked  = 20_000 // JSON values in them, in a question during a call, a message beside the answer, or an error
)

// maxRemote bounds the id that a server gives a task of its own.
const maxRemote = 1024

// finished says what a result is, and refuses one that cannot be passed on: what
// no client could read, and what answers something else than was asked.
func finished(f gateway.Forward, e era, m message) (string, error) {
	t := &m.tree
	if t.nodes[m.at].deep > maxResultDepth {
		return "", unusable("the server's answer is nested too deep")
	}
	if i := t.find(m.at, "inputRequests"); i != 0 && !askable(t.value(i)) {
		return "", unusable("the server asks for more input than anyone could give")
	}
	// kind is of a member of the result; zero where there is none.
	kind := func(name string) byte {
		if i := t.find(m.at, name); i != 0 {
			return t.kind(i)
		}
		return 0
	}
	is := gateway.ResultComplete
	if i := t.find(m.at, "resultType"); i != 0 && !t.says(i, is) {
		var ok bool
		if is, ok = t.word(i); !ok {
			return "", errRubbish
		}
	}
	asks := f.Method == gateway.MethodCall || f.Method == gateway.MethodGet || f.Method == gateway.MethodRead || f.Method == ""
	switch is {
	case gateway.ResultComplete:
		return is, complete(f.Method, m, kind)
	case gateway.ResultInput:
		requests, state := kind("inputRequests"), kind("requestState")
		switch {
		case e != modernEra || !asks:
			return "", unusable("the server answered with a result of type input_required, which it cannot")
		case requests == 0 && state == 0, requests != 0 && requests != '{', state != 0 && state != '"':
			return "", unusable("the server asks for input, but not so that anyone could give it")
		}
	case gateway.ResultTask:
		id := ""
		if i := t.find(m.at, "taskId"); i != 0 {
			id, _ = t.word(i)
		}
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

// askable reports whether what a server needs answered is as much as anyone reads.
func askable(requests json.RawMessage) bool {
	if !few(requests, maxAsked) {
		return false
	}
	all, err := members(requests)
	return err != nil || len(all) <= maxInputs // what is no object is refused elsewhere
}

// complete checks what every client reads of a final answer.
func complete(method string, m message, kind func(string) byte) error {
	switch method {
	case gateway.MethodCall, "":
		content := m.tree.find(m.at, "content")
		if content != 0 && !m.tree.blocks(content) {
			return unusable("the content of the server's answer is not a list of blocks")
		}
		if k := kind("isError"); k != 0 && k != 't' && k != 'f' {
			return unusable("isError in the server's answer is neither true nor false")
		}
		if content == 0 && kind("task") != 0 {
			return unusable("the server answered with a task, which is not supported")
		}
	case gateway.MethodRead:
		return m.list("contents")
	case gateway.MethodGet:
		return m.list("messages")
	case gateway.MethodComplete:
		if kind("completion") != '{' {
			return unusable("the server's answer holds no completion")
		}
	case gateway.MethodTaskGet:
		if kind("status") != '"' {
			return unusable("the server's answer about a task holds no status")
		}
		if i := m.tree.find(m.at, "result"); i != 0 && m.tree.kind(i) == '{' { // what its call comes to
			m.at = i
			return complete(gateway.MethodCall, m, func(name string) byte {
				if i := m.tree.find(m.at, name); i != 0 {
					return m.tree.kind(i)
				}
				return 0
			})
		}
	}
	return nil
}

// list refuses a result that does not hold a list of objects of that name.
func (m *message) list(name string) error {
	i := m.tree.find(m.at, name)
	if i == 0 || m.tree.kind(i) != '[' {
		return unusable("the " + name + " of the server's answer are not a list")
	}
	for part := range m.tree.inside(i, '[') {
		if m.tree.kind(part) != '{' {
			return unusable("the " + name + " of the server's answer are not a list of objects")
		}
	}
	return nil
}

// blocks reports whether i is a list of objects that each name their type. Some
// clients read a name in any case, so that the last such member must be a string
// and no other may be anything but a string or null.
func (t *tree) blocks(i int) bool {
	if t.kind(i) != '[' {
		return false
	}
	for block := range t.inside(i, '[') {
		if t.kind(block) != '{' {
			return false
		}
		typed := false
		for m := range t.inside(block, '{') {
			if name := t.name(m); len(name) != 4 || !strings.EqualFold(string(name), "type") {
				continue
			}
			if typed = t.kind(m) == '"'; !typed && t.kind(m) != 'n' {
				return false
			}
		}
		if !typed {
			return false
		}
	}
	return true
}

// takesTasks reports whether the agent takes a handle of the MCP tasks extension.
func takesTasks(caps json.RawMessage) bool {
	var body struct {
		Extensions map[string]json.RawMessage `json:"extensions"`
	}
	return len(caps) > 0 && json.Unmarshal(caps, &body) == nil && body.Extensions["io.modelcontextprotocol/tasks"] != nil
}
