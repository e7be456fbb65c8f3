package servers

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	gosdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"toolbroker/gateway"
	"toolbroker/gateway/audit"
)

// The test binary is also the child processes of its tests.
const childMode = "TOOLBROKER_TEST_CHILD"

func TestMain(m *testing.M) {
	if mode := os.Getenv(childMode); mode != "" {
		beChild(mode)
		os.Exit(0)
	}
	code := m.Run()
	if code == 0 {
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		if left := whatIsLeft(); left != "" {
			fmt.Fprintln(os.Stderr, "left over at the end:\n"+left)
			code = 1
		}
	}
	os.Exit(code)
}

// whatIsLeft lists goroutines of this package, and children, that are still
// there once everything is closed. What is ending is given a moment.
func whatIsLeft() (left string) {
	for range 100 {
		left = ""
		buf := make([]byte, 1<<20)
		for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(g, "brokers/servers.") && !strings.Contains(g, "TestMain") {
				left += g + "\n\n"
			}
		}
		for _, pid := range children() {
			left += "child process " + strconv.Itoa(pid) + "\n"
		}
		if left == "" {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	return left
}

// children lists the processes that this one is the parent of.
func children() (pids []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		data, _ := os.ReadFile(file)
		_, rest, _ := strings.Cut(string(data), ") ")
		if f := strings.Fields(rest); len(f) > 1 && f[1] == strconv.Itoa(os.Getpid()) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// diary is a Recorder that remembers, and can be waited on.
type diary struct {
	mu    sync.Mutex
	facts []gateway.Fact
	wake  chan struct{}
}

func newDiary() *diary { return &diary{wake: make(chan struct{})} }

func (d *diary) Record(_ context.Context, f ...gateway.Fact) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.facts = append(d.facts, f...)
	close(d.wake)
	d.wake = make(chan struct{})
	return nil
}

func (d *diary) Durable(ctx context.Context, f ...gateway.Fact) error { return d.Record(ctx, f...) }

// await returns the nth fact of a type about a server, when it is there.
func (d *diary) await(t *testing.T, typ audit.Type, server string, n int) gateway.Fact {
	t.Helper()
	for {
		d.mu.Lock()
		found := slices.Collect(func(yield func(gateway.Fact) bool) {
			for _, f := range d.facts {
				if f.Type == typ && f.Tool.Server == server && !yield(f) {
					return
				}
			}
		})
		wake := d.wake
		d.mu.Unlock()
		if len(found) >= n {
			return found[n-1]
		}
		select {
		case <-wake:
		case <-t.Context().Done():
			t.Fatalf("no %s about %s", typ, server)
		case <-time.After(20 * time.Second):
			t.Fatalf("no %s about %s in 20 s; there are %v", typ, server, d.types())
		}
	}
}

func (d *diary) types() (all []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.facts {
		all = append(all, fmt.Sprintf("%s %s %s", f.Tenant, f.Type, f.Detail))
	}
	return all
}

// ear is a Stream that remembers.
type ear struct {
	mu    sync.Mutex
	heard []string
	fails error
	on    func()
	asked func(ctx context.Context, method string, params json.RawMessage) (gateway.Result, error)
}

func (e *ear) Ask(ctx context.Context, method string, params json.RawMessage) (gateway.Result, error) {
	e.mu.Lock()
	e.heard = append(e.heard, method+" "+string(params))
	e.mu.Unlock()
	if e.asked == nil {
		return gateway.Result{}, gateway.ErrCannotAsk
	}
	return e.asked(ctx, method, params)
}

func (e *ear) Notify(_ context.Context, method string, params json.RawMessage) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.heard = append(e.heard, method+" "+string(params))
	if e.on != nil {
		e.on()
	}
	return e.fails
}

// start runs servers for tenants a and b, at a test's pace, and returns when
// each was asked once.
func start(t testing.TB, c Config) (*Servers, *diary) {
	t.Helper()
	d := newDiary()
	if c.Tenants == nil {
		c.Tenants = []string{"a", "b"}
	}
	if c.Recorder == nil {
		c.Recorder = d
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	s.pace = pace{gap: time.Millisecond, first: 10 * time.Millisecond, last: 50 * time.Millisecond, ack: 5 * time.Second,
		discover: 5 * time.Second, grace: 20 * time.Second}
	s.pins.pace = 20 * time.Millisecond
	done := make(chan struct{})
	go func() { defer close(done); s.Run(t.Context()) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
		<-done
	})
	for _, f := range s.feeds {
		select {
		case <-f.tried:
		case <-time.After(s.pace.grace):
			t.Fatalf("server %s was not asked", f.s.Name)
		}
	}
	<-s.Ready()
	return s, d
}

// a call by agent p of tenant a on task t1, in session m1.
func forward(t testing.TB, s *Servers, alias, args string, with ...func(*gateway.Forward)) (gateway.Result, error) {
	t.Helper()
	return forwardTo(t, s, alias, args, nil, with...)
}

func forwardTo(t testing.TB, s *Servers, alias, args string, out gateway.Stream, with ...func(*gateway.Forward)) (gateway.Result, error) {
	t.Helper()
	tool, ok := s.Resolve("a", gateway.SortTool, alias)
	if !ok {
		t.Fatalf("no tool %s among %d", alias, len(s.Offered("a", gateway.SortTool)))
	}
	f := gateway.Forward{CallID: "call-1", Tool: tool, Args: json.RawMessage(args), Session: "m1",
		Principal: gateway.Principal{ID: "p", Tenant: "a"}, Task: gateway.Task{ID: "t1", Tenant: "a"}}
	for _, w := range with {
		w(&f)
	}
	return s.Forward(t.Context(), f, out)
}

// fake is a server of ours, for what a real one would not do. By itself it is
// a good one with the one tool `act`.
type fake struct {
	modern  bool
	changes bool              // it says that it tells of changes
	tools   string            // the list; "" for act alone
	session string            // in the legacy era
	caps    string            // what it says that it can do; "" for tools
	version string            // of the legacy era; "" for 2025-11-25
	answers map[string]string // results, by method
	// call answers a tools/call; nil answers {"content":[]}.
	call func(w http.ResponseWriter, r *http.Request, m fakeMessage)
	// before sees every request first, and may answer it.
	before func(w http.ResponseWriter, r *http.Request, m fakeMessage) (done bool)

	mu   sync.Mutex
	seen []string // verb or method, in order
}

type fakeMessage struct {
	ID     json.RawMessage
	Method string
	Params json.RawMessage
	Result json.RawMessage
	raw    []byte
}

const actTool = `[{"name":"act","inputSchema":{"type":"object"}}]`

func (f *fake) count(what string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, s := range f.seen {
		if s == what {
			n++
		}
	}
	return n
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	m := fakeMessage{raw: body}
	what := r.Method
	if r.Method == http.MethodPost {
		_ = json.Unmarshal(body, &m)
		if what = m.Method; what == "" {
			what = "response"
		}
	}
	f.mu.Lock()
	f.seen = append(f.seen, what)
	f.mu.Unlock()
	if f.before != nil && f.before(w, r, m) {
		return
	}
	reply := func(result string) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":%s}`, m.ID, result)
	}
	caps := `{"tools":{}}`
	if f.changes {
		caps = `{"tools":{"listChanged":true}}`
	}
	if f.caps != "" {
		caps = f.caps
	}
	version := "2025-11-25"
	if f.version != "" {
		version = f.version
	}
	switch {
	case r.Method != http.MethodPost:
		w.WriteHeader(http.StatusMethodNotAllowed)
	case f.answers[m.Method] != "":
		reply(f.answers[m.Method])
	case m.Method == "server/discover" && f.modern:
		reply(`{"supportedVersions":["2026-07-28"],"capabilities":` + caps + `,"resultType":"complete"}`)
	case m.Method == "initialize" && !f.modern:
		if f.session != "" {
			w.Header().Set("Mcp-Session-Id", f.session)
		}
		reply(`{"protocolVersion":"` + version + `","capabilities":` + caps + `,"serverInfo":{"name":"fake","version":"1"}}`)
	case m.ID == nil:
		w.WriteHeader(http.StatusAccepted)
	case m.Method == "ping":
		reply(`{}`)
	case m.Method == "tools/list":
		tools := f.tools
		if tools == "" {
			tools = actTool
		}
		reply(`{"tools":` + tools + `}`)
	case m.Method == "tools/call" && f.call != nil:
		f.call(w, r, m)
	case m.Method == "tools/call":
		reply(`{"content":[]}`)
	default:
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"unknown method"}}`, m.ID)
	}
}

func (f *fake) serve(t testing.TB) string {
	t.Helper()
	web := httptest.NewServer(f)
	t.Cleanup(func() {
		web.CloseClientConnections()
		web.Close()
	})
	return web.URL
}

// self is a child process that is this binary in another mode.
func self(name, mode string, args ...string) Server {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return Server{Name: name, Command: append([]string{exe}, args...), Env: map[string]string{childMode: mode}, Timeout: 20 * time.Second}
}

// nobody is an address where nobody listens.
func nobody(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

// beChild is a small legacy server over stdio, with habits by mode.
func beChild(mode string) {
	in := bufio.NewReader(os.Stdin)
	say := func(format string, args ...any) { fmt.Printf(format+"\n", args...) }
	if mode == "greets" {
		say("Welcome to my server!\n\nlistening on stdio")
	}
	if mode == "dies" {
		return
	}
	if mode == "go-sdk" {
		_ = goSDK().Run(context.Background(), &gosdk.StdioTransport{})
		return
	}
	if mode == "deaf" {
		select {}
	}
	tools := actTool
	list := func() {
		if b, err := os.ReadFile("tools.json"); err == nil {
			tools = string(b)
		}
	}
	list()
	if mode == "changes at once" {
		f, _ := os.OpenFile("starts", os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		f.WriteString(".")
		f.Close()
	}
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			if mode == "stubborn" {
				select {} // the end of its input is not enough
			}
			return
		}
		var m fakeMessage
		if json.Unmarshal(line, &m) != nil {
			say(`{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"parse error"}}`)
			continue
		}
		switch m.Method {
		case "initialize":
			if mode == "asks at once" && !strings.Contains(string(line), `"sampling"`) {
				tools = `[]`
			}
			say(`{"jsonrpc":"2.0","id":%s,"result":{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"c","version":"1"}}}`, m.ID)
		case "ping":
			say(`{"jsonrpc":"2.0","id":%s,"result":{}}`, m.ID)
		case "notifications/initialized", "notifications/roots/list_changed":
			switch mode {
			case "roots":
				say(`{"jsonrpc":"2.0","id":"roots","method":"roots/list"}`)
			case "changes at once":
				say(`{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}`)
			case "asks at once":
				say(`{"jsonrpc":"2.0","id":"r1","method":"roots/list"}`)
			}
		case "":
			switch mode {
			case "good":
				if told = string(line[:len(line)-1]); onAnswer != nil {
					onAnswer()
					onAnswer = nil
				}
			case "roots":
				rooted = string(m.Result)
				say(`{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"roots"}}`)
			case "asks at once": // an answer to it
				os.WriteFile("answer", line, 0o600)
			}
		case "tools/list":
			if mode == "drifts" {
				list()
			}
			say(`{"jsonrpc":"2.0","id":%s,"result":{"tools":%s}}`, m.ID, tools)
		case "tools/call":
			childCall(mode, m, line, say)
		case "server/discover":
			if mode == "modern" {
				say(`{"jsonrpc":"2.0","id":%s,"result":{"supportedVersions":["2026-07-28"],"capabilities":{"tools":{}}}}`, m.ID)
			} else if mode != "silent" { // some do not answer what they do not know
				say(`{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"no"}}`, m.ID)
			}
		case "notifications/cancelled":
			fmt.Fprintln(os.Stderr, "cancelled")
			if mode == "hangs" {
				os.WriteFile("cancelled", line, 0o600)
			}
		}
	}
}

func childCall(mode string, m fakeMessage, line []byte, say func(string, ...any)) {
	var p struct {
		Arguments map[string]any
		Meta      struct{ ProgressToken string } `json:"_meta"`
	}
	json.Unmarshal(m.Params, &p)
	text := func(s string) {
		q, _ := json.Marshal(s)
		say(`{"jsonrpc":"2.0","id":%s,"result":{"content":[{"type":"text","text":%s}]}}`, m.ID, q)
	}
	what, _ := p.Arguments["do"].(string)
	switch what {
	case "refused":
		got, err := os.ReadFile("answer")
		text(fmt.Sprint(string(got), err))
	case "pid":
		text(strconv.Itoa(os.Getpid()))
	case "env":
		env := os.Environ()
		slices.Sort(env)
		text(strings.Join(env, "\n"))
	case "cwd":
		dir, _ := os.Getwd()
		text(dir)
	case "fds":
		entries, _ := os.ReadDir("/proc/self/fd")
		var open []string
		for _, e := range entries {
			to, _ := os.Readlink("/proc/self/fd/" + e.Name())
			open = append(open, e.Name()+" "+to)
		}
		text(strings.Join(open, "\n"))
	case "status":
		status, _ := os.ReadFile("/proc/self/status")
		text(string(status))
	case "read":
		path, _ := p.Arguments["path"].(string)
		got, err := os.ReadFile(path)
		text(fmt.Sprint(string(got), err))
	case "line":
		text(string(line))
	case "later": // answered when the next call comes
		held = func() { text("later") }
	case "now":
		text("now")
		if held != nil {
			held()
		}
	case "exit":
		os.Exit(3)
	case "rubbish":
		say(`{"jsonrpc":"2.0","id":%s,"result":{"a":1,"a":2}}`, m.ID)
	case "strange id":
		say(`{"jsonrpc":"2.0","id":999999999999999,"result":{}}`)
	case "forged":
		say(`{"jsonrpc":"2.0","id":99999,"result":{"content":[{"type":"text","text":"forged"}]}}`)
	case "noise":
		say("Warning: not JSON at all\n[1]")
		text("ok")
	case "big":
		say(`{"jsonrpc":"2.0","id":%s,"result":{"content":[{"type":"text","text":"%s"}]}}`, m.ID, strings.Repeat("x", 1<<20))
	case "big at the end": // as the TypeScript SDK writes
		say(`{"result":{"content":[{"type":"text","text":"%s"}]},"jsonrpc":"2.0","id":%s}`, strings.Repeat("x", 1<<20), m.ID)
	case "big and nobody's":
		say(`{"result":{"content":[{"type":"text","text":"%s"}]},"jsonrpc":"2.0"}`, strings.Repeat("x", 1<<20))
	case "big to somebody else":
		say(`{"jsonrpc":"2.0","id":999999999999999,"result":{"x":"%s"}}`, strings.Repeat("x", 1<<20))
	case "big question":
		say(`{"method":"sampling/createMessage","params":{"x":"%s"},"jsonrpc":"2.0","id":"q1"}`, strings.Repeat("x", 1<<20))
		answer, _ := bufio.NewReader(os.Stdin).ReadString('\n')
		text(answer)
	case "big remark":
		say(`{"jsonrpc":"2.0","method":"notifications/message","params":{"data":"%s"}}`, strings.Repeat("x", 1<<20))
		text("done")
	case "flood":
		for {
			say(`{"jsonrpc":"2.0","method":"notifications/message","params":{"data":"%s"}}`, strings.Repeat("y", 1000))
		}
	case "progress":
		for i := range 3 {
			say(`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%q,"progress":%d}}`, p.Meta.ProgressToken, i)
		}
		say(`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"another's","progress":9}}`)
		text("done")
	case "log":
		say(`{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"hello"}}`)
		text("done")
	case "ask":
		say(`{"jsonrpc":"2.0","id":"q1","method":"sampling/createMessage","params":{}}`)
		say(`{"jsonrpc":"2.0","id":"q2","method":"ping"}`)
		in := bufio.NewReader(os.Stdin)
		a, _ := in.ReadString('\n')
		b, _ := in.ReadString('\n')
		text(a + b)
	case "elicit":
		onAnswer = func() { text(told) }
		fallthrough
	case "elicit again":
		say(`{"jsonrpc":"2.0","id":"q1","method":"elicitation/create","params":{"message":"?"}}`)
		if what == "elicit again" {
			text("again")
		}
	case "withdraw":
		say(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"q1"}}`)
		text("withdrawn")
	case "heard":
		text(told)
	case "breed":
		breed(text)
	case "escape":
		flee(text, false)
	case "escape twice":
		flee(text, true)
	case "hang":
	default:
		if mode == "roots" {
			text(rooted)
			return
		}
		text("ok")
	}
}

var (
	held     func()
	onAnswer func() // the next time that an agent's answer comes
	told     string // that answer
	rooted   = "no roots yet"
)

// deskOf is the desk of the one link that is open.
func deskOf(t *testing.T, s *Servers) *desk {
	t.Helper()
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	for _, e := range s.pool.links {
		if isReady(e) && e.link != nil {
			return e.link.at()
		}
	}
	t.Fatal("no link is open")
	return nil
}

// awaitWaiting returns when so many calls of agents are under way on a link.
func awaitWaiting(t *testing.T, d *desk, n int) {
	t.Helper()
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		d.mu.Lock()
		waiting := 0
		for _, w := range d.waiting {
			if w.call.hears != nil {
				waiting++
			}
		}
		d.mu.Unlock()
		if waiting == n {
			return
		}
		if time.Since(start) > 10*time.Second {
			t.Fatalf("%d calls are under way", waiting)
		}
	}
}
