//go:build unix

package serve

import (
	"log/slog"
	"syscall"
)

// keepMemoryOurs keeps secrets in memory from becoming a file when we crash, and
// from other processes of our own user, such as children.
func keepMemoryOurs(log *slog.Logger) {
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		log.Warn("core dumps are not switched off", "err", err)
	}
	if err := notDumpable(); err != nil {
		log.Warn("children of our own user can read our memory", "err", err)
	}
}
