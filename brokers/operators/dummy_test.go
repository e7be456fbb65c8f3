package operators

import (
	"testing"

	"github.com/alexedwards/argon2id"
)

// An unknown name costs what a known one costs.
func TestTheDummyCostsAsMuch(t *testing.T) {
	got, salt, key, err := argon2id.DecodeHash(dummy)
	if err != nil || *got != *params || len(salt) != int(params.SaltLength) || len(key) != int(params.KeyLength) {
		t.Errorf("%+v, %v", got, err)
	}
}
