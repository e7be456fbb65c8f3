package tracker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	maxTitle  = 200
	maxBody   = 20_000
	maxLabel  = 40
	maxLabels = 10
)

// An Issue is one issue, as the file and the tools show it.
type Issue struct {
	Number  int       `json:"number"`
	Title   string    `json:"title"`
	Body    string    `json:"body,omitempty"`
	Labels  []string  `json:"labels,omitempty"`
	State   string    `json:"state"` // open or closed
	Reason  string    `json:"reason,omitempty"`
	Created time.Time `json:"created"`
	Closed  time.Time `json:"closed,omitzero"`
}

// issues is the whole file. A number is never given out twice.
type issues struct {
	Next   int     `json:"next"`
	Issues []Issue `json:"issues"`
}

type noIssue int

func (n noIssue) Error() string { return fmt.Sprintf("no issue %d", int(n)) }

func (all *issues) find(number int) (*Issue, error) {
	for i := range all.Issues {
		if all.Issues[i].Number == number {
			return &all.Issues[i], nil
		}
	}
	return nil, noIssue(number)
}

// A store reads the file anew each time: it is small, and people edit it.
type store struct {
	file string
	mu   sync.Mutex
}

func (s *store) read() (*issues, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.load()
}

// change runs f on the issues and keeps what it made of them. A crash leaves
// the file as it was before or as it is after, and perhaps a .tmp beside it.
func (s *store) change(f func(*issues) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, err := s.load()
	if err != nil {
		return err
	}
	if err := f(all); err != nil {
		return err
	}
	data, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(s.file), filepath.Base(s.file)+".*.tmp") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(append(data, '\n'))
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), s.file)
}

func (s *store) load() (*issues, error) {
	data, err := os.ReadFile(s.file)
	if errors.Is(err, fs.ErrNotExist) {
		return &issues{Next: 1}, nil
	}
	if err != nil {
		return nil, err
	}
	all := &issues{}
	if err := json.Unmarshal(data, all); err != nil {
		return nil, fmt.Errorf("%s: %w", s.file, err)
	}
	return all, nil
}
