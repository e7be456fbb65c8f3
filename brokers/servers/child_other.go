//go:build unix && !linux

package servers

import (
	"os"
	"syscall"
)

// ownGroup puts a child into a process group of its own. When we are killed it
// sees the end of its input and nothing more.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// keepOurs makes sure that no descriptor of ours but the pipes goes to a child.
func keepOurs() {
	for fd := 3; fd < 1024; fd++ {
		syscall.CloseOnExec(fd)
	}
}

// noNewPrivileges is Linux's; elsewhere a child can run what is set-user-ID.
func noNewPrivileges() error { return nil }

func killGroup(p *os.Process)      { _ = syscall.Kill(-p.Pid, syscall.SIGKILL) }
func terminateGroup(p *os.Process) { _ = syscall.Kill(-p.Pid, syscall.SIGTERM) }

// awaitExit reaps the process: what it left in its group is killed after that.
func awaitExit(p *os.Process) { _, _ = p.Wait() }

// Elsewhere than on Linux what leaves a child's process group is not found again.
type process struct{ start uint64 }

func adopt() error                  { return nil }
func bound(int) bool                { return false }
func family(int) map[int]uint64     { return nil }
func processOf(int) (process, bool) { return process{}, true }

func (l *launcher) clear(ended *child) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ended != nil {
		delete(l.running, ended.cmd.Process.Pid)
	}
}
