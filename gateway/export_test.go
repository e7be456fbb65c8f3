package gateway

import "encoding/json"

// CheckArguments reads arguments against no schema.
func CheckArguments(args string) error {
	_, err := readArguments(Call{Args: json.RawMessage(args)}, Tool{}, func(Tool) *shape { return nil })
	return err
}

// BlankOut blanks one JSON value.
func BlankOut(raw json.RawMessage, secret string) (json.RawMessage, error) {
	out, _, err := meshOf([]Secret{NewSecret(secret)}).json(raw)
	return out, err
}

// Undeclared returns a property of args that schema does not declare.
func Undeclared(schema, args string) (string, error) {
	var root any
	if err := json.Unmarshal([]byte(schema), &root); err != nil {
		return "", err
	}
	a, err := readArguments(Call{Args: json.RawMessage(args)}, Tool{}, func(Tool) *shape { return readShape(root, root, 0) })
	return a.undeclared, err
}
