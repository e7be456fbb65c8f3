package audit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// VerifyOptions say what a log is held against.
type VerifyOptions struct {
	// VKey is the verifier key of whoever ran the gateway. Empty means the one
	// that lies in the directory, which proves nothing against someone who can
	// write there; the report says so.
	VKey string
	// Checkpoint is one that somebody else holds, or nil. Lines cut off or
	// rewritten below it are found even where the directory's own checkpoints
	// were changed to match.
	Checkpoint []byte
}

// A Report is what Verify found.
type Report struct {
	Origin    string
	Events    int64     // lines that are whole, up to Bad if there is one
	Size      int64     // lines under the newest checkpoint
	Root      tlog.Hash // of that checkpoint
	Uncovered int64     // lines after it: chained, but not yet under a checkpoint
	Notes     []string  // what is worth knowing and no fault
	Bad       *Finding  // nil when the log is whole
}

// Verify checks a log offline, from its directory alone. A log that is not
// whole is reported, in Report.Bad; the error is for a directory or key that
// cannot be read. A last line that a crash tore is no fault: nobody was told
// that it was written. Verify may run beside the writer.
func Verify(dir string, opts VerifyOptions) (Report, error) {
	v := verification{dir: dir}
	if err := v.readKey(opts.VKey); err != nil {
		return v.report, err
	}
	if opts.Checkpoint != nil {
		held, err := openCheckpoint(opts.Checkpoint, v.key)
		if err != nil {
			return v.report, fmt.Errorf("audit: the checkpoint to verify against: %w", err)
		}
		v.held = &held
	}
	// A writer signs only what it has written, and the history before the
	// checkpoint. Reading in the other order sees nothing that is not there.
	past, err := v.openHistory()
	if err != nil {
		return v.report, err
	}
	defer past.Close()
	if signed, err := readCheckpoint(dir); err != nil {
		v.noCheckpoint(err)
	} else if v.newest, err = openCheckpoint(signed, v.key); err != nil {
		v.noCheckpoint(err)
	}
	v.report.Origin = v.key.Name()
	if err := v.run(); err != nil {
		return v.report, err
	}
	return v.report, nil
}

// A verification is one run of Verify.
type verification struct {
	dir    string
	key    note.Verifier
	held   *Checkpoint
	newest Checkpoint // zero where there is none
	report Report

	past   *history
	ahead  *Checkpoint // the history's next one
	later  *Finding    // wrong, but less so than anything wrong with the lines
	proven int64       // lines under a checkpoint that matched
	chain  chain
}

func (v *verification) readKey(vkey string) error {
	if vkey == "" {
		text, err := readSmall(filepath.Join(v.dir, vkeyFile))
		if err != nil {
			return fmt.Errorf("audit: no verifier key: %w", err)
		}
		vkey = string(text)
		v.note("the verifier key came from the directory itself; against whoever can write there, give the key you were handed")
	}
	key, err := note.NewVerifier(strings.TrimSpace(vkey))
	if err != nil {
		return fmt.Errorf("audit: verifier key: %w", err)
	}
	v.key = key
	return nil
}

func (v *verification) note(format string, args ...any) {
	v.report.Notes = append(v.report.Notes, fmt.Sprintf(format, args...))
}

func (v *verification) noCheckpoint(err error) {
	v.later = &Finding{0, BadCheckpoint, fmt.Sprintf("checkpoint: %v", err)}
}

func (v *verification) openHistory() (io.Closer, error) {
	path := filepath.Join(v.dir, historyFile)
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		v.later = &Finding{0, BadHistory, "the history of checkpoints is missing"}
		return io.NopCloser(nil), nil
	}
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("audit: %s is not a regular file", historyFile)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	v.past = &history{r: bufio.NewReader(io.LimitReader(f, info.Size())), v: v.key}
	return f, nil
}

func (v *verification) run() error {
	lines, err := openLines(v.dir)
	if err != nil {
		return err
	}
	defer lines.close()
	v.chain.origin = v.key.Name()
	v.advance()
	var h head
	var seen Finding // the break as it was met, where guess made something of it
	bad := v.compare()
	for bad == nil {
		line, whole, err := lines.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		i := v.chain.next
		if lines.torn(line, whole) {
			if i >= v.newest.Size {
				v.note("the last line is torn (%d bytes): a crash cut it off, or it is being written; the gateway was told of neither", len(line))
				break
			}
			bad = &Finding{i, Truncated, "the line is cut off"}
		} else if !whole {
			bad = &Finding{i, Malformed, "a line without end"}
		} else if bad = v.chain.add(line, &h); bad == nil {
			bad = v.compare()
		} else {
			seen = *bad
			bad = v.guess(bad, bytes.Clone(line), lines)
		}
	}
	v.report.Events = v.chain.next
	v.report.Size, v.report.Root = v.newest.Size, v.newest.Root
	v.report.Uncovered = max(0, v.chain.next-v.newest.Size)
	if bad == nil {
		bad = v.missing()
	}
	if bad != nil {
		bad = v.locate(bad, seen)
	}
	if bad == nil {
		bad = v.later
	}
	v.report.Bad = bad
	return nil
}

// advance reads the next checkpoint of the history.
func (v *verification) advance() {
	last := v.ahead
	v.ahead = nil
	if v.past == nil {
		return
	}
	c, err := v.past.next()
	switch {
	case err == io.EOF:
		return
	case errors.Is(err, errTornHistory):
		v.note("%v", err)
	case err != nil:
		v.blame(&Finding{v.proven, BadHistory, fmt.Sprintf("after the checkpoint of size %d: %v", v.proven, err)})
	case last != nil && c.Size < last.Size || last == nil && c.Size != 0:
		v.blame(&Finding{v.proven, BadHistory, fmt.Sprintf("a checkpoint of size %d is out of order", c.Size)})
	default:
		v.ahead = &c
		if c.Size > v.newest.Size && v.newest.Origin != "" {
			v.newest = c // a crash came between the history and the checkpoint file
		}
		return
	}
	v.past = nil
}

func (v *verification) blame(f *Finding) {
	if v.later == nil {
		v.later = f
	}
}

// compare holds the tree as it now stands against every checkpoint of its size.
func (v *verification) compare() *Finding {
	size := v.chain.next
	check := func(c *Checkpoint, whose string) *Finding {
		if c == nil || c.Size != size || c.Origin == "" {
			return nil
		}
		if v.chain.tree.root() != c.Root {
			return &Finding{v.proven, Rewritten,
				fmt.Sprintf("events %d to %d are not those under the checkpoint of size %d%s", v.proven, size-1, size, whose)}
		}
		return nil
	}
	proven := v.held != nil && v.held.Size == size || v.newest.Origin != "" && v.newest.Size == size
	if f := check(v.held, " that was held elsewhere"); f != nil {
		return f
	}
	if f := check(&v.newest, ""); f != nil {
		return f
	}
	for v.ahead != nil && v.ahead.Size == size {
		if f := check(v.ahead, " in the history"); f != nil {
			return f
		}
		proven = true
		v.advance()
	}
	if proven {
		v.proven = size
	}
	return nil
}

// missing is what the end of the lines leaves open.
func (v *verification) missing() *Finding {
	have := v.chain.next
	switch {
	case v.held != nil && v.held.Size > have:
		return &Finding{have, Truncated, fmt.Sprintf("the checkpoint that was held elsewhere covers %d events, the log has %d", v.held.Size, have)}
	case v.newest.Size > have:
		return &Finding{have, Truncated, fmt.Sprintf("the newest checkpoint covers %d events, the log has %d", v.newest.Size, have)}
	}
	return nil
}

// guess makes a break in the chain more precise by looking at the line after:
// which of the two lines around it was touched?
func (v *verification) guess(f *Finding, line []byte, lines *lines) *Finding {
	var h, after head
	if h.parse(line) != nil {
		return f
	}
	next, whole, err := lines.next()
	more := err == nil && whole && after.parse(next) == nil
	switch {
	case f.Code == Dropped && more && after.index == f.Index:
		f.Code = Reordered
	case (f.Code == Dropped || f.Code == Inserted) && more && after.index == f.Index+1:
		f.Code = Changed
	case f.Code == Inserted && lineHash(line) == v.chain.prev:
		f.Code = Duplicated
	case f.Code == Changed && f.Index > 0 && string(h.prev) != v.chain.prev:
		// The line after still follows this one: the one before was touched.
		if !more || string(after.prev) == lineHash(line) {
			f.Index--
			f.What = "the line after it follows another line"
		}
	}
	return f
}

// locate finds the first line that differs from what the newest checkpoint
// covers, by the tree's stored leaves, where those are intact: their root is the
// signed one, so whoever changed the lines could not change them too.
func (v *verification) locate(f *Finding, seen Finding) *Finding {
	for _, c := range []*Checkpoint{v.held, &v.newest} {
		if c == nil || c.Size == 0 {
			continue
		}
		leaves, err := openLeaves(v.dir, *c)
		if err != nil {
			continue
		}
		exact, err := v.difference(leaves, c.Size)
		leaves.Close()
		switch {
		case err != nil:
		case exact != nil:
			return exact
		case seen.Code != "" && seen.Index < c.Size:
			return &seen // the lines are what was signed: it was written so
		}
	}
	return f
}

func (v *verification) difference(leaves *leaves, size int64) (*Finding, error) {
	lines, err := openLines(v.dir)
	if err != nil {
		return nil, err
	}
	defer lines.close()
	for i := range size {
		want, err := leaves.at(i)
		if err != nil {
			return nil, err
		}
		line, whole, err := lines.next()
		if err == io.EOF {
			return &Finding{i, Truncated, fmt.Sprintf("the checkpoint covers %d events, the log has %d", size, i)}, nil
		}
		if err != nil {
			return nil, err
		}
		here := tlog.RecordHash(line)
		if here == want && whole {
			continue
		}
		var h head
		origin := int64(-1) // the index that this line was written at, if it ever was
		if h.parse(line) == nil && h.index >= 0 && h.index < size {
			if leaf, err := leaves.at(h.index); err == nil && leaf == here {
				origin = h.index
			}
		}
		found := false // the line that was written here stands further down
		torn := !whole
		for err == nil && !found && whole {
			line, whole, err = lines.next()
			found = err == nil && tlog.RecordHash(line) == want
		}
		switch {
		case torn:
			return &Finding{i, Truncated, "the line is cut off"}, nil
		case origin > i && found:
			return &Finding{i, Reordered, fmt.Sprintf("event %d stands here, and event %d further down", origin, i)}, nil
		case origin > i:
			return &Finding{i, Dropped, fmt.Sprintf("event %d stands here", origin)}, nil
		case origin >= 0 && found:
			return &Finding{i, Duplicated, fmt.Sprintf("event %d stands here once more", origin)}, nil
		case found:
			return &Finding{i, Inserted, "this line was never written"}, nil
		}
		return &Finding{i, Changed, "the line is not the one that the checkpoint covers"}, nil
	}
	return nil, nil
}

// leaves are the leaf hashes of the hashes file.
type leaves struct{ *os.File }

// openLeaves opens the hashes file if its leaves are those under c.
func openLeaves(dir string, c Checkpoint) (*leaves, error) {
	path := filepath.Join(dir, hashesFile)
	if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(err, fs.ErrInvalid)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	r, t := bufio.NewReaderSize(f, 64<<10), tree{}
	for t.size < c.Size {
		var leaf tlog.Hash
		if _, err := io.ReadFull(r, leaf[:]); err != nil {
			f.Close()
			return nil, err
		}
		inner := len(t.add(leaf)) - 1
		if _, err := r.Discard(inner * tlog.HashSize); err != nil {
			f.Close()
			return nil, err
		}
	}
	if t.root() != c.Root {
		f.Close()
		return nil, errors.New("the stored hashes are not those under the checkpoint")
	}
	return &leaves{f}, nil
}

func (l *leaves) at(i int64) (h tlog.Hash, err error) {
	_, err = l.ReadAt(h[:], tlog.StoredHashIndex(0, i)*tlog.HashSize)
	return h, err
}
