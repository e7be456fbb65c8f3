// Package audit keeps an append-only log that an outsider can check: a hash
// chain and a Merkle tree over the lines, checkpoints signed in public formats, and a
// verifier that needs nothing but the directory and a key.
//
// It knows nothing of tools, tasks or policy; the gateway says what happened.
// docs/audit-format.md describes the files for those who read them without us.
package audit
