package edge

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"toolbroker/authz"
	"toolbroker/gateway"
)

func TestTasksREST(t *testing.T) {
	d := open(t)
	body := `{"kind":"triage","purpose":"p","principal":"agent:x","on_behalf_of":"u","ttl_seconds":60,"scope":[{"tool":"a/*","action":"call","verdict":"allow"}],` +
		`"reference":"ACME-7","labels":["db","prod"],"approvers":["group:sre","alice"],"calls":20}`
	for _, row := range []struct {
		name   string
		req    req
		status int
		says   string
	}{
		{"start", req{token: "key", path: "/v1/tasks", body: body}, 201, `"token":"the-token"`},
		{"start by a task token", req{path: "/v1/tasks", body: body}, 403, `{"error":{"code":"denied","message":"a task token starts nothing"}}`},
		{"start by nobody", req{token: "mallory", path: "/v1/tasks", body: body}, 401, `{"error":{"code":"unidentified","message":"no valid credential"}}`},
		{"unknown field", req{token: "key", path: "/v1/tasks", body: `{"kind":"triage","tenant":"other"}`}, 400, `principals, labels, approvers, ttl_seconds, calls and scope; /tenant is none of these"`},
		{"field in another case", req{token: "key", path: "/v1/tasks", body: `{"Kind":"triage"}`}, 400, `"bad_arguments"`},
		{"field twice", req{token: "key", path: "/v1/tasks", body: `{"kind":"a","kind":"b"}`}, 400, `"bad_arguments"`},
		{"scope of another kind", req{token: "key", path: "/v1/tasks", body: `{"scope":[{"who":"x"}]}`}, 400, `"bad_arguments"`},
		{"negative time", req{token: "key", path: "/v1/tasks", body: `{"ttl_seconds":-1}`}, 400, `"ttl_seconds is out of range"`},
		{"endless time", req{token: "key", path: "/v1/tasks", body: `{"ttl_seconds":9223372036854775807}`}, 400, "out of range"},
		{"no JSON", req{token: "key", path: "/v1/tasks", body: `{`}, 400, `"bad_arguments"`},
		{"trailing", req{token: "key", path: "/v1/tasks", body: body + "{}"}, 400, `"bad_arguments"`},
		{"deep", req{token: "key", path: "/v1/tasks", body: strings.Repeat("[", 100_000)}, 400, `"bad_arguments"`},
		{"form", req{token: "key", path: "/v1/tasks", body: "kind=x", header: map[string]string{"Content-Type": "application/x-www-form-urlencoded"}}, 415, ""},
		{"oversized", req{token: "key", path: "/v1/tasks", body: `{"purpose":"` + strings.Repeat("x", maxTaskBody) + `"}`}, 413, ""},
		{"token in the query", req{path: "/v1/tasks/task-a?token=alice", method: "GET"}, 400, ""},
		{"show", req{method: "GET", path: "/v1/tasks/task-a"}, 200, `{"id":"task-a"`},
		{"show another's", req{method: "GET", path: "/v1/tasks/task-b"}, 404, `{"error":{"code":"no_task","message":"no such task"}}`},
		{"show what is no id", req{method: "GET", path: "/v1/tasks/..%2Fx"}, 404, `{"error":{"code":"no_task","message":"no such task"}}`},
		{"show as nobody", req{method: "GET", token: "mallory", path: "/v1/tasks/..%2Fx"}, 401, ""},
		{"end", req{path: "/v1/tasks/task-a/end"}, 200, `"state":"ended"`},
		{"end another's", req{path: "/v1/tasks/task-b/end"}, 404, ""},
		{"delegate", req{path: "/v1/tasks/task-a/delegate", body: body}, 201, `"parent":"task-a"`},
		{"delegate: the token", req{path: "/v1/tasks/task-a/delegate", body: body}, 201, `"token":"the-childs-token"`},
		{"delegate from another's", req{path: "/v1/tasks/task-b/delegate", body: body}, 404, `"no_task"`},
		{"delegate from what is no id", req{path: "/v1/tasks/Task/delegate", body: body}, 404, `"no_task"`},
		{"delegate as nobody", req{token: "mallory", path: "/v1/tasks/task-a/delegate", body: body}, 401, ""},
		{"delegate with a parent in the body", req{path: "/v1/tasks/task-a/delegate", body: `{"kind":"x","parent":"task-b"}`}, 400, `"bad_arguments"`},
		{"delegate by GET", req{method: "GET", path: "/v1/tasks/task-a/delegate"}, 405, ""},
		{"labels that are no list", req{token: "key", path: "/v1/tasks", body: `{"kind":"a","labels":"db"}`}, 400, `"bad_arguments"`},
		{"fewer than no calls", req{token: "key", path: "/v1/tasks", body: `{"kind":"a","calls":-1}`}, 400, `"calls is out of range"`},
		{"half a call", req{token: "key", path: "/v1/tasks", body: `{"kind":"a","calls":0.5}`}, 400, `"bad_arguments"`},
		{"end by GET", req{method: "GET", path: "/v1/tasks/task-a/end"}, 405, ""},
		{"list", req{method: "GET", path: "/v1/tasks"}, 405, ""},
		{"from a page", req{path: "/v1/tasks/task-a/end"}.with("Origin", "https://evil.example"), 403, ""},
	} {
		got := d.do(row.req)
		if got.status != row.status || !strings.Contains(got.body, row.says) || (got.status == 401) != (got.header.Get("WWW-Authenticate") == "Bearer") {
			t.Errorf("%s: %d %s", row.name, got.status, got.body)
		}
	}
	want := gateway.TaskSpec{
		Kind: "triage", Purpose: "p", Principal: "agent:x", OnBehalfOf: "u", TTL: time.Minute, Scope: []authz.ScopeRow{{Tool: "a/*", Action: "call", Verdict: "allow"}},
		Reference: "ACME-7", Labels: []string{"db", "prod"}, Approvers: []string{"group:sre", "alice"}, Calls: 20,
	}
	if len(d.started) != 3 || strings.Join(d.parents, " ") != "task-a task-a" {
		t.Fatalf("started %+v, children of %v", d.started, d.parents)
	}
	for _, got := range d.started {
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%+v\nwant %+v", got, want)
		}
	}
}
