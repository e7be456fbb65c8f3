package gateway

import (
	"encoding/json"
	"fmt"
	"log/slog"
)

// Blank is what stands where a secret was.
const Blank = "[redacted]"

// A Secret is a value that does not print: fmt, slog and JSON show [Blank].
type Secret struct{ value string }

// NewSecret wraps a value.
func NewSecret(value string) Secret { return Secret{value} }

// Reveal returns the value, for the one who sends it and the one who blanks it out.
func (s Secret) Reveal() string { return s.value }

// IsZero reports whether there is no value.
func (s Secret) IsZero() bool { return s.value == "" }

// String returns [Blank].
func (Secret) String() string { return Blank }

// GoString returns [Blank].
func (Secret) GoString() string { return Blank }

// Format prints [Blank], whatever the verb.
func (Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, Blank) }

// LogValue returns [Blank].
func (Secret) LogValue() slog.Value { return slog.StringValue(Blank) }

// MarshalJSON returns [Blank].
func (Secret) MarshalJSON() ([]byte, error) { return json.Marshal(Blank) }

// MarshalText returns [Blank].
func (Secret) MarshalText() ([]byte, error) { return []byte(Blank), nil }
