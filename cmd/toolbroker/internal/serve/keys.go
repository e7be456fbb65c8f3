package serve

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// privateDir makes a directory that only we can enter, or refuses one that others can.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return private(dir)
}

// private refuses a file or directory that others can read or write.
func private(name string) error {
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return fmt.Errorf("%s has mode %04o, so others can use it; `chmod go= %s` makes it ours", name, perm, name)
	}
	return nil
}

// sealKey reads the 32 bytes that what lies in Redis is sealed with, or makes them.
func sealKey(file string) ([]byte, error) {
	text, err := readOrMake(file, func() ([]byte, error) {
		key := make([]byte, 32)
		rand.Read(key) // never fails
		return []byte(base64.StdEncoding.EncodeToString(key) + "\n"), nil
	})
	if err != nil {
		return nil, err
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(key) != 32 {
		return nil, fmt.Errorf("%s does not hold 32 bytes in base64", file)
	}
	return key, nil
}

// readOrMake reads a private file. Where there is none it makes one, whole or
// not at all: a crash leaves a file with another name, which nobody reads.
func readOrMake(file string, make func() ([]byte, error)) ([]byte, error) {
	if _, err := os.Lstat(file); errors.Is(err, fs.ErrNotExist) {
		text, err := make()
		if err != nil {
			return nil, err
		}
		if err := writeWhole(file, text); err != nil {
			return nil, err
		}
	}
	if err := private(file); err != nil {
		return nil, err
	}
	return os.ReadFile(file)
}

func writeWhole(file string, text []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(text)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	// Unlike a rename, a link does not replace what somebody else made meanwhile.
	if err := os.Link(tmp.Name(), file); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	dir, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// secret reads a file that holds one secret, without the line's end.
func secret(file string) (string, error) {
	if err := private(file); err != nil {
		return "", err
	}
	text, err := os.ReadFile(file)
	return strings.TrimRight(string(text), "\r\n"), err
}
