package serve

import (
	"log/slog"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOurMemoryIsOurs(t *testing.T) {
	keepMemoryOurs(slog.New(slog.DiscardHandler))
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	var core unix.Rlimit
	if err2 := unix.Getrlimit(unix.RLIMIT_CORE, &core); err != nil || err2 != nil || dumpable != 0 || core.Max != 0 {
		t.Errorf("dumpable %d, %v; core %+v, %v", dumpable, err, core, err2)
	}
}
