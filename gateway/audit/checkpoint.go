package audit

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// A Checkpoint says: at this size the log had this root.
type Checkpoint struct {
	Origin string
	Size   int64
	Root   tlog.Hash
}

// text is the C2SP tlog-checkpoint body.
func (c Checkpoint) text() string {
	return fmt.Sprintf("%s\n%d\n%s\n", c.Origin, c.Size, c.Root)
}

// OpenCheckpoint checks the signature of a C2SP checkpoint against a verifier
// key and reads it.
func OpenCheckpoint(signed []byte, vkey string) (Checkpoint, error) {
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("audit: verifier key: %w", err)
	}
	return openCheckpoint(signed, v)
}

func openCheckpoint(signed []byte, v note.Verifier) (Checkpoint, error) {
	n, err := note.Open(signed, note.VerifierList(v))
	if err != nil {
		return Checkpoint{}, err
	}
	for _, sig := range n.Sigs {
		// One text for one signature: note lets stray bits pass.
		if _, err := base64.StdEncoding.Strict().DecodeString(sig.Base64); err != nil {
			return Checkpoint{}, fmt.Errorf("signature: %w", err)
		}
	}
	lines := strings.Split(n.Text, "\n")
	if len(lines) < 4 || lines[3] != "" {
		return Checkpoint{}, errors.New("not a checkpoint")
	}
	c := Checkpoint{Origin: lines[0]}
	c.Size, err = strconv.ParseInt(lines[1], 10, 64)
	if err != nil || c.Size < 0 || strconv.FormatInt(c.Size, 10) != lines[1] {
		return Checkpoint{}, errors.New("not a checkpoint: bad size")
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != tlog.HashSize {
		return Checkpoint{}, errors.New("not a checkpoint: bad root")
	}
	c.Root = tlog.Hash(root)
	if c.Origin != v.Name() {
		return Checkpoint{}, fmt.Errorf("checkpoint of %q is signed as %q", c.Origin, v.Name())
	}
	return c, nil
}

// A Key signs checkpoints. It does not print.
type Key struct {
	signer note.Signer
	v      note.Verifier
	vkey   string
}

// VKey is the verifier key to hand to auditors, in the signed-note form.
func (k Key) VKey() string { return k.vkey }

// String keeps the key out of logs.
func (k Key) String() string { return "audit.Key(" + k.vkey + ")" }

// NewKey loads the Ed25519 key in file, or makes one for origin where there is
// no file yet. The file is a signed-note signer key, for its owner's eyes only
// (0600); a key of another origin and a file that others can read are refused.
func NewKey(file, origin string) (Key, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		skey, _, err := note.GenerateKey(rand.Reader, origin)
		if err != nil {
			return Key{}, fmt.Errorf("audit: make key: %w", err)
		}
		text = []byte(skey + "\n")
		if err := writeNew(file, text); err != nil {
			return Key{}, fmt.Errorf("audit: make key: %w", err)
		}
	} else if err != nil {
		return Key{}, fmt.Errorf("audit: read key: %w", err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm()&0o077 != 0 {
		return Key{}, fmt.Errorf("audit: key file %s can be read by others (chmod 600 it, or make a new one)", file)
	}
	k, err := parseKey(strings.TrimSpace(string(text)))
	if err != nil {
		return Key{}, fmt.Errorf("audit: key file %s: %w", file, err)
	}
	if k.signer.Name() != origin {
		return Key{}, fmt.Errorf("audit: key file %s is for %q, not for %q", file, k.signer.Name(), origin)
	}
	return k, nil
}

func parseKey(skey string) (Key, error) {
	signer, err := note.NewSigner(skey)
	if err != nil {
		return Key{}, errors.New("not a signer key")
	}
	// PRIVATE+KEY+name+hash+base64(1, seed), as NewSigner has checked.
	raw, err := base64.StdEncoding.DecodeString(strings.SplitN(skey, "+", 5)[4])
	if err != nil || len(raw) != 1+ed25519.SeedSize {
		return Key{}, errors.New("not an Ed25519 signer key")
	}
	pub := ed25519.NewKeyFromSeed(raw[1:]).Public().(ed25519.PublicKey)
	vkey, err := note.NewEd25519VerifierKey(signer.Name(), pub)
	if err != nil {
		return Key{}, err
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return Key{}, err
	}
	return Key{signer, v, vkey}, nil
}

func (k Key) sign(c Checkpoint) ([]byte, error) {
	return note.Sign(&note.Note{Text: c.text()}, k.signer)
}

// writeNew writes a file that was not there, whole and durable, or not at all.
func writeNew(file string, data []byte) error {
	tmp := file + ".new"
	if err := writeDurable(tmp, data); err != nil {
		return err
	}
	defer os.Remove(tmp)
	if err := os.Link(tmp, file); err != nil { // fails where file has appeared meanwhile
		return err
	}
	return syncDir(filepath.Dir(file))
}

// writeOver replaces a file whole. A crash leaves the old one or the new one.
func writeOver(file string, data []byte) error {
	tmp := file + ".new"
	if err := writeDurable(tmp, data); err != nil {
		return err
	}
	return os.Rename(tmp, file)
}

func writeDurable(file string, data []byte) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// A history reads the file of all checkpoints, oldest first, as a stream. The
// file is not synced with each: the newest few may be torn or missing after a
// crash; the checkpoint file is the one that counts.
type history struct {
	r   *bufio.Reader
	v   note.Verifier
	off int64 // where the next one starts
}

// noteLines is the number of lines of a checkpoint as we sign it: origin, size,
// root, none, signature.
const noteLines = 5

var errTornHistory = errors.New("the history of checkpoints ends in a torn one")

// next returns the next checkpoint and io.EOF after the last.
func (h *history) next() (Checkpoint, error) {
	var signed []byte
	for range noteLines {
		line, err := h.r.ReadSlice('\n')
		signed = append(signed, line...)
		switch {
		case err == io.EOF && len(signed) == 0:
			return Checkpoint{}, io.EOF
		case err == io.EOF, bytes.IndexByte(line, 0) >= 0:
			return Checkpoint{}, errTornHistory
		case err == bufio.ErrBufferFull:
			return Checkpoint{}, errors.New("not a checkpoint: a line without end")
		case err != nil:
			return Checkpoint{}, err
		}
	}
	c, err := openCheckpoint(signed, h.v)
	if err == nil {
		h.off += int64(len(signed))
	}
	return c, err
}

// checkpointer signs checkpoints, by the clock and by the count.
func (l *Log) checkpointer() {
	defer l.others.Done()
	tick := time.NewTicker(l.cfg.CheckpointEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-l.due:
		case <-l.stop:
			return
		}
		if f := l.fault.Load(); f != nil && !f.low {
			continue
		}
		if err := l.checkpoint(); err != nil {
			l.fail(fmt.Errorf("checkpoint: %w", err))
		}
	}
}

// checkpoint signs the durable lines, if there are any that no checkpoint
// covers. The order is what a crash may leave: stored hashes that nobody looks
// for, then a history that is ahead by one, then both.
func (l *Log) checkpoint() error {
	l.signing.Lock()
	defer l.signing.Unlock()
	l.mu.Lock()
	t, hashes := l.tree, l.hashes
	l.hashes = nil
	l.mu.Unlock()
	if t.size == l.signed {
		return nil
	}
	if _, err := l.sums.WriteAt(hashes, l.sumsAt); err != nil {
		l.mu.Lock()
		l.hashes = append(hashes, l.hashes...)
		l.mu.Unlock()
		return err
	}
	l.sumsAt += int64(len(hashes))
	signed, err := l.cfg.Key.sign(Checkpoint{Origin: l.cfg.Origin, Size: t.size, Root: t.root()})
	if err != nil {
		return err
	}
	if err := l.remember(signed); err != nil {
		return err
	}
	if err := writeOver(l.path(checkpointFile), signed); err != nil {
		return err
	}
	l.signed = t.size
	return nil
}

// remember adds a checkpoint to the history.
func (l *Log) remember(signed []byte) error {
	// At an offset: what a failed try left is written over.
	if _, err := l.past.WriteAt(signed, l.pastAt); err != nil {
		return err
	}
	l.pastAt += int64(len(signed))
	return nil
}
