package servers

import (
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
)

// A child is a link to a process of our own. Its calls share it, told apart by
// their ids; when it ends or writes rubbish they all fail, and nobody else's.
//
// The process ends with its link, and with it whatever it started: its process
// group, and on Linux what left that. When this process is killed (kill -9), Linux
// ends the child with it, but not what the child had started.
type child struct {
	*desk
	cmd  *exec.Cmd
	in   *os.File
	out  *os.File
	errs *os.File
	send chan *outgoing
	era  era

	launcher *launcher
	start    uint64         // when it was, by the kernel's clock
	family   map[int]uint64 // what it had started when it was made to end; life guards it

	life   sync.Mutex
	reaped bool          // its number may be another's now; life guards it
	gone   chan struct{} // closed when the process is reaped and its pipes are closed
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
	program, err := s.program(cmd)
	if err != nil {
		return nil, fmt.Errorf("start the child process: %w", err)
	}
	defer program.Close()
	cmd.SysProcAttr.Credential = s.uid
	c := &child{desk: newDesk(s), cmd: cmd, launcher: l, era: modernEra, send: make(chan *outgoing, maxQueued), gone: make(chan struct{})}

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
		err = l.start(c)
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
	tied error // why what it starts could gain privileges, or get lost; then it starts nothing

	*brood
	bound bool // all of this program gains no privileges, not only children
}

// A brood is what launchers started. There is one, as there is one program that what
// they left behind comes to.
type brood struct {
	mu      sync.Mutex
	running map[int]*child // that are not reaped, by number
	first   uint64         // start of the first child
}

var ourBrood = &brood{running: map[int]*child{}}

func newLauncher() *launcher {
	l := &launcher{jobs: make(chan func()), quit: make(chan struct{}), brood: ourBrood, bound: bound(os.Getpid())}
	go func() {
		runtime.LockOSThread() // for good: nothing else of ours should run without what this thread gives up
		l.tied = errors.Join(noNewPrivileges(), adopt())
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

func (l *launcher) start(c *child) error {
	done := make(chan error, 1)
	select {
	case l.jobs <- func() {
		if l.tied != nil {
			done <- l.tied
			return
		}
		keepOurs()
		l.mu.Lock() // nobody takes it for one that was left behind
		defer l.mu.Unlock()
		err := c.cmd.Start()
		if err == nil {
			pid := c.cmd.Process.Pid
			p, _ := processOf(pid)
			c.start, l.running[pid] = p.start, c
			if l.first == 0 {
				l.first = p.start
			}
		}
		done <- err
	}:
		return <-done
	case <-l.quit:
		return errClosed
	}
}

func (l *launcher) stop() { close(l.quit) }

func (c *child) speaks() era { return c.era }

func (c *child) settle(version string, caps capabilities) {
	c.era, c.version, c.caps = legacyEra, version, caps
}

// fail ends the child at once: after this no call can trust it.
func (c *child) fail(why error) {
	if c.desk.fail(why) {
		c.signal(killGroup)
	}
}

func (c *child) signal(how func(*os.Process)) {
	c.life.Lock()
	defer c.life.Unlock()
	if !c.reaped {
		c.look()
		how(c.cmd.Process)
	}
}

// look notes what the child has started, so that it is known for its when the child
// is gone. life is held.
func (c *child) look() {
	found := family(c.cmd.Process.Pid)
	if c.family == nil {
		c.family = found
	}
	maps.Copy(c.family, found)
}

// reap waits for the end of the process and clears up behind it.
func (c *child) reap(pipes *sync.WaitGroup) {
	awaitExit(c.cmd.Process)
	c.life.Lock()
	killGroup(c.cmd.Process) // what it started, while its number is still its own
	c.reaped = true
	c.life.Unlock()
	_ = c.cmd.Wait()
	c.launcher.clear(c)
	// Something that left the group may hold the pipes open all the same.
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
func (c *child) close(ctx context.Context) error {
	c.signal(func(*os.Process) {}) // at the end of its input it may go without what it started
	c.in.Close()
	if !c.endsWithin(ctx, politely) {
		c.signal(terminateGroup)
		if !c.endsWithin(ctx, firmly) {
			c.fail(errChildEnded)
			if !c.endsWithin(context.Background(), goodbye) { // it was killed: this is soon
				return errNotEnded
			}
		}
	}
	return nil
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
	id, w := c.join(r, true)
	defer c.leave(id)
	o := &outgoing{line: oneLine(frame(id, r.method, r.params))}
	if err := c.enqueue(ctx, o); err != nil {
		return message{}, notSent(err)
	}
	return c.await(ctx, id, w, o.failed, c.cancel)
}

// failed says whether any of the line may have been written. After it, what
// was not will never be.
func (o *outgoing) failed(why error) error {
	if o.state.CompareAndSwap(0, 2) || o.state.Load() == 2 {
		return notSent(why)
	}
	return sent(why)
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
		return over(ctx)
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

// attend and listen: what a child says comes over the one pipe that there is.
func (c *child) attend(context.Context) error { return nil }

func (c *child) listen(ctx context.Context, to filter, open func(), _ func(message)) error {
	if c.era != modernEra {
		open()
		select {
		case <-c.broken:
			return c.why
		case <-ctx.Done():
			return over(ctx)
		}
	}
	params, err := listenParams(c.s, to)
	if err != nil {
		return err
	}
	open() // the acknowledgement says nothing that its end would not
	m, err := c.do(ctx, call{method: "subscriptions/listen", params: params})
	if err == nil && m.fault != nil {
		err = errNotOffered
	}
	return err
}

// respond sends the answer to something that the child asked. A child that does
// not read must not keep its own words from being read.
func (c *child) respond(ctx context.Context, line []byte) error {
	o := &outgoing{line: oneLine(line)}
	select {
	case c.send <- o:
	default:
		c.s.tidy(func() { _ = c.enqueue(ctx, o) })
	}
	return nil
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
	r := lines{from: c.out, limit: c.s.MaxResponse}
	for {
		line, err := r.next()
		switch {
		case err == nil:
			err = c.take(line)
		case errors.Is(err, errTooBig):
			var head, tail []byte
			var size int64
			if head, tail, size, err = r.skip(maxSkipped); err == nil {
				err = c.desk.skipped(head, tail, size, c.respond)
			}
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
		return c.ignore(len(line))
	}
	line = bytes.Clone(line) // its parts outlive the buffer
	m, err := parse(line)
	if errors.Is(err, errTooMany) {
		return err
	}
	if err != nil {
		return errChildRubbish
	}
	return c.desk.take(m, len(line), c.respond)
}

// countErrors reads what a child writes to its standard error. It may say
// anything there, so only its length goes into our log.
func (c *child) countErrors() {
	n, _ := io.Copy(io.Discard, c.errs)
	c.s.log.Debug("child process ended", "server", c.s.Name, "stderr_bytes", n)
}
