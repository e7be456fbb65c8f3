package servers

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
)

// runOpened makes cmd run the file that is open here, not what its path leads to
// by then. The descriptor is closed as the program starts; only a script keeps
// it, because its interpreter has to read it.
func runOpened(cmd *exec.Cmd, f *os.File) {
	var head [2]byte
	if _, err := f.ReadAt(head[:], 0); err == nil && bytes.Equal(head[:], []byte("#!")) {
		cmd.ExtraFiles = []*os.File{f}
		cmd.Path = "/proc/self/fd/3"
		return
	}
	cmd.Path = fmt.Sprintf("/proc/self/fd/%d", f.Fd())
}
