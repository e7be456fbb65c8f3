package servers

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"toolbroker/gateway"
)

const (
	childPath  = "/usr/local/bin:/usr/bin:/bin"
	politely   = 200 * time.Millisecond // for a child to end when its input does
	firmly     = 300 * time.Millisecond // and when it was told to
	leftovers  = 500 * time.Millisecond // to read what a child wrote before it ended
	maxQueued  = 16
	maxReports = 64 // of progress, for an agent that does not keep up
)

var (
	errChildEnded   = errors.New("the child process ended")
	errChildRubbish = unusable("the child process wrote something that is not valid JSON-RPC")
	errChildNoise   = unusable("the child process writes too much")
)

// A child is a link to a process of our own. Its calls share it, told apart by
// their ids; when it ends or writes rubbish they all fail, and nobody else's.
//
// The process ends with its link, and with it whatever it started, unless that
// left its process group. When this process is killed (kill -9), Linux ends the
// child with it, but not what the child had started.
type child struct {
	s    *server
	cmd  *exec.Cmd
	in   *os.File
	out  *os.File
	errs *os.File
	send chan *outgoing
	era  era

	mu      sync.Mutex
	waiting map[int64]*waiter
	last    int64 // the highest id that was given out
	noise   int64 // bytes since the last request that answered none
	reaped  bool  // its number may be another's now

	once   sync.Once
	broken chan struct{} // closed when no call can be answered any more
	why    error         // set before broken is closed
	gone   chan struct{} // closed when the process is reaped and its pipes are closed
}

type waiter struct {
	call   call
	report chan json.RawMessage
	answer chan message
}

// outgoing is a line on its way to a child.
type outgoing struct {
	line  []byte
	state atomic.Int32 // 0: queued; 1: being written; 2: will never be, not a byte of it
}

// launch starts a child. Its environment is what is said here and nothing of
// our own; the lease's values are in it and nowhere else.
func (s *server) launch(l *launcher, lease gateway.Lease) (*child, error) {
	env := map[string]string{"PATH": childPath, "HOME": s.dir, "LANG": "C.UTF-8"}
	maps.Copy(env, s.Env)
	for name, value := range lease.Env {
		env[name] = value.Reveal()
	}
	cmd := &exec.Cmd{Path: s.argv[0], Args: s.argv, Dir: s.dir, SysProcAttr: ownGroup()}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		cmd.Env = append(cmd.Env, name+"="+env[name])
	}
	c := &child{s: s, cmd: cmd, era: modernEra, send: make(chan *outgoing, maxQueued), waiting: map[int64]*waiter{},
		broken: make(chan struct{}), gone: make(chan struct{})}

	var theirs []*os.File
	closeAll := func(files ...*os.File) {
		for _, f := range files {
			if f != nil {
				f.Close()
			}
		}
	}
	pipe := func(writes bool) (mine, child *os.File, err error) {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, nil, err
		}
		if mine, child = r, w; writes {
			mine, child = w, r
		}
		theirs = append(theirs, child)
		return mine, child, nil
	}
	in, stdin, err := pipe(true)
	c.in, cmd.Stdin = in, stdin
	if err == nil {
		var stdout *os.File
		c.out, stdout, err = pipe(false)
		cmd.Stdout = stdout
	}
	if err == nil {
		var stderr *os.File
		c.errs, stderr, err = pipe(false)
		cmd.Stderr = stderr
	}
	if err == nil {
		err = l.start(cmd)
	}
	closeAll(theirs...)
	if err != nil {
		closeAll(c.in, c.out, c.errs)
		return nil, fmt.Errorf("start the child process: %w", err)
	}
	var pipes sync.WaitGroup
	pipes.Go(c.read)
	pipes.Go(c.countErrors)
	s.tidy(c.write)
	s.tidy(func() { c.reap(&pipes) })
	return c, nil
}

// A launcher starts processes from one thread that lives as long as they may:
// the kernel ends a child when the thread that started it does.
type launcher struct {
	jobs chan func()
	quit chan struct{}
}

func newLauncher() *launcher {
	l := &launcher{make(chan func()), make(chan struct{})}
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for {
			select {
			case job := <-l.jobs:
				job()
			case <-l.quit:
				return
			}
		}
	}()
	return l
}

func (l *launcher) start(cmd *exec.Cmd) error {
	done := make(chan error, 1)
	select {
	case l.jobs <- func() { keepOurs(); done <- cmd.Start() }:
		return <-done
	case <-l.quit:
		return errClosed
	}
}

func (l *launcher) stop() { close(l.quit) }

func (c *child) speaks() era   { return c.era }
func (c *child) settle(string) { c.era = legacyEra }

func (c *child) dead() bool {
	select {
	case <-c.broken:
		return true
	default:
		return false
	}
}

// fail ends the child at once: after this no call can trust it.
func (c *child) fail(why error) {
	c.once.Do(func() {
		c.why = why
		close(c.broken)
		c.signal(killGroup)
	})
}

func (c *child) signal(how func(*os.Process)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.reaped {
		how(c.cmd.Process)
	}
}

// reap waits for the end of the process and clears up behind it.
func (c *child) reap(pipes *sync.WaitGroup) {
	awaitExit(c.cmd.Process)
	c.mu.Lock()
	killGroup(c.cmd.Process) // what it started, while its number is still its own
	c.reaped = true
	c.mu.Unlock()
	_ = c.cmd.Wait()
	// Something that left the group may hold the pipes open.
	_ = c.out.SetReadDeadline(time.Now().Add(leftovers))
	_ = c.errs.SetReadDeadline(time.Now().Add(leftovers))
	pipes.Wait()
	c.fail(errChildEnded)
	c.in.Close()
	c.out.Close()
	c.errs.Close()
	close(c.gone)
}

// close asks the child to end, then makes it.
func (c *child) close(ctx context.Context) {
	c.in.Close()
	if !c.endsWithin(ctx, politely) {
		c.signal(terminateGroup)
		if !c.endsWithin(ctx, firmly) {
			c.fail(errChildEnded)
			c.endsWithin(context.Background(), goodbye) // it was killed: this is soon
		}
	}
}

func (c *child) endsWithin(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-c.gone:
		return true
	case <-t.C:
	case <-ctx.Done():
	}
	return false
}

func (c *child) do(ctx context.Context, r call) (message, error) {
	w := &waiter{call: r, answer: make(chan message, 1)}
	if r.progress != nil {
		w.report = make(chan json.RawMessage, maxReports)
	}
	c.mu.Lock()
	id := c.s.ids.Add(1)
	c.waiting[id], c.last, c.noise = w, id, 0
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.waiting, id)
	}()

	o := &outgoing{line: oneLine(frame(id, r.method, r.params))}
	if err := c.enqueue(ctx, o); err != nil {
		return message{}, notSent(err)
	}
	for {
		select {
		case params := <-w.report:
			if err := r.progress(params); err != nil {
				c.cancel(id)
				return message{}, err
			}
		case m := <-w.answer:
			return m, w.catchUp()
		case <-c.broken:
			select {
			case m := <-w.answer: // it was the last thing the child said
				return m, w.catchUp()
			default:
			}
			return message{}, o.failed(c.why)
		case <-ctx.Done():
			err := o.failed(fmt.Errorf("waiting for the server: %w", ctx.Err()))
			if !errors.Is(err, gateway.ErrNotSent) {
				c.cancel(id)
			}
			return message{}, err
		}
	}
}

// catchUp hands on the progress that came before the answer.
func (w *waiter) catchUp() error {
	for {
		select {
		case params := <-w.report:
			if err := w.call.progress(params); err != nil {
				return err
			}
		default:
			return nil
		}
	}
}

// failed says whether any of the line may have been written. After it, what
// was not will never be.
func (o *outgoing) failed(why error) error {
	if o.state.CompareAndSwap(0, 2) || o.state.Load() == 2 {
		return notSent(why)
	}
	return why
}

func (c *child) enqueue(ctx context.Context, o *outgoing) error {
	select {
	case <-c.broken:
		return c.why
	default:
	}
	select {
	case c.send <- o:
		return nil
	case <-c.broken:
		return c.why
	case <-ctx.Done():
		return fmt.Errorf("waiting for the server: %w", ctx.Err())
	}
}

// cancel tells the child that nobody waits for an answer any more. When its
// input is full it has other worries.
func (c *child) cancel(id int64) {
	select {
	case c.send <- &outgoing{line: frame(0, "notifications/cancelled", cancelled(id))}:
	default:
	}
}

func (c *child) note(ctx context.Context, method string, params json.RawMessage) error {
	return c.enqueue(ctx, &outgoing{line: oneLine(frame(0, method, params))})
}

// oneLine makes a message fit a line. In valid JSON a line feed stands only
// between tokens, where a space means the same: this is the one place where an
// agent's bytes are not left as they are.
func oneLine(frame []byte) []byte {
	for i, b := range frame {
		if b == '\n' || b == '\r' {
			frame[i] = ' '
		}
	}
	return frame
}

func (c *child) write() {
	for {
		select {
		case <-c.broken:
			return
		case o := <-c.send:
			if !o.state.CompareAndSwap(0, 1) {
				continue // its caller is gone
			}
			if n, err := c.in.Write(append(o.line, '\n')); err != nil {
				if n == 0 {
					o.state.Store(2)
				}
				c.fail(errChildEnded)
				return
			}
		}
	}
}

func (c *child) read() {
	r := bufio.NewReader(c.out)
	for {
		line, err := readLine(r, c.s.MaxResponse)
		if err == nil {
			err = c.take(line)
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, os.ErrClosed):
			c.fail(errChildEnded)
			return
		default:
			c.fail(err)
			return
		}
	}
}

// take deals with one line of a child's.
func (c *child) take(line []byte) error {
	// Some servers greet on their standard output before they speak MCP; what
	// does not begin like a message is noise, what does has to be one.
	if line = bytes.TrimSpace(line); len(line) == 0 || line[0] != '{' {
		return c.ignore(line)
	}
	line = bytes.Clone(line) // its parts outlive the buffer
	m, err := parse(line)
	if err != nil {
		return errChildRubbish
	}
	if m.response() {
		return c.deliver(m, line)
	}
	switch {
	case m.method == "notifications/progress":
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, w := range c.waiting {
			if w.report != nil && hasToken(m.params, w.call.token) {
				select {
				case w.report <- m.params:
				default: // its agent does not keep up; progress may be lost
				}
				break
			}
		}
		return c.ignored(line)
	case m.notification():
		c.s.heard(m.method)
		return c.ignore(line)
	default:
		select {
		case c.send <- &outgoing{line: answer(m)}:
		default: // it does not read; then it gets no answer
		}
		return c.ignore(line)
	}
}

func (c *child) deliver(m message, line []byte) error {
	id, err := strconv.ParseInt(string(m.id), 10, 64)
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.waiting[id]
	if err != nil || w == nil && (id <= 0 || id > c.last) {
		return errChildRubbish // nobody ever asked that
	}
	if w == nil {
		return c.ignored(line) // its caller is gone
	}
	delete(c.waiting, id)
	w.answer <- m
	return nil
}

func (c *child) ignore(line []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ignored(line)
}

// ignored counts what answers nobody, so that a flood has an end.
func (c *child) ignored(line []byte) error {
	if c.noise += int64(len(line)) + 64; c.noise > c.s.MaxResponse {
		return errChildNoise
	}
	return nil
}

// countErrors reads what a child writes to its standard error. It may say
// anything there, so only its length goes into our log.
func (c *child) countErrors() {
	n, _ := io.Copy(io.Discard, c.errs)
	c.s.log.Debug("child process ended", "server", c.s.Name, "stderr_bytes", n)
}
