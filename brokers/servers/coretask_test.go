package servers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"toolbroker/gateway"
)

const (
	taskTools = `[{"name":"act","execution":{"taskSupport":"required"},"inputSchema":{"type":"object"}},` +
		`{"name":"maybe","inputSchema":{"type":"object"},"execution":{ "x":1,"taskSupport":"optional"}},` +
		`{"name":"tricky","inputSchema":{"type":"object"},"\u0065xecution":{"taskSupport":"required","y":2}},` +
		`{"name":"young","inputSchema":{"type":"object"},"execution":{"taskSupport":"required"},"outputSchema":{"type":"array"}},` +
		`{"name":"none","inputSchema":{"type":"object"},"execution":{"taskSupport":"required"},"outputSchema":{"type":["array"]}}]`
	taskCaps = `{"tools":{},"tasks":{"list":{},"cancel":{},"requests":{"tools":{"call":{}}}}}`
)

// A tasker is a server that runs its tool as a task.
type tasker struct {
	fake
	made   string                                                    // what its task is at first
	states []string                                                  // and at each look after that
	result func(w http.ResponseWriter, m fakeMessage) (reply string) // a result or an error

	mu     sync.Mutex
	calls  []string // params of tools/call
	looks  int
	done   chan string // params of tasks/cancel
	looked chan bool
}

func newTasker(t *testing.T, caps, made string, states ...string) (*tasker, string) {
	s := &tasker{made: made, states: states, done: make(chan string, 10), looked: make(chan bool, 100)}
	s.session, s.caps, s.tools = "s", caps, taskTools
	s.before = func(w http.ResponseWriter, _ *http.Request, m fakeMessage) bool {
		say := func(what string) {
			w.Header().Set("Content-Type", contentJSON)
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,%s}`, m.ID, what)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		switch m.Method {
		case "tools/call":
			s.calls = append(s.calls, string(m.Params))
			if !strings.Contains(string(m.Params), `"task":{}`) {
				say(`"result":{"content":[{"type":"text","text":"plain"}]}`)
				return true
			}
			say(`"result":` + s.made)
		case "tasks/get":
			if string(m.Params) != `{"taskId":"t\"1"}` {
				say(`"error":{"code":-32602,"message":"no such task"}`)
				return true
			}
			state := s.states[min(s.looks, len(s.states)-1)]
			s.looks++
			s.looked <- true
			if strings.HasPrefix(state, "HTTP ") {
				status, _ := strconv.Atoi(state[len("HTTP "):])
				w.WriteHeader(status)
				return true
			}
			say(state)
		case "tasks/result":
			if s.result == nil {
				say(`"result":{"content":[{"type":"text","text":"done"}],"_meta":{"io.modelcontextprotocol/related-task":{"taskId":"t\"1"},"kept": 1}}`)
			} else if reply := s.result(w, m); reply != "" {
				say(reply)
			}
		case "tasks/cancel":
			s.done <- string(m.Params)
			say(`"result":{}`)
		default:
			return false
		}
		return true
	}
	return s, s.serve(t)
}

func taskIs(status, more string) string {
	return `{"taskId":"t\"1","status":"` + status + `","ttl":null,"createdAt":"2026-11-25T10:00:00Z","lastUpdatedAt":"2026-11-25T10:00:00Z","pollInterval":1` + more + `}`
}

// A tool that its server runs as a task only is a tool like any other to an agent.
func TestCoreTasks(t *testing.T) {
	working := `"result":` + taskIs("working", "")
	for name, c := range map[string]struct {
		caps, made string
		states     []string
		result     string
		want, bad  string // what the answer holds, or how it fails
		cancelled  bool
	}{
		"it works, and is done": {taskCaps, `{"task":` + taskIs("working", "") + `}`, []string{working, `"result":` + taskIs("completed", "")}, "", `{"content":[{"type":"text","text":"done"}],"_meta":{"kept": 1}}`, "", false},
		"it is done at once":    {taskCaps, `{"task":` + taskIs("completed", "") + `}`, nil, "", `"done"`, "", false},
		"nothing but the task is in its _meta": {taskCaps, `{"task":` + taskIs("completed", "") + `}`, nil,
			`"result":{"content":[],"_meta":{"io.modelcontextprotocol/related-task":{"taskId":"x"}}}`, `{"content":[]}`, "", false},
		"it failed":                {taskCaps, `{"task":` + taskIs("failed", "") + `}`, nil, `"error":{"code":-5,"message":"disk full"}`, `{"code":-5,"message":"disk full"}`, "", false},
		"it failed, with a result": {taskCaps, `{"task":` + taskIs("failed", "") + `}`, nil, `"result":{"content":[],"isError":true}`, `{"content":[],"isError":true}`, "", false},
		"its server cancelled it":  {taskCaps, `{"task":` + taskIs("cancelled", "") + `}`, nil, "", `the server cancelled the task`, "", false},
		"no task is made":          {taskCaps, `{"content":[{"type":"text","text":"at once"}]}`, nil, "", `at once`, "", false},
		"a look is lost":           {taskCaps, `{"task":` + taskIs("working", "") + `}`, []string{"HTTP 503", "HTTP 503", `"result":` + taskIs("completed", "")}, "", `"done"`, "", false},
		"its server runs no tasks": {`{"tools":{},"tasks":{"requests":{"sampling":{}}}}`, "", nil, "", `plain`, "", false},
		"its tasks are no object":  {`{"tools":{},"tasks":7}`, "", nil, "", `plain`, "", false},
		"looks do not get through": {taskCaps, `{"task":` + taskIs("working", "") + `}`, []string{"HTTP 503"}, "", "", "HTTP 503", true},
		"its session is forgotten": {taskCaps, `{"task":` + taskIs("working", "") + `}`, []string{"HTTP 404"}, "", "", "HTTP 404", false},
		"its server forgot it":     {taskCaps, `{"task":` + taskIs("working", "") + `}`, []string{`"error":{"code":-32602,"message":"no such task"}`}, "", "", "says nothing of its task, with error -32602", true},
		"it cannot be read":        {taskCaps, `{"task":{"taskId":7}}`, nil, "", "", "cannot be read", false},
		"its state is none":        {taskCaps, `{"task":` + taskIs("working", "") + `}`, []string{`"result":` + taskIs("paused", "")}, "", "", "a state that nobody knows", true},
		"its result is none":       {taskCaps, `{"task":` + taskIs("completed", "") + `}`, nil, `"result":{"content":7}`, "", "not a list of blocks", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, url := newTasker(t, c.caps, c.made, c.states...)
			if c.result != "" {
				f.result = func(http.ResponseWriter, fakeMessage) string { return c.result }
			}
			s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: url, IdempotencyMeta: "key"}}})
			r, err := forward(t, s, "x__act", `{"a": 1e0}`)
			switch {
			case c.bad != "" && (err == nil || !strings.Contains(err.Error(), c.bad)):
				t.Errorf("%s %s, %v", r.Raw, r.Error, err)
			case c.bad == "" && (err != nil || !strings.Contains(string(r.Raw)+string(r.Error), c.want)):
				t.Errorf("%s %s, %v", r.Raw, r.Error, err)
			case err != nil && errors.Is(err, gateway.ErrNotSent):
				t.Error("it was sent")
			}
			if c.cancelled {
				if got := <-f.done; got != `{"taskId":"t\"1"}` {
					t.Errorf("cancelled is %s", got)
				}
			}
			if len(f.done) > 0 || len(f.calls) != 1 || !strings.Contains(f.calls[0], `"arguments":{"a": 1e0}`) || !strings.Contains(f.calls[0], `"key":`) {
				t.Errorf("%d cancelled; called by %s", len(f.done), f.calls)
			}
		})
	}
}

// Agents do not read that a tool is run as a task; what an admin accepts says it, and
// an optional one is called plainly.
func TestAgentsReadNothingOfTasks(t *testing.T) {
	_, url := newTasker(t, taskCaps, `{"task":`+taskIs("completed", "")+`}`)
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: url}}})
	want := map[string]string{ // agents of before 2026-07-28, and the others where that is something else
		"x__young":  `{"name":"x__young","inputSchema":{"type":"object"}}{"name":"x__young","inputSchema":{"type":"object"},"outputSchema":{"type":"array"}}`,
		"x__none":   `{"name":"x__none","inputSchema":{"type":"object"}}`,
		"x__act":    `{"name":"x__act","inputSchema":{"type":"object"}}`,
		"x__maybe":  `{"name":"x__maybe","inputSchema":{"type":"object"},"execution":{ "x":1}}`,
		"x__tricky": `{"name":"x__tricky","inputSchema":{"type":"object"},"\u0065xecution":{"y":2}}`,
	}
	for _, tool := range s.Offered("a", gateway.SortTool) {
		got := string(tool.Listed(false))
		if others := string(tool.Listed(true)); others != got {
			got += others
		}
		if got != want[tool.Alias] {
			t.Errorf("agents read %s", got)
		}
		delete(want, tool.Alias)
	}
	if len(want) > 0 {
		t.Errorf("%v are not there", want)
	}
	all, err := s.Definitions(t.Context(), "a")
	if err != nil || len(all) != 5 || !strings.Contains(string(all[0].Seen), `"taskSupport":"required"`) {
		t.Errorf("admins read %s, %v", all[0].Seen, err)
	}
	for alias, says := range map[string]string{"x__act": "done", "x__maybe": "plain", "x__tricky": "done"} {
		r, err := forward(t, s, alias, `{}`)
		if got := said(t, r, err); got != says {
			t.Errorf("%s said %s", alias, got)
		}
	}
}

// An agent that goes away, and time that is up, take the task back.
func TestACoreTaskEndsWithItsCall(t *testing.T) {
	for _, perCall := range []bool{false, true} {
		f, url := newTasker(t, taskCaps, `{"task":`+taskIs("working", "")+`}`, `"result":`+taskIs("working", ""))
		s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: url, Timeout: 3 * time.Second}}})
		tool, _ := s.Resolve("a", gateway.SortTool, "x__act")
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-f.looked; cancel() }()
		c := gateway.Forward{Tool: tool, Principal: gateway.Principal{Tenant: "a"}, Lease: gateway.Lease{ID: "l", PerCall: perCall}}
		if _, err := s.Forward(ctx, c, nil); !errors.Is(err, context.Canceled) || errors.Is(err, gateway.ErrNotSent) {
			t.Errorf("it ended with %v", err)
		}
		if got := <-f.done; got != `{"taskId":"t\"1"}` {
			t.Errorf("cancelled is %s", got)
		}
	}
	f, url := newTasker(t, taskCaps, `{"task":`+taskIs("working", "")+`}`, `"result":`+taskIs("working", ""))
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: url, Timeout: 400 * time.Millisecond}}})
	if _, err := forward(t, s, "x__act", `{}`); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, gateway.ErrNotSent) {
		t.Errorf("it ended with %v", err)
	}
	<-f.done
	// One that takes none back is not asked to.
	f, url = newTasker(t, strings.Replace(taskCaps, `"cancel":{},`, "", 1), `{"task":`+taskIs("working", "")+`}`, `"error":{"code":-1,"message":"x"}`)
	s, _ = start(t, Config{Servers: []Server{{Name: "x", URL: url}}})
	perCall := func(f *gateway.Forward) { f.Lease = gateway.Lease{ID: "l", PerCall: true} } // then it would be before the call ends
	if _, err := forward(t, s, "x__act", `{}`, perCall); err == nil || f.count("tasks/cancel") > 0 {
		t.Errorf("%v; cancelled %d", err, f.count("tasks/cancel"))
	}
}

// A server that says how its task is need not be asked.
func TestACoreTaskOfWhichItsServerTells(t *testing.T) {
	f, url := newTasker(t, taskCaps, `{"task":`+strings.Replace(taskIs("working", ""), `"pollInterval":1`, `"pollInterval":1e9`, 1)+`}`, `"error":{"code":-1,"message":"nobody needs to ask"}`)
	other := f.before
	f.before = func(w http.ResponseWriter, r *http.Request, m fakeMessage) bool {
		if r.Method != http.MethodGet {
			return other(w, r, m)
		}
		w.Header().Set("Content-Type", contentSSE)
		for r.Context().Err() == nil {
			fmt.Fprintf(w, `data: {"jsonrpc":"2.0","method":"notifications/tasks/status","params":%s}`+"\n\n", taskIs("completed", ""))
			w.(http.Flusher).Flush()
			time.Sleep(5 * time.Millisecond) // it says it on and on, as there may be no task yet
		}
		return true
	}
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: url}}})
	r, err := forwardTo(t, s, "x__act", `{}`, &ear{}, able(allCaps))
	if got := said(t, r, err); got != "done" || f.count("tasks/get") > 0 {
		t.Errorf("it said %s, and was asked %d times", got, f.count("tasks/get"))
	}
}

// Whatever cannot be sent once there is a task, the call was.
func TestACoreTaskWhoseServerIsGone(t *testing.T) {
	f, _ := newTasker(t, taskCaps, `{"task":`+taskIs("working", "")+`}`, `"result":`+taskIs("working", ""))
	web := httptest.NewServer(f)
	defer web.Close()
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: web.URL}}})
	go func() {
		<-f.looked
		web.Listener.Close()
		web.CloseClientConnections()
	}()
	if _, err := forward(t, s, "x__act", `{}`); !unreachable(err) || errors.Is(err, gateway.ErrNotSent) {
		t.Errorf("it ended with %v", err)
	}
}

// What the server says of its task is progress to an agent that wants to hear of it,
// whether it was asked or not, and what it asks on the way reaches the agent.
func TestWhatACoreTaskSaysAndAsks(t *testing.T) {
	answers := make(chan string, 1)
	f, url := newTasker(t, taskCaps, `{"task":`+taskIs("working", `,"statusMessage":"one"`)+`}`,
		`"result":`+taskIs("working", `,"statusMessage":"one"`), `"result":`+taskIs("input_required", `,"statusMessage":"two"`))
	look := f.before
	f.before = func(w http.ResponseWriter, r *http.Request, m fakeMessage) bool {
		if r.Method == http.MethodPost && m.Method == "" {
			answers <- string(m.raw)
			w.WriteHeader(http.StatusAccepted)
			return true
		}
		return look(w, r, m)
	}
	var told string
	f.result = func(w http.ResponseWriter, m fakeMessage) string {
		w.Header().Set("Content-Type", contentSSE)
		say := func(format string, args ...any) {
			fmt.Fprintf(w, "data: "+format+"\n\n", args...)
			w.(http.Flusher).Flush()
		}
		say(`{"jsonrpc":"2.0","method":"notifications/tasks/status","params":%s}`, taskIs("working", `,"statusMessage":"three"`))
		say(`{"jsonrpc":"2.0","method":"notifications/tasks/status","params":%s}`, strings.Replace(taskIs("working", `,"statusMessage":"another's"`), `t\"1`, "t2", 1))
		say(`{"jsonrpc":"2.0","id":"q","method":"elicitation/create","params":{"message":"which?","_meta":{"io.modelcontextprotocol/related-task":{"taskId":"t\"1"}}}}`)
		f.mu.Unlock() // which the fake holds, and the answer comes in by it
		told = <-answers
		f.mu.Lock()
		say(`{"jsonrpc":"2.0","id":%s,"result":{"content":[{"type":"text","text":"done"}]}}`, m.ID)
		return ""
	}
	s, _ := start(t, Config{Servers: []Server{{Name: "x", URL: url}}})
	three := make(chan bool)
	e := &ear{asked: func(ctx context.Context, _ string, _ json.RawMessage) (gateway.Result, error) {
		<-three
		return gateway.Result{Raw: json.RawMessage(`{"action":"decline"}`)}, nil
	}}
	e.on = func() {
		if strings.Contains(e.heard[len(e.heard)-1], "three") {
			close(three)
		}
	}
	r, err := forwardTo(t, s, "x__act", `{}`, e, able(allCaps), func(f *gateway.Forward) { f.Progress = true })
	if got := said(t, r, err); got != "done" {
		t.Errorf("it said %s", got)
	}
	if told != `{"jsonrpc":"2.0","id":"q","result":{"action":"decline"}}` {
		t.Errorf("the server was told %s", told)
	}
	got := strings.Join(e.heard, "\n")
	for _, want := range []string{`"progress":1,"message":"one"}`, `"progress":2,"message":"two"}`, `"progress":3,"message":"three"}`, `elicitation/create {"message":"which?"}`} {
		if strings.Count(got, want) != 1 {
			t.Errorf("the agent heard\n%s\nand not once %s", got, want)
		}
	}
	if len(e.heard) != 4 {
		t.Errorf("the agent heard\n%s", got)
	}
}

// The same with @modelcontextprotocol/server-everything over stdio.
func TestCoreTasksOfServerEverything(t *testing.T) {
	main := filepath.Join(os.Getenv("TOOLBROKER_NPM"), "@modelcontextprotocol", "server-everything", "dist", "index.js")
	node, err := exec.LookPath("node")
	if _, serr := os.Stat(main); err != nil || serr != nil {
		missing(t, "node, or @modelcontextprotocol/server-everything in TOOLBROKER_NPM")
	}
	s, _ := start(t, Config{Servers: []Server{{Name: "every", Command: []string{node, main, "stdio"}, Timeout: 25 * time.Second}}})
	var all sync.WaitGroup
	defer all.Wait()
	// Whose question it is says the question: another tool is at work in that session.
	all.Go(func() {
		if r, err := forwardTo(t, s, "every__trigger-long-running-operation", `{"duration":5,"steps":5}`, &ear{}, able(`{"elicitation":{}}`)); err != nil || r.Failed() {
			t.Errorf("%v %s %s", err, r.Raw, r.Error)
		}
	})
	for name, c := range map[string]struct {
		with []func(*gateway.Forward)
		want string
		asks int
	}{
		"legacy": {[]func(*gateway.Forward){able(`{"elicitation":{}}`)}, "Research Report: python (snake)", 1},
		"modern": {[]func(*gateway.Forward){able(`{"elicitation":{}}`), func(f *gateway.Forward) { f.Protocol, f.Session = "2026-07-28", "" }}, "Research Report: python\n", 0},
	} {
		all.Go(func() {
			e := &ear{asked: func(context.Context, string, json.RawMessage) (gateway.Result, error) {
				return gateway.Result{Raw: json.RawMessage(`{"action":"accept","content":{"interpretation":"snake"}}`)}, nil
			}}
			r, err := forwardTo(t, s, "every__simulate-research-query", `{"topic":"python","ambiguous":true}`, e, append(c.with, func(f *gateway.Forward) { f.Progress = true })...)
			if err != nil || r.Failed() || !strings.Contains(textOf(first(r.Raw), "text"), c.want) {
				t.Errorf("%s: %v %s %s", name, err, r.Raw, r.Error)
			}
			heard := strings.Join(e.heard, "\n")
			if strings.Count(heard, gateway.MethodElicit) != c.asks || strings.Contains(heard, relatedTask) || strings.Contains(string(r.Raw), relatedTask) ||
				!strings.Contains(heard, `"message":"Generating report..."`) {
				t.Errorf("%s heard %s, and then %s", name, heard, r.Raw)
			}
		})
	}
}

// first is the first block of a result's content.
func first(result json.RawMessage) json.RawMessage {
	var body struct{ Content []json.RawMessage }
	if json.Unmarshal(result, &body) != nil || len(body.Content) == 0 {
		return nil
	}
	return body.Content[0]
}
