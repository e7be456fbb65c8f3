package servers

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"toolbroker/brokers/internal/redis/redistest"
	"toolbroker/gateway"
)

// breed starts a process of the child's own, in its group, that ignores being told to stop.
func breed(text func(string)) {
	c := exec.Command("/bin/sh", "-c", "trap '' TERM HUP INT; echo up; while :; do sleep 1; done")
	out, _ := c.StdoutPipe()
	if err := c.Start(); err != nil {
		text(err.Error())
		return
	}
	out.Read(make([]byte, 3)) // the trap is set
	text(strconv.Itoa(c.Process.Pid))
}

// flee starts a process in a session of its own that ignores being told to stop;
// twice: it is nobody's child any more.
func flee(text func(string), twice bool) {
	script := "trap '' TERM HUP INT; echo $$; while :; do sleep 1; done"
	if twice {
		script = `sh -c "trap '' TERM HUP INT; echo \$\$; while :; do sleep 1; done" &`
	}
	c := exec.Command("/bin/sh", "-c", script)
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, _ := c.StdoutPipe()
	if err := c.Start(); err != nil {
		text(err.Error())
		return
	}
	pid := make([]byte, 20)
	n, _ := out.Read(pid)
	if twice {
		_, _ = c.Process.Wait()
	}
	text(strings.TrimSpace(string(pid[:n])))
}

// What a child started ends with it, in whatever session it is, and what another
// child started does not.
func TestNothingEscapes(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("what leaves a process group is found again on Linux only")
	}
	s, _ := start(t, Config{Servers: []Server{self("c", "good")}})
	pid := func(what string, with ...func(*gateway.Forward)) int {
		r, err := act(t, s, "c", what, with...)
		n, err := strconv.Atoi(said(t, r, err))
		if err != nil || !alive(n) {
			t.Fatal(n, err)
		}
		return n
	}
	dies := func(pids ...int) {
		t.Helper()
		for _, p := range pids {
			redistest.Await(t, "process "+strconv.Itoa(p)+" is gone", func() bool { return !alive(p) })
		}
	}
	pid("pid", task("t0")) // was there before, and stays: what comes later may be its, as far as time tells
	others := []int{pid("escape", task("t2"), leased("l2")), pid("escape twice", task("t2"), leased("l2"))}

	// By the tree of processes, and by the credential in its environment.
	mine := []int{pid("pid"), pid("escape")}
	leased1 := []int{pid("escape", leased("l1")), pid("escape twice", leased("l1"))}
	lost := pid("escape twice") // nothing tells it from what the child of t0 may have started
	if ends := s.EndTask(t.Context(), "a", "t1"); len(ends.Open)+len(ends.Lost) > 0 {
		t.Fatalf("%+v", ends)
	}
	dies(append(mine, leased1...)...)
	for _, p := range others {
		if !alive(p) {
			t.Error("what another task's child started was ended too")
		}
	}
	// A child that ends by itself leaves nothing that is known to be its.
	alone := pid("escape twice", task("t3"), leased("l3"))
	if _, err := act(t, s, "c", "exit", task("t3"), leased("l3")); !errors.Is(err, errChildEnded) {
		t.Error(err)
	}
	dies(alone)
	// When the last child is gone, everything is.
	if err := s.Close(context.Background()); err != nil {
		t.Error(err)
	}
	dies(append(others, lost)...)
}

// said is the text of a result.
func said(t *testing.T, r gateway.Result, err error) string {
	t.Helper()
	if err != nil || r.Error != nil {
		t.Fatalf("call failed: %v %s", err, r.Error)
	}
	var body struct{ Content []struct{ Text string } }
	if err := json.Unmarshal(r.Raw, &body); err != nil || len(body.Content) == 0 {
		t.Fatalf("%v in %s", err, r.Raw)
	}
	return body.Content[0].Text
}

func act(t *testing.T, s *Servers, server, what string, with ...func(*gateway.Forward)) (gateway.Result, error) {
	t.Helper()
	return forward(t, s, server+"__act", `{"do":"`+what+`"}`, with...)
}

func alive(pid int) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	_, state, _ := strings.Cut(string(data), ") ")
	return err == nil && !strings.HasPrefix(state, "Z")
}

func task(id string) func(*gateway.Forward) { return func(f *gateway.Forward) { f.Task.ID = id } }
func leased(id string) func(*gateway.Forward) {
	return func(f *gateway.Forward) {
		f.Lease = gateway.Lease{ID: id, Env: map[string]gateway.Secret{"TOKEN": gateway.NewSecret("secret of " + id)}}
	}
}

func TestAChildGetsOnlyWhatItIsGiven(t *testing.T) {
	t.Setenv("AWS_SECRET_ACCESS_KEY", "ours")
	c := self("c", "good")
	c.Env["MODE"] = "test"
	c.Dir = t.TempDir()
	s, _ := start(t, Config{Servers: []Server{c}})
	r, err := act(t, s, "c", "env", leased("l1"))
	want := strings.Join([]string{"HOME=" + c.Dir, "LANG=C.UTF-8", "MODE=test", "PATH=" + childPath, "TOKEN=secret of l1", childMode + "=good"}, "\n")
	if got := said(t, r, err); got != want {
		t.Errorf("its environment is\n%s\nnot\n%s", got, want)
	}
	r, err = act(t, s, "c", "cwd", leased("l1"))
	if got := said(t, r, err); got != c.Dir {
		t.Errorf("it runs in %s", got)
	}
	// A lease's value is in its own child only.
	r, err = act(t, s, "c", "env")
	if got := said(t, r, err); strings.Contains(got, "TOKEN") {
		t.Errorf("without a lease its environment is\n%s", got)
	}
}

func TestAChildInheritsNoDescriptor(t *testing.T) {
	f, err := os.Open("/proc/self/status") // ours, open while the child starts
	if err != nil {
		t.Skip("no /proc here")
	}
	defer f.Close()
	leaky, err := syscall.Dup(int(f.Fd())) // and one that is open to children
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(leaky)
	s, _ := start(t, Config{Servers: []Server{self("c", "good")}})
	r, err := act(t, s, "c", "fds")
	for _, line := range strings.Split(said(t, r, err), "\n") {
		n, to, _ := strings.Cut(line, " ")
		own := to == "" || strings.HasPrefix(to, "/sys/fs/cgroup/") || strings.HasPrefix(to, "anon_inode:") // the child's Go opened these
		if fd, _ := strconv.Atoi(n); fd > 2 && !own {
			t.Errorf("descriptor %s is %s", n, to)
		} else if fd <= 2 && !strings.HasPrefix(to, "pipe:") {
			t.Errorf("descriptor %s is %s, not a pipe of ours", n, to)
		}
	}
}

func TestOneChildPerTaskAndLease(t *testing.T) {
	s, _ := start(t, Config{Servers: []Server{self("c", "good")}})
	pids := map[string][]string{}
	for name, with := range map[string][]func(*gateway.Forward){
		"t1": {task("t1")}, "t2": {task("t2")}, "t1 l1": {task("t1"), leased("l1")}, "t1 l2": {task("t1"), leased("l2")}, "t2 l1": {task("t2"), leased("l1")},
	} {
		for range 2 {
			r, err := act(t, s, "c", "pid", with...)
			pids[name] = append(pids[name], said(t, r, err))
		}
	}
	owner := map[string]string{}
	for name, p := range pids {
		if p[0] != p[1] {
			t.Errorf("%s was served by %v", name, p)
		}
		if other := owner[p[0]]; other != "" {
			t.Errorf("%s and %s share a child", name, other)
		}
		owner[p[0]] = name
	}
	// A credential for one call is a child for one call, gone when the call is.
	once := func(f *gateway.Forward) { leased("l9")(f); f.Lease.PerCall = true }
	r, err := act(t, s, "c", "pid", once)
	pid, _ := strconv.Atoi(said(t, r, err))
	if alive(pid) {
		t.Error("the child of a credential for one call outlives the call")
	}
}

func TestEndTaskEndsItsChildrenAndTheirs(t *testing.T) {
	s, _ := start(t, Config{Servers: []Server{self("c", "good"), self("stubborn", "stubborn")}})
	var mine []int
	for _, call := range [][2]string{{"c", "pid"}, {"c", "breed"}, {"stubborn", "pid"}, {"stubborn", "breed"}} {
		r, err := act(t, s, call[0], call[1])
		pid, _ := strconv.Atoi(said(t, r, err))
		mine = append(mine, pid)
	}
	r, err := act(t, s, "c", "pid", task("t2"))
	other, _ := strconv.Atoi(said(t, r, err))

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if ends := s.EndTask(ctx, "a", "t1"); len(ends.Open)+len(ends.Lost) > 0 {
		t.Fatalf("%+v", ends)
	}
	for _, pid := range mine {
		for alive(pid) { // a killed process takes a moment to be gone
			if ctx.Err() != nil {
				t.Fatalf("process %d outlives its task", pid)
			}
			time.Sleep(time.Millisecond)
		}
	}
	if !alive(other) {
		t.Error("another task's child was ended too")
	}
	if _, err := act(t, s, "c", "pid"); !errors.Is(err, gateway.ErrNotSent) {
		t.Errorf("a call of an ended task was sent: %v", err)
	}
	if _, err := act(t, s, "c", "pid", task("t2")); err != nil {
		t.Errorf("a call of another task failed: %v", err)
	}
	if ends := s.EndTask(ctx, "a", "t1"); len(ends.Open)+len(ends.Lost) > 0 {
		t.Errorf("ending it again: %+v", ends)
	}
}

func TestIdleChildrenAreClosed(t *testing.T) {
	s, _ := start(t, Config{Servers: []Server{self("c", "good")}, Idle: 40 * time.Millisecond})
	r, err := act(t, s, "c", "pid")
	pid, _ := strconv.Atoi(said(t, r, err))
	for alive(pid) { // the test's own deadline ends this
		time.Sleep(5 * time.Millisecond)
	}
}

func TestCallsShareAChildByTheirIDs(t *testing.T) {
	s, _ := start(t, Config{Servers: []Server{self("c", "good")}})
	first := make(chan string, 1)
	go func() {
		r, err := act(t, s, "c", "later")
		first <- said(t, r, err)
	}()
	// Its answer is waiting for this one; which comes first is up to the child.
	for {
		s.pool.mu.Lock()
		n := len(s.pool.links)
		s.pool.mu.Unlock()
		if n == 1 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	for done := false; !done; {
		r, err := act(t, s, "c", "now")
		if got := said(t, r, err); got != "now" {
			t.Errorf("got the answer %q of another call", got)
		}
		select {
		case got := <-first:
			if got != "later" {
				t.Errorf("got the answer %q of another call", got)
			}
			done = true
		case <-time.After(time.Millisecond):
		}
	}
}

func TestArgumentsStayOnOneLine(t *testing.T) {
	s, _ := start(t, Config{Servers: []Server{self("c", "good")}})
	r, err := forward(t, s, "c__act", "{\n\r \"do\": \"line\",\n\"x\": \"a\\nb\"}")
	if got := said(t, r, err); !strings.Contains(got, `"arguments":{   "do": "line", "x": "a\nb"}`) {
		t.Errorf("the child read %s", got)
	}
}

func TestProgressOfAChild(t *testing.T) {
	s, _ := start(t, Config{Servers: []Server{self("c", "good")}})
	e := &ear{}
	r, err := forwardTo(t, s, "c__act", `{"do":"progress"}`, e, func(f *gateway.Forward) { f.Progress = true })
	if said(t, r, err); strings.Join(e.heard, "\n") != `notifications/progress {"progressToken":"call-1","progress":0}
notifications/progress {"progressToken":"call-1","progress":1}
notifications/progress {"progressToken":"call-1","progress":2}` {
		t.Errorf("heard %q", e.heard)
	}
}

func TestAChildMayAskOnlyForAPing(t *testing.T) {
	s, _ := start(t, Config{Servers: []Server{self("c", "good")}})
	r, err := act(t, s, "c", "ask")
	got := said(t, r, err)
	if !strings.Contains(got, `{"jsonrpc":"2.0","id":"q1","error":{"code":-32601`) || !strings.Contains(got, `{"jsonrpc":"2.0","id":"q2","result":{}}`) {
		t.Error(got)
	}
}

// What a bad child does fails its own calls, and none that come after.
func TestHostileChildren(t *testing.T) {
	c := self("c", "good")
	c.MaxResponse = 64 << 10
	s, _ := start(t, Config{Servers: []Server{c, self("other", "good")}})
	r, err := act(t, s, "other", "pid")
	other := said(t, r, err)
	for bad, want := range map[string]error{"exit": errChildEnded, "rubbish": gateway.ErrBadAnswer, "strange id": gateway.ErrBadAnswer, "forged": gateway.ErrBadAnswer, "big and nobody's": gateway.ErrTooLong, "big to somebody else": gateway.ErrBadAnswer, "flood": gateway.ErrBadAnswer} {
		t.Run(bad, func(t *testing.T) {
			before := task(strings.ReplaceAll(bad, " ", "-"))
			neighbour, err := act(t, s, "c", "pid")
			pid := said(t, neighbour, err)
			if _, err := act(t, s, "c", bad, before); !errors.Is(err, want) || errors.Is(err, gateway.ErrNotSent) {
				t.Errorf("its call ended with %v", err)
			}
			if r, err := act(t, s, "c", "ok", before); said(t, r, err) != "ok" {
				t.Error("no new child came")
			}
			if r, err := act(t, s, "c", "pid"); said(t, r, err) != pid {
				t.Error("another task's child was ended too")
			}
		})
	}
	if r, err := act(t, s, "c", "noise"); said(t, r, err) != "ok" {
		t.Error("a warning on its standard output ends a call")
	}
	if r, err := act(t, s, "other", "pid"); said(t, r, err) != other {
		t.Error("another server's child was ended too")
	}
}

func TestChildrenThatAreSlowToUnderstand(t *testing.T) {
	for _, mode := range []string{"good", "greets", "silent"} {
		t.Run(mode, func(t *testing.T) {
			s, err := New(Config{Tenants: []string{"a"}, Servers: []Server{self("c", mode)}})
			if err != nil {
				t.Fatal(err)
			}
			s.pace.discover = 50 * time.Millisecond
			go s.Run(t.Context())
			<-s.Ready()
			defer s.Close(context.Background())
			r, err := act(t, s, "c", "ok")
			said(t, r, err)
		})
	}
}

func TestAChildThatDoesNotAnswerIsToldAndTimesOut(t *testing.T) {
	c := self("c", "hangs")
	c.Dir = t.TempDir()
	s, _ := start(t, Config{Servers: []Server{c}})
	r, err := act(t, s, "c", "ok")
	said(t, r, err)
	s.servers["c"].Timeout = 50 * time.Millisecond
	_, err = act(t, s, "c", "hang")
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, gateway.ErrNotSent) {
		t.Errorf("the call ended with %v", err)
	}
	for {
		if data, err := os.ReadFile(filepath.Join(c.Dir, "cancelled")); err == nil && len(data) > 0 {
			break // it heard that nobody waits
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestChildrenThatNeverStartHurtNobody(t *testing.T) {
	deaf := self("deaf", "deaf")
	deaf.Timeout = 100 * time.Millisecond
	gone := self("gone", "good")
	gone.Dir = filepath.Join(t.TempDir(), "nowhere")
	s, d := start(t, Config{Servers: []Server{self("dies", "dies"), deaf, gone, self("c", "good")}})
	for _, name := range []string{"dies", "deaf", "gone"} {
		d.await(t, "server.down", name, 1)
	}
	r, err := act(t, s, "c", "ok")
	said(t, r, err)
	// A child that cannot be started has heard nothing.
	tool, _ := s.Resolve("a", gateway.SortTool, "c__act")
	tool.Server = "gone"
	_, err = s.Forward(t.Context(), gateway.Forward{Tool: tool, Principal: gateway.Principal{Tenant: "a"}}, nil)
	if !errors.Is(err, gateway.ErrNotSent) {
		t.Errorf("the call ended with %v", err)
	}
}

func TestWhatIsNotWrittenWasNotSent(t *testing.T) {
	// A pipe that nobody reads takes 64 KiB; the call behind it is never begun.
	c := self("c", "good")
	c.Timeout = 20 * time.Second
	s, _ := start(t, Config{Servers: []Server{c}})
	r, err := act(t, s, "c", "pid")
	pid, _ := strconv.Atoi(said(t, r, err))
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var l *child
	for _, e := range s.pool.links {
		l = e.link.(*child)
	}
	stuck := &outgoing{line: make([]byte, 1<<20)}
	if err := l.enqueue(t.Context(), stuck); err != nil {
		t.Fatal(err)
	}
	for stuck.state.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithCancel(t.Context())
	tool, _ := s.Resolve("a", gateway.SortTool, "c__act")
	behind := make(chan error, 1)
	go func() {
		_, err := s.Forward(ctx, gateway.Forward{Tool: tool, Session: "m1", Principal: gateway.Principal{ID: "p", Tenant: "a"}, Task: gateway.Task{ID: "t1"}}, nil)
		behind <- err
	}()
	for len(l.send) == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-behind; !errors.Is(err, gateway.ErrNotSent) || !errors.Is(err, context.Canceled) {
		t.Errorf("nothing of it was written, but: %v", err)
	}
	if err := stuck.failed(errChildEnded); errors.Is(err, gateway.ErrNotSent) {
		t.Errorf("half of it was written, but: %v", err)
	}
}
