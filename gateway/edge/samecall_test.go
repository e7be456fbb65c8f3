package edge

import (
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"toolbroker/gateway"
)

// A call is the same as another only where all of this is: whose it is, on which task
// and in which session, under which id, and what it says.
func TestWhatMakesACallTheSame(t *testing.T) {
	key := func(change func(*request)) string {
		r := request{who: gateway.Principal{Tenant: "acme", ID: "agent:a", OnBehalfOf: "alice", Task: "t1"}, cred: gateway.Credential{Task: "t2", Session: "s"}}
		r.id, r.method, r.params = jsontext.Value("1"), "tools/call", jsontext.Value("{}")
		change(&r)
		return attemptKey(r)
	}
	same := key(func(*request) {})
	for name, change := range map[string]func(*request){
		"tenant":             func(r *request) { r.who.Tenant = "globex" },
		"workload":           func(r *request) { r.who.ID = "agent:b" },
		"human":              func(r *request) { r.who.OnBehalfOf = "bob" },
		"task":               func(r *request) { r.who.Task = "t3" },
		"task that is named": func(r *request) { r.cred.Task = "t3" },
		"session":            func(r *request) { r.cred.Session = "" },
		"id":                 func(r *request) { r.id = jsontext.Value("2") },
		"id, as a text":      func(r *request) { r.id = jsontext.Value(`"1"`) },
		"method":             func(r *request) { r.method = "prompts/get" },
		"params":             func(r *request) { r.params = jsontext.Value("{ }") },
		"parts moved":        func(r *request) { r.who.ID, r.who.OnBehalfOf = "agent:aali", "ce" },
	} {
		if key(change) == same {
			t.Errorf("another %s is the same call", name)
		}
	}
	if key(func(r *request) { r.id = jsontext.Value(`1`); r.modern = true }) != same {
		t.Error("it is not always the same")
	}
}
