package redis

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
)

// SealKeySize is how long a seal key is.
const SealKeySize = 32

// ErrSeal says that bytes from Redis are not what we put there.
var ErrSeal = errors.New("the stored record is not ours or was changed")

type seal = cipher.AEAD

// sealV1 is the first byte of everything sealed; another one is another way.
const sealV1 = 1

// newSeals derives a key per tenant, so that no bytes of one tenant can ever
// open as another's.
func newSeals(key []byte, tenants []string) (map[string]seal, error) {
	if len(key) != SealKeySize {
		return nil, fmt.Errorf("redis: the seal key has %d bytes, not %d", len(key), SealKeySize)
	}
	seals := map[string]seal{}
	for _, t := range tenants {
		k, err := hkdf.Key(sha256.New, key, nil, "toolbroker redis seal v1 "+t, SealKeySize)
		if err != nil {
			return nil, err
		}
		block, err := aes.NewCipher(k)
		if err != nil {
			return nil, err
		}
		if seals[t], err = cipher.NewGCMWithRandomNonce(block); err != nil {
			return nil, err
		}
	}
	return seals, nil
}

// Seal encrypts a record for one place: it opens only under the same key and
// the same what, which names the field and, where records change, the version.
// So a record cannot be read, forged, or moved to another key, tenant or
// version in Redis. An old one put back under its old version does open; where
// that matters the broker remembers versions.
func (s *Store) Seal(k Key, what string, record []byte) []byte {
	return s.seals[k.tenant].Seal([]byte{sealV1}, nil, record, bound(k, what))
}

// Unseal returns what was sealed, or an error that wraps [ErrSeal].
func (s *Store) Unseal(k Key, what string, sealed []byte) ([]byte, error) {
	aead := s.seals[k.tenant]
	if aead == nil || len(sealed) == 0 || sealed[0] != sealV1 {
		return nil, ErrSeal
	}
	record, err := aead.Open(nil, nil, sealed[1:], bound(k, what))
	if err != nil {
		return nil, ErrSeal
	}
	return record, nil
}

// bound is what a seal covers besides the record. A key holds no NUL.
func bound(k Key, what string) []byte { return []byte("v1\x00" + k.name + "\x00" + what) }
