//go:build !linux

package identitytest

import "syscall"

// dies: elsewhere a child outlives us if we are killed before our tests end.
func dies() *syscall.SysProcAttr { return nil }
