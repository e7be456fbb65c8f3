package edge

import "golang.org/x/sys/unix"

// TCP states in which the client has not closed its side (tcp_states.h).
const (
	established = 1
	finWait1    = 4
	finWait2    = 5
)

func lookAt(fd int) (l looked) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return l
	}
	l.ended = info.State != established && info.State != finWait1 && info.State != finWait2
	l.waiting = info.Unacked > 0 || info.Notsent_bytes > 0
	if l.ended {
		// Only then: a read or a write that fails has not been told yet.
		why, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		l.broken = err == nil && why != 0
	}
	return l
}
