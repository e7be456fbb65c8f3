package servers

import (
	"encoding/json"

	"github.com/go-json-experiment/json/jsontext"

	"toolbroker/gateway"
)

// maxResultDepth is far above what any tool answers and below what clients read.
const maxResultDepth = 256

// maxRemote bounds the id that a server gives a task of its own.
const maxRemote = 1024

// finished says what a result is, and refuses one that cannot be passed on: what
// no client could read, and what answers something else than was asked.
func finished(f gateway.Forward, e era, result json.RawMessage) (string, error) {
	all, err := members(result)
	if err != nil {
		return "", err
	}
	if depth(result) > maxResultDepth {
		return "", unusable("the server's answer is nested too deep")
	}
	has := func(name string) jsontext.Value { return valueOf(all, name) }
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
		return is, complete(f.Method, has)
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

// valueOf returns the value of one of an object's members, or nil.
func valueOf(all []member, name string) jsontext.Value {
	for _, m := range all {
		if m.name == name {
			return jsontext.Value(m.value)
		}
	}
	return nil
}

// complete checks what every client reads of a final answer.
func complete(method string, has func(string) jsontext.Value) error {
	switch method {
	case gateway.MethodCall, "":
		if v := has("content"); v != nil && !blocks(v) {
			return unusable("the content of the server's answer is not a list of blocks")
		}
		if v := has("isError"); v != nil && v.Kind() != 't' && v.Kind() != 'f' {
			return unusable("isError in the server's answer is neither true nor false")
		}
		if has("task") != nil && has("content") == nil {
			return unusable("the server answered with a task, which is not supported")
		}
	case gateway.MethodRead:
		return list(has("contents"), "contents")
	case gateway.MethodGet:
		return list(has("messages"), "messages")
	case gateway.MethodComplete:
		if has("completion").Kind() != '{' {
			return unusable("the server's answer holds no completion")
		}
	case gateway.MethodTaskGet:
		if has("status").Kind() != '"' {
			return unusable("the server's answer about a task holds no status")
		}
	}
	return nil
}

// list refuses what is not a list of objects.
func list(v jsontext.Value, what string) error {
	all, err := elements(v)
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

// blocks reports whether v is a list of objects that each name their type.
func blocks(v jsontext.Value) bool {
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

// takesTasks reports whether the agent takes a handle of the MCP tasks extension.
func takesTasks(caps json.RawMessage) bool {
	var body struct {
		Extensions map[string]json.RawMessage `json:"extensions"`
	}
	return len(caps) > 0 && json.Unmarshal(caps, &body) == nil && body.Extensions["io.modelcontextprotocol/tasks"] != nil
}
