package audit

import (
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// A tree is an RFC 6962 Merkle tree of which only the right edge is kept: for
// each level the newest complete subtree. That is all that adding a leaf and
// taking the root need. The zero tree is empty.
type tree struct {
	size int64
	edge [63]tlog.Hash
}

// ReadHashes serves tlog from the edge.
func (t *tree) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		level, _ := tlog.SplitStoredHashIndex(x)
		if level >= len(t.edge) {
			return nil, fmt.Errorf("no hash %d on the edge of a tree of %d", x, t.size)
		}
		out[i] = t.edge[level]
	}
	return out, nil
}

// add appends a leaf and returns the hashes to store for it, in tlog's order; they
// are valid until the next call.
func (t *tree) add(leaf tlog.Hash) []tlog.Hash {
	h, level := leaf, 0
	for ; t.size>>level&1 == 1; level++ { // a left half waits for its right one
		left := t.edge[level]
		t.edge[level], h = h, tlog.NodeHash(left, h)
	}
	t.edge[level] = h
	t.size++
	return t.edge[:level+1]
}

func (t *tree) root() tlog.Hash {
	h, err := tlog.TreeHash(t.size, t)
	if err != nil {
		panic(err)
	}
	return h
}
