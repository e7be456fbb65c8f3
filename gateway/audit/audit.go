// Package audit keeps a log that outlives us: one JSON line per event, a
// Merkle tree over the lines, checkpoints signed in public formats, and a
// verifier that needs nothing but the directory and a key.
//
// It knows nothing of tools, tasks or policy; the gateway says what happened.
package audit
