//go:build !linux

package edge

// lookAt knows nothing here: that a client is gone is noticed when a read says so.
func lookAt(int) looked { return looked{} }
