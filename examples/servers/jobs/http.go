package jobs

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// revision is the one that the server speaks.
const revision = "2026-07-28"

// A fault is an error as JSON-RPC has it, and the status that HTTP gets.
type fault struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
	Data    any    `json:"data,omitempty"`
	status  int
}

func (f *fault) Error() string { return f.Message }

var errNoTask = &fault{Code: -32602, Message: "no such task", status: 200}

func badParams(why string) *fault { return &fault{Code: -32602, Message: why, status: 200} }

// missing says what a client would have to be able to do.
func missing(capabilities object) *fault {
	return &fault{Code: -32021, Message: "the client lacks a capability that this needs", status: 400,
		Data: object{"requiredCapabilities": capabilities}}
}

// params are those of every method that we know.
type params struct {
	call
	TaskID string `json:"taskId"`
	Meta   struct {
		Version string `json:"io.modelcontextprotocol/protocolVersion"`
		Caps    *struct {
			Elicitation json.RawMessage
			Extensions  map[string]json.RawMessage
		} `json:"io.modelcontextprotocol/clientCapabilities"`
	} `json:"_meta"`
}

// Handler serves the protocol on every path.
func Handler(c Config) http.Handler {
	j := newJobs(c)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", "POST")
			http.Error(w, "only POST", http.StatusMethodNotAllowed)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil {
			http.Error(w, "the body is too large", http.StatusRequestEntityTooLarge)
			return
		}
		var in struct {
			ID     json.RawMessage
			Method string
			Params json.RawMessage
		}
		out := object{"jsonrpc": "2.0"}
		status := http.StatusOK
		var result object
		if err = json.Unmarshal(body, &in); err != nil || in.Method == "" {
			err = &fault{Code: -32700, Message: "not JSON-RPC", status: 400}
		} else if in.ID == nil {
			w.WriteHeader(http.StatusAccepted)
			return
		} else {
			out["id"] = in.ID
			result, err = j.handle(r, in.Method, in.Params)
		}
		var f *fault
		switch {
		case errors.As(err, &f):
			out["error"] = f
			status = f.status
		case err != nil:
			out["error"] = &fault{Code: -32603, Message: err.Error()}
		default:
			result["_meta"] = object{"io.modelcontextprotocol/serverInfo": object{"name": "jobs", "version": j.Version}}
			out["result"] = result
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(out)
	})
}

// handle answers one request.
func (j *jobs) handle(r *http.Request, method string, raw json.RawMessage) (object, error) {
	if v := r.Header.Get("MCP-Protocol-Version"); v != revision {
		return nil, &fault{Code: -32022, Message: "unsupported protocol version", status: 400,
			Data: object{"supported": []string{revision}, "requested": v}}
	}
	var p params
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &p); err != nil {
			return nil, &fault{Code: -32602, Message: "params: " + err.Error(), status: 400}
		}
	}
	if err := mirrored(r.Header, method, p); err != nil {
		return nil, err
	}
	if p.Meta.Version != revision || p.Meta.Caps == nil {
		return nil, &fault{Code: -32602, Message: "_meta lacks the protocol's version or the client's capabilities", status: 400}
	}
	_, p.tasks = p.Meta.Caps.Extensions[extension]
	switch method {
	case "server/discover":
		return object{
			"resultType": "complete", "supportedVersions": []string{revision}, "ttlMs": 0, "cacheScope": "private",
			"capabilities": object{"tools": object{}, "extensions": object{extension: object{}}},
		}, nil
	case "tools/list":
		var all []object
		for _, t := range tools {
			all = append(all, t.shown())
		}
		return object{"resultType": "complete", "tools": all, "ttlMs": 0, "cacheScope": "private"}, nil
	case "tools/call":
		for _, t := range tools {
			if t.name != p.Name {
				continue
			}
			if t.must && !p.tasks {
				return nil, missing(object{"extensions": object{extension: object{}}})
			}
			if t.asks && p.Meta.Caps.Elicitation == nil {
				return nil, missing(object{"elicitation": object{}})
			}
			return t.call(r.Context(), j, p.call)
		}
		return nil, badParams(fmt.Sprintf("unknown tool %q", p.Name))
	case "tasks/get", "tasks/update", "tasks/cancel":
		if !p.tasks {
			return nil, missing(object{"extensions": object{extension: object{}}})
		}
	}
	switch method {
	case "tasks/get":
		return j.get(p.TaskID)
	case "tasks/update":
		return j.update(p.TaskID, p.InputResponses)
	case "tasks/cancel":
		return j.cancel(p.TaskID)
	}
	return nil, &fault{Code: -32601, Message: fmt.Sprintf("unknown method %q", method), status: 404}
}

// mirrored checks the headers that say again what the body says (SEP-2243).
func mirrored(h http.Header, method string, p params) error {
	name := ""
	switch method {
	case "tools/call":
		name = p.Name
	case "tasks/get", "tasks/update", "tasks/cancel":
		name = p.TaskID
	}
	said := strings.TrimSpace(h.Get("Mcp-Name"))
	if inner, ok := strings.CutPrefix(said, "=?base64?"); ok {
		if b, err := base64.StdEncoding.DecodeString(strings.TrimSuffix(inner, "?=")); err == nil {
			said = string(b)
		}
	}
	if strings.TrimSpace(h.Get("Mcp-Method")) != method || said != name {
		return &fault{Code: -32020, Message: "a header does not say what the body says", status: 400}
	}
	return nil
}
