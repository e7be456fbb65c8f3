package audit

import "os"

// A disk opens segments. Tests put one in between that fails.
type disk interface {
	OpenFile(path string, flag int, perm os.FileMode) (file, error)
}

// A file is what the log needs of a segment.
type file interface {
	Write(b []byte) (int, error)
	Truncate(size int64) error
	Sync() error
	Close() error
}

type realDisk struct{}

func (realDisk) OpenFile(path string, flag int, perm os.FileMode) (file, error) {
	return os.OpenFile(path, flag, perm)
}
