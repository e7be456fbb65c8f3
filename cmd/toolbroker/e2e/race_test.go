//go:build race

package e2e

// The process is built as its tests are.
var raceFlag = []string{"-race"}
