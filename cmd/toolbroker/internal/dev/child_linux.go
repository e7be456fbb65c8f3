package dev

import "syscall"

// child is a process group of its own, which ends with us even if we are killed.
func child() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
