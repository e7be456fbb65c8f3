//go:build unix

package serve

import (
	"log/slog"
	"syscall"
)

// noCoreDumps keeps secrets in memory from becoming a file when we crash.
func noCoreDumps(log *slog.Logger) {
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		log.Warn("core dumps are not switched off", "err", err)
	}
}
