package audit

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Prove returns the proof that event index is in the log, under the newest
// checkpoint: a C2SP tlog-proof, which holds all that is needed to check the
// line but the line and the verifier key. It is no proof that the log holds
// what it says for any reason but that it says it.
func Prove(dir string, index int64) ([]byte, error) {
	signed, err := readCheckpoint(dir)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	vkey, err := readSmall(filepath.Join(dir, vkeyFile))
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	v, err := note.NewVerifier(strings.TrimSpace(string(vkey)))
	if err != nil {
		return nil, fmt.Errorf("audit: verifier key: %w", err)
	}
	c, err := openCheckpoint(signed, v)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	if index < 0 || index >= c.Size {
		return nil, fmt.Errorf("audit: event %d is not under the checkpoint of size %d", index, c.Size)
	}
	f, err := os.Open(filepath.Join(dir, hashesFile))
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	defer f.Close()
	hashes := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, x := range indexes {
			if _, err := f.ReadAt(out[i][:], x*tlog.HashSize); err != nil {
				return nil, err
			}
		}
		return out, nil
	})
	if root, err := tlog.TreeHash(c.Size, hashes); err != nil || root != c.Root {
		return nil, errors.Join(errors.New("audit: the stored hashes are not those under the checkpoint; open the log once to make them anew"), err)
	}
	path, err := tlog.ProveRecord(c.Size, index, hashes)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "c2sp.org/tlog-proof@v1\nindex %d\n", index)
	for _, h := range path {
		fmt.Fprintf(&b, "%s\n", h)
	}
	b.WriteByte('\n')
	b.Write(signed)
	return b.Bytes(), nil
}
