package servers

import (
	"bytes"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ownGroup puts a child into a process group of its own, and has the kernel
// end it when we end, however that happens.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// keepOurs makes sure that no descriptor of ours but the pipes goes to a child.
// Go opens all its own that way; what whoever started us left open it does not.
func keepOurs() {
	if unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	open, _ := os.ReadDir("/proc/self/fd") // before Linux 5.11
	for _, e := range open {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			syscall.CloseOnExec(fd)
		}
	}
}

// noNewPrivileges keeps what this thread starts, and all that comes of it, from
// becoming more than it is by running a set-user-ID program.
func noNewPrivileges() error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }

func killGroup(p *os.Process)      { _ = syscall.Kill(-p.Pid, syscall.SIGKILL) }
func terminateGroup(p *os.Process) { _ = syscall.Kill(-p.Pid, syscall.SIGTERM) }

// awaitExit returns when the process has ended and is not reaped yet, so that
// its number cannot be another's when its group is killed.
func awaitExit(p *os.Process) {
	for {
		if err := unix.Waitid(unix.P_PID, p.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != unix.EINTR {
			return
		}
	}
}

// adopt makes this process the parent of whatever its children leave behind, instead
// of init: else nobody could tell it from the rest of the machine.
func adopt() error { return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

// A process is one as the kernel tells of it. While it is our child and not reaped
// its number is nobody else's.
type process struct {
	pid, parent, group int
	start              uint64 // in ticks since the machine's start
	over               bool   // it has ended, and waits to be reaped
}

func processOf(pid int) (p process, ok bool) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return p, false
	}
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // its name may hold anything
	if len(f) < 20 {
		return p, false
	}
	p.pid, p.over = pid, f[0] == "Z"
	p.parent, _ = strconv.Atoi(f[1])
	p.group, _ = strconv.Atoi(f[2])
	p.start, err = strconv.ParseUint(f[19], 10, 64)
	return p, err == nil
}

func processes() (all []process) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if p, ok := processOf(pid); ok {
				all = append(all, p)
			}
		}
	}
	return all
}

// bound reports whether a process can gain no privileges, which it has from whoever
// started it and cannot undo.
func bound(pid int) bool {
	status, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	return bytes.Contains(status, []byte("\nNoNewPrivs:\t1"))
}

// family is what comes of a process now, by number and start.
func family(of int) map[int]uint64 {
	all := processes()
	found := map[int]uint64{}
	for grown := true; grown; {
		grown = false
		for _, p := range all {
			if _, in := found[p.parent]; (in || p.parent == of) && found[p.pid] == 0 {
				found[p.pid], grown = p.start, true
			}
		}
	}
	return found
}

// clear ends what a child that has ended left behind, in whatever session or group,
// and reaps what ended by itself. What may be another child's, that is still there,
// stays until that ends.
func (l *launcher) clear(ended *child) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ended != nil {
		delete(l.running, ended.cmd.Process.Pid)
	}
	if l.first == 0 {
		return // there was none yet
	}
	for end := time.Now().Add(leftovers); time.Now().Before(end); time.Sleep(time.Millisecond) {
		again := false
		for _, p := range processes() {
			if p.parent != os.Getpid() || l.running[p.pid] != nil || !l.adopted(p) {
				continue
			}
			if !p.over && l.leftBy(p, ended) {
				_ = syscall.Kill(p.pid, syscall.SIGKILL)
				again = true // and what it had started is ours now
			}
			_, _ = syscall.Wait4(p.pid, nil, syscall.WNOHANG, nil)
		}
		if !again {
			return
		}
	}
}

// adopted reports whether a child of ours that the launcher did not start is what
// one that it did start left behind, and not something that this program started
// otherwise.
func (l *launcher) adopted(p process) bool {
	if !l.bound {
		return bound(p.pid)
	}
	return p.start >= l.first && p.group != syscall.Getpgrp()
}

// leftBy reports whether a process that was adopted can only be what ended, or one
// that ended before, left behind. What was seen to be its is, and so is what is older
// than all that run. What was given the environment of what ended is too, unless one
// that runs has the same, or had more of it.
func (l *launcher) leftBy(p process, ended *child) bool {
	var env []string
	if ended != nil {
		if ended.family[p.pid] == p.start {
			return true
		}
		env = environment(p.pid)
	}
	marked := ended != nil && holds(env, ended.cmd.Env)
	for _, c := range l.running {
		if c.start <= p.start && !(marked && (len(c.cmd.Env) < len(ended.cmd.Env) || !holds(env, c.cmd.Env))) {
			return false
		}
	}
	return true
}

// environment is what a process was started with.
func environment(pid int) []string {
	raw, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	return strings.Split(string(raw), "\x00")
}

func holds(env, all []string) bool {
	return !slices.ContainsFunc(all, func(v string) bool { return !slices.Contains(env, v) })
}
