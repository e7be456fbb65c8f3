package secrets

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// A journal is the ledger's open leases in a file, for when the ledger itself
// dies with the process. It is written with every step and not fsynced: it
// outlives a kill, and after a power cut each token's own end is the bound.
//
// A nil journal keeps nothing and has nothing to say.
type journal struct {
	mu    sync.Mutex
	name  string
	file  *os.File
	lines int
	open  map[string]json.RawMessage // records by lease id
	left  map[string]bool            // of those, the ones an earlier boot left
}

// A line is a record as it now is, or the end of one.
type line struct {
	Record json.RawMessage `json:"record,omitempty"`
	Ended  string          `json:"ended,omitempty"`
}

// openJournal reads what an earlier boot left. A torn last line is what a kill
// leaves, and stands for a step that was not taken yet.
func openJournal(name string) (*journal, error) {
	j := &journal{name: name, open: map[string]json.RawMessage{}, left: map[string]bool{}}
	b, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	lines := bufio.NewReader(bytes.NewReader(b))
	for {
		text, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			break
		}
		var l line
		var r record
		if json.Unmarshal(text, &l) != nil || l.Ended == "" && (json.Unmarshal(l.Record, &r) != nil || r.ID == "") {
			return nil, errors.New(name + " was changed by somebody else; what it lists ends with its tokens once you move it away")
		}
		if l.Ended != "" {
			delete(j.open, l.Ended)
			continue
		}
		j.open[r.ID] = l.Record
	}
	for id := range j.open {
		j.left[id] = true
	}
	return j, j.compact()
}

// compact writes the file anew with what is open. A crash in it leaves the old one.
func (j *journal) compact() error {
	if err := os.MkdirAll(filepath.Dir(j.name), 0o700); err != nil {
		return err
	}
	_ = os.Remove(j.name + ".new") // of a crash in here
	f, err := os.OpenFile(j.name+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	var all []byte
	for _, id := range slices.Sorted(maps.Keys(j.open)) {
		l, _ := json.Marshal(line{Record: j.open[id]})
		all = append(append(all, l...), '\n')
	}
	if _, err = f.Write(all); err == nil {
		err = os.Rename(j.name+".new", j.name)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if j.file != nil {
		_ = j.file.Close()
	}
	j.file, j.lines = f, len(j.open)
	return nil
}

func (j *journal) write(l line) error {
	raw, err := json.Marshal(l)
	if err != nil {
		return err
	}
	if _, err := j.file.Write(append(raw, '\n')); err != nil {
		return err
	}
	if j.lines++; j.lines > 1000+4*len(j.open) {
		return j.compact()
	}
	return nil
}

func (j *journal) put(r *record) error {
	if j == nil {
		return nil
	}
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.open[r.ID] = raw
	return j.write(line{Record: raw})
}

func (j *journal) end(id string) error {
	if j == nil {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.open, id)
	delete(j.left, id)
	return j.write(line{Ended: id})
}

// leftovers are the leases that an earlier boot left and nobody took up yet.
func (j *journal) leftovers() (all []*record) {
	if j == nil {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for id := range j.left {
		r := new(record)
		if json.Unmarshal(j.open[id], r) == nil {
			all = append(all, r)
		}
	}
	return all
}

func (j *journal) restored(id string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.left, id)
}

func (j *journal) close() error {
	if j == nil {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.file.Close()
}
