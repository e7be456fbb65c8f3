package gateway

import "encoding/json"

// CheckArguments reads arguments against no schema.
func CheckArguments(args string) error {
	_, err := readArguments(Call{Args: json.RawMessage(args)}, Tool{}, func(Tool) *shape { return nil })
	return err
}

// BlankOut blanks one JSON value.
func BlankOut(raw json.RawMessage, secret string) (json.RawMessage, error) {
	out, _, err := newMesh([]Secret{NewSecret(secret)}).json(raw)
	return out, err
}
