package serve

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestKeysAreMadeOnceAndOurs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	if err := privateDir(dir); err != nil {
		t.Fatal(err)
	}
	seal, err := sealKey(dir + "/seal")
	if err != nil {
		t.Fatal(err)
	}
	sealAgain, err := sealKey(dir + "/seal")
	if err != nil || !bytes.Equal(seal, sealAgain) || len(seal) != 32 {
		t.Error("another seal key the second time", err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Error("something is left beside the keys:", left, err)
	}
	for _, name := range []string{"", "/seal"} {
		info, err := os.Stat(dir + name)
		if err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: others can use it: %v, %v", name, info.Mode(), err)
		}
	}
}

func TestKeysOthersCanReadAreRefused(t *testing.T) {
	dir := t.TempDir()
	{
		make := func(f string) error { _, err := sealKey(f); return err }
		file := filepath.Join(dir, "key")
		if err := make(file); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, 0o640); err != nil {
			t.Fatal(err)
		}
		if err := make(file); err == nil || !strings.Contains(err.Error(), "chmod go=") {
			t.Errorf("took a key that the group can read: %v", err)
		}
		if err := os.WriteFile(file, []byte("rubbish"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := make(file); err == nil {
			t.Error("took rubbish for a key")
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	open := filepath.Join(dir, "open")
	if err := os.Mkdir(open, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := privateDir(open); err == nil {
		t.Error("took a directory that others can enter")
	}
}
