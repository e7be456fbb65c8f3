package identitytest

import "syscall"

// dies has a child killed when we are.
func dies() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
