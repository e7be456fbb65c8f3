package identity

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// A watched is files that are read again once they change. What cannot be read
// leaves what was there, until maxStale.
type watched[T any] struct {
	paths    []string
	parse    func(texts [][]byte) (*T, error)
	maxStale time.Duration
	now      func() time.Time
	log      *slog.Logger

	mu      sync.Mutex
	current *T
	stamp   string    // of the files as they were read
	looked  time.Time // when they were last looked at
	good    time.Time // when they were last found whole
}

func watch[T any](paths []string, maxStale time.Duration, c Config, parse func([][]byte) (*T, error)) (*watched[T], error) {
	w := &watched[T]{paths: paths, parse: parse, maxStale: or(maxStale, time.Hour), now: c.Now, log: c.Log}
	return w, w.read(c.Now())
}

// get returns what the files hold, as they were some seconds ago.
func (w *watched[T]) get(now time.Time) (*T, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now.Sub(w.looked) >= fileEvery {
		failing := w.good.Before(w.looked)
		if err := w.read(now); err != nil && !failing {
			w.log.Warn("certificates or keys cannot be read again; those there were count for a while", "err", err, "for", w.maxStale.String())
		}
	}
	if now.Sub(w.good) >= w.maxStale {
		return nil, errors.New("the files that hold them cannot be read")
	}
	return w.current, nil
}

func (w *watched[T]) read(now time.Time) error {
	w.looked = now
	stamp := ""
	for _, p := range w.paths {
		info, err := os.Stat(p)
		if err != nil {
			return err
		}
		stamp += fmt.Sprintln(info.ModTime().UnixNano(), info.Size())
	}
	if w.current == nil || stamp != w.stamp {
		var texts [][]byte
		for _, p := range w.paths {
			text, err := readFile(p)
			if err != nil {
				return err
			}
			texts = append(texts, text)
		}
		next, err := w.parse(texts)
		if err != nil {
			return err
		}
		w.current, w.stamp = next, stamp
	}
	w.good = now
	return nil
}

// parseCertificates reads PEM that holds certificates and nothing else.
func parseCertificates(text []byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, errors.New("a file of authorities holds something else than certificates")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, errors.New("a file of authorities holds a certificate that cannot be read")
		}
		all, text = append(all, c), rest
	}
	if len(all) == 0 {
		return nil, errors.New("a file of authorities holds no PEM certificate")
	}
	return all, nil
}
