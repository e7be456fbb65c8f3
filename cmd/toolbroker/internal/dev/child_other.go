//go:build !linux

package dev

import "syscall"

// child is a process group of its own.
func child() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
