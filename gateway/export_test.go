package gateway

import "encoding/json"

// Alike reads the params of an ask so that every decoder reads them alike, or not.
func Alike(method string, params json.RawMessage) error { return readAsk(method, params) }

// Readable is what a server's result may be.
func Readable(raw json.RawMessage) error { return readable(&Result{Raw: raw}) }

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
	a, err := readArguments(Call{Args: json.RawMessage(args)}, Tool{}, func(Tool) *shape { s, _ := readShape(root); return s })
	return a.undeclared, err
}

// MaxShape is what a shape may cost.
const MaxShape = maxShape

// ShapeCost is what the shape of a schema costs.
func ShapeCost(schema string) int {
	var root any
	_ = json.Unmarshal([]byte(schema), &root)
	_, cost := readShape(root)
	return cost
}

// Remember has a gateway remember the shape of a tool, and says how many it does.
func Remember(g *Gateway, t Tool) (n int) {
	g.shapeOf(t)
	g.shapes.Range(func(_, _ any) bool { n++; return true })
	return n
}

// Who is whom a state and a handle are bound to.
func Who(p Principal, t Task) string { return who(p, t) }

// What is the call that a state is bound to.
func What(method string, t Tool, args, meta string) string {
	c := &life{Call: Call{Method: method}, Tool: t}
	c.Args.meta = json.RawMessage(meta)
	return c.what(args)
}

// Seats is how many seats are taken, and how many tenants are known to have some.
func (g *Gateway) Seats() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := len(g.seats)
	for _, s := range g.seats {
		n += s.taken
	}
	return n
}

// Encodes reports whether text holds a secret that is encoded twice.
func Encodes(text []byte, secret string) bool { return encodes(text, NewSecret(secret)) }

// Keeps is what a call that holds text is told, whose caller has this credential.
func Keeps(text json.RawMessage, secret string) error {
	c := &life{Call: Call{Credential: Credential{Bearer: NewSecret(secret)}}}
	return c.keeps(text)
}
