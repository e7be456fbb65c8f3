package gateway_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"toolbroker/gateway"
	"toolbroker/gateway/audit"
	"toolbroker/gateway/gatewaytest"
)

// things is a house whose server offers resources and prompts, and whose policy
// says who may have which.
func things(t testing.TB, rows string, change ...func(*gateway.Config)) *gatewaytest.House {
	h := gatewaytest.New(t, change...)
	h.Policy.Set(gatewaytest.Text + rows)
	for _, one := range []struct {
		sort        gateway.Sort
		name, alias string
	}{
		{gateway.SortResource, "file:///open/a", "files+file:///open/a"},
		{gateway.SortResource, "file:///held/a", "files+file:///held/a"},
		{gateway.SortResource, "file:///dark/a", "files+file:///dark/a"},
		{gateway.SortTemplate, "file:///open/{path}", "files+file:///open/{path}"},
		{gateway.SortPrompt, "review", "files__review"},
		{gateway.SortPrompt, "secret", "files__secret"},
	} {
		def := fmt.Sprintf(`{"name":%q,"uri":%q,"arguments":[{"name":"what"}]}`, one.alias, one.alias)
		h.Servers.Offer(gateway.Tool{Sort: one.sort, Server: "files", Name: one.name, Alias: one.alias, Kind: "http", Addr: "http://127.0.0.1:1/mcp",
			Definition: json.RawMessage(def), Hash: "sha256:" + string(one.sort) + one.name})
	}
	return h
}

const thingRows = `
p, agent:a, acme, work, files/file:///open/**, read,      ,                      allow
p, agent:a, acme, work, files/file:///held/**, read,      ,                      approve
p, agent:a, acme, work, files/file:///open/**, subscribe, ,                      allow
p, agent:a, acme, work, files/file:///open/**, complete,  ,                      allow
p, agent:a, acme, work, files/review,          get,       args.what != 'money',  allow
p, agent:a, acme, work, files/review,          complete,  ,                      allow
`

func method(m, name, args string) gateway.Call {
	c := gatewaytest.Call("a", name, args)
	c.Method = m
	return c
}

// Whatever has a server walks the one line: every method is decided by an action of
// its own, and what a task may not see answers like what is not there.
func TestEveryMethod(t *testing.T) {
	complete := func(of gateway.Sort, name, args string) gateway.Call {
		c := method(gateway.MethodComplete, name, args)
		c.Ref = of
		return c
	}
	const argument = `{"argument":{"name":"what","value":"m"}}`
	for name, row := range map[string]struct {
		call gateway.Call
		code gateway.Code
		sent string // what the server is asked about
	}{
		"a resource":                          {method(gateway.MethodRead, "files+file:///open/a", ""), "", `resources/read file:///open/a {"uri":"file:///open/a"}`},
		"a resource that needs a human":       {method(gateway.MethodRead, "files+file:///held/a", ""), gateway.PendingApproval, ""},
		"a hidden resource":                   {method(gateway.MethodRead, "files+file:///dark/a", ""), gateway.UnknownTool, ""},
		"no resource":                         {method(gateway.MethodRead, "files+file:///none", ""), gateway.UnknownTool, ""},
		"a tool as a resource":                {method(gateway.MethodRead, "files__read", ""), gateway.UnknownTool, ""},
		"a prompt":                            {method(gateway.MethodGet, "files__review", `{"what":"code"}`), "", `prompts/get review {"what":"code"}`},
		"a prompt, refused by its arguments":  {method(gateway.MethodGet, "files__review", `{"what":"money"}`), gateway.Denied, ""},
		"a prompt, with what it declares not": {method(gateway.MethodGet, "files__review", `{"what":"code","more":"x"}`), gateway.BadArguments, ""},
		"a prompt, with a number":             {method(gateway.MethodGet, "files__review", `{"what":1}`), gateway.BadArguments, ""},
		"a prompt, twice":                     {method(gateway.MethodGet, "files__review", `{"what":"code","what":"money"}`), gateway.BadArguments, ""},
		"a hidden prompt":                     {method(gateway.MethodGet, "files__secret", `{"what":1}`), gateway.UnknownTool, ""},
		"a prompt as a tool":                  {method(gateway.MethodCall, "files__review", `{}`), gateway.UnknownTool, ""},
		"a completion of a prompt":            {complete(gateway.SortPrompt, "files__review", argument), "", `completion/complete review ` + argument},
		"a completion of a template":          {complete(gateway.SortTemplate, "files+file:///open/{path}", argument), "", `completion/complete file:///open/{path} ` + argument},
		"a completion of a hidden prompt":     {complete(gateway.SortPrompt, "files__secret", argument), gateway.UnknownTool, ""},
		"a completion of nothing":             {complete("", "files__review", argument), gateway.BadArguments, ""},
		"a completion that names no argument": {complete(gateway.SortPrompt, "files__review", `{"argument":"what"}`), gateway.BadArguments, ""},
		"a method that is none":               {method("resources/write", "files+file:///open/a", ""), gateway.BadArguments, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := things(t, thingRows)
			_, err := h.Handle(t.Context(), row.call, nil)
			if got := codeOf(err); got != row.code {
				t.Errorf("refused %q (%v), want %q", got, err, row.code)
			}
			var sent []string
			for _, f := range h.Servers.Sent() {
				sent = append(sent, fmt.Sprintf("%s %s %s", f.Method, f.Tool.Name, f.Args))
			}
			if got := strings.Join(sent, "\n"); got != row.sent {
				t.Errorf("sent %s, want %s", got, row.sent)
			}
			for _, e := range h.Lines() {
				if e.Call != nil && e.Call.ID != audit.Unknown && e.Call.Method != row.call.Method {
					t.Errorf("%s is on record as %s", row.call.Method, e.Call.Method)
				}
			}
		})
	}
}

func codeOf(err error) gateway.Code {
	if err == nil {
		return ""
	}
	return gateway.CodeOf(err)
}

// A prompt declares what its definition says by that very name, and nothing else.
func TestAPromptsArguments(t *testing.T) {
	h := things(t, thingRows)
	h.Servers.Offer(gateway.Tool{Sort: gateway.SortPrompt, Server: "files", Name: "review", Alias: "files__odd", Kind: "http", Hash: "sha256:odd",
		Definition: json.RawMessage(`{"name":"files__odd","arguments":[{"name":"what"}],"Arguments":[{"name":"sum"}]}`)})
	for args, code := range map[string]gateway.Code{`{"what":"x"}`: "", `{"what":"x","sum":"1"}`: gateway.BadArguments} {
		if _, err := h.Handle(t.Context(), method(gateway.MethodGet, "files__odd", args), nil); codeOf(err) != code {
			t.Errorf("%s: %v", args, err)
		}
	}
}

// A read that a human agreed to reads what they saw, once.
func TestAnApprovedRead(t *testing.T) {
	h := things(t, thingRows)
	call := method(gateway.MethodRead, "files+file:///held/a", "")
	h.Handle(t.Context(), call, nil)
	approveAll(t, h, "bob")
	if _, err := h.Handle(t.Context(), call, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Handle(t.Context(), call, nil); codeOf(err) != gateway.PendingApproval {
		t.Errorf("again: %v", err)
	}
	if n := len(h.Servers.Sent()); n != 1 {
		t.Errorf("%d were sent", n)
	}
}

// approveAll approves everything that is pending.
func approveAll(t testing.TB, h *gatewaytest.House, by string) {
	t.Helper()
	all, err := h.Approvals.List(t.Context(), "acme")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		if r.State != gateway.ApprovalPending {
			continue
		}
		if _, err := h.Vote(t.Context(), h.Operators.Op(by), r.Tenant, r.ID, true, r.Digest, ""); err != nil {
			t.Fatal(err)
		}
	}
}

// Lists show what could be used, and nothing else; so does the digest by which
// notices are sent.
func TestListsOfEverySort(t *testing.T) {
	h := things(t, thingRows)
	as := gateway.Credential{Bearer: gateway.NewSecret("a")}
	digests := map[gateway.Sort]string{}
	for sort, want := range map[gateway.Sort]string{
		gateway.SortResource: "files+file:///held/a files+file:///open/a", gateway.SortTemplate: "files+file:///open/{path}", gateway.SortPrompt: "files__review",
	} {
		all, err := h.List(t.Context(), as, sort, gateway.CallRef{})
		var names []string
		for _, one := range all {
			names = append(names, one.Alias)
		}
		if got := strings.Join(sorted(names), " "); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", sort, got, err, want)
		}
		digests[sort], _ = h.Shown(t.Context(), as, sort)
	}
	h.Servers.Redefine("files__secret")
	if again, _ := h.Shown(t.Context(), as, gateway.SortPrompt); again != digests[gateway.SortPrompt] {
		t.Error("a hidden prompt's change shows")
	}
	h.Servers.Redefine("files__review")
	if again, _ := h.Shown(t.Context(), as, gateway.SortPrompt); again == digests[gateway.SortPrompt] {
		t.Error("a prompt's change does not show")
	}
}

func sorted(all []string) []string {
	out := append([]string(nil), all...)
	for i := range out {
		for j := i; j > 0 && out[j] < out[j-1]; j-- {
			out[j], out[j-1] = out[j-1], out[j]
		}
	}
	return out
}

// A list that was shown before is still what may be used now: by this workload, of
// this catalogue, under this policy.
func TestListsAreOfNow(t *testing.T) {
	h := gatewaytest.New(t)
	shown := func(bearer, task string) string {
		all, err := h.List(t.Context(), gateway.Credential{Bearer: gateway.NewSecret(bearer), Task: task}, gateway.SortTool, gateway.CallRef{})
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, one := range all {
			if one.Server == "files" {
				names = append(names, one.Name)
			}
		}
		return strings.Join(names, " ")
	}
	twice := func(bearer, task, want string) {
		t.Helper()
		for range 2 {
			if got := shown(bearer, task); got != want {
				t.Errorf("%s: %s, want %s", bearer, got, want)
			}
		}
	}
	twice("a", "", "pay read slow write")
	h.Policy.Set(strings.Replace(gatewaytest.Text, "files/slow,    call,  ,                    allow", "files/slow,    call,  ,                    deny", 1))
	twice("a", "", "pay read write")
	h.Servers.Offer(gateway.Tool{Server: "files", Name: "file:///new", Alias: "files__new", Hash: "sha256:new"})
	h.Policy.Set(gatewaytest.Text + "p, agent:a, acme, work, files/file:///new, call, , allow\n")
	twice("a", "", "pay read slow write file:///new")

	task, token, err := h.StartTask(t.Context(), as("key"), spec(func(s *gateway.TaskSpec) { s.Principals = []string{"agent:c"} }))
	if err != nil {
		t.Fatal(err)
	}
	own := shown(token.Reveal(), "")
	twice("c", task.ID, "")
	twice(token.Reveal(), "", own)
	if own == "" {
		t.Error("the task's own workload sees nothing")
	}
}

// A subscription is decided when it begins and at each change.
func TestFollow(t *testing.T) {
	h := things(t, thingRows)
	if err := h.Follow(t.Context(), method("", "files+file:///held/a", ""), func() {}); codeOf(err) != gateway.Denied {
		t.Errorf("one that may be read and not followed: %v", err)
	}
	if err := h.Follow(t.Context(), method("", "files+file:///dark/a", ""), func() {}); codeOf(err) != gateway.UnknownTool {
		t.Errorf("a hidden one: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	heard := 0
	done := make(chan error)
	go func() {
		done <- h.Follow(ctx, method("", "files+file:///open/a", ""), func() { mu.Lock(); defer mu.Unlock(); heard++ })
	}()
	for h.Servers.Changed("file:///open/a") == 0 {
	}
	mu.Lock()
	before := heard
	mu.Unlock()
	if before == 0 {
		t.Error("a change was not heard")
	}
	h.Policy.Set(gatewaytest.Text)
	h.Servers.Changed("file:///open/a")
	mu.Lock()
	if heard != before {
		t.Error("a change is heard that policy allows no longer")
	}
	mu.Unlock()
	h.Policy.Set(gatewaytest.Text + thingRows)
	if _, err := h.Tasks.End(t.Context(), "acme", "task-a", gateway.Ending{As: gateway.TaskEnded, By: "x"}); err != nil {
		t.Fatal(err)
	}
	<-done // it ends with its task
	cancel()
	if h.Leases.Live() != 0 {
		t.Error("a lease lives on")
	}
}

// In a search catalogue the wrapped call is the call: the same decision, digest and
// events, and nothing is found that a list would not show.
func TestSearch(t *testing.T) {
	h := things(t, thingRows, func(c *gateway.Config) { c.Search = true })
	as := gateway.Credential{Bearer: gateway.NewSecret("a")}
	all, err := h.List(t.Context(), as, gateway.SortTool, gateway.CallRef{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tool := range all {
		if !strings.HasPrefix(tool.Alias, "toolbroker__") {
			t.Errorf("%s is listed", tool.Alias)
		}
	}
	r, err := h.Call(t.Context(), "toolbroker__search_tools", `{"query":"files","limit":20}`)
	if err != nil || !strings.Contains(string(r.Raw), "files__read") || strings.Contains(string(r.Raw), "files__hidden") {
		t.Errorf("found %s, %v", r.Raw, err)
	}
	// In a text of ours, too, a definition says nothing in our name.
	h.Servers.Offer(gateway.Tool{Server: "files", Name: "read", Alias: "files__read2", Kind: "http", Hash: "sha256:read2",
		Definition: json.RawMessage(`{"name":"files__read2","n":1.50,"_meta":{"io.toolbroker/a":{"b":1},"IO.Toolbroker/x":1,"x":[{"io.tool\u0062roker/y":1,"z":[]}]}}`)})
	r, err = h.Call(t.Context(), "toolbroker__search_tools", `{"query":"read2"}`)
	var found struct {
		Structured struct {
			Tools []json.RawMessage `json:"tools"`
		} `json:"structuredContent"`
	}
	if err != nil || strings.Contains(strings.ToLower(string(r.Raw)), "io.tool") || json.Unmarshal(r.Raw, &found) != nil || len(found.Structured.Tools) != 1 ||
		string(found.Structured.Tools[0]) != `{"name":"files__read2","n":1.50,"_meta":{"x":[{"z":[]}]}}` {
		t.Errorf("found %s, %v", r.Raw, err)
	}
	for _, row := range []struct {
		direct, wrapped string
		code            gateway.Code
	}{
		{"files__read {\"path\":\"x\"}", `{"name":"files__read","arguments":{"path":"x"}}`, ""},
		{"files__hidden {}", `{"name":"files__hidden","arguments":{}}`, gateway.UnknownTool},
		{"files__pay {\"amount\":1000}", `{"name":"files__pay","arguments":{"amount":1000}}`, gateway.PendingApproval},
		{"", `{"name":"toolbroker__call_tool","arguments":{"name":"files__read","arguments":{}}}`, gateway.UnknownTool},
		{"", `{"name":"files__read","Name":"files__hidden","arguments":{}}`, gateway.BadArguments},
		{"", `{"arguments":{}}`, gateway.BadArguments},
	} {
		name, args, _ := strings.Cut(row.direct, " ")
		digests := map[string]bool{}
		if name != "" {
			_, err = h.Call(t.Context(), name, args)
			digests[last(h)] = true
		}
		_, err2 := h.Call(t.Context(), "toolbroker__call_tool", row.wrapped)
		digests[last(h)] = true
		if codeOf(err2) != row.code || name != "" && (len(digests) != 1 || codeOf(err) != row.code) {
			t.Errorf("%s: %v, %v: %v", row.wrapped, err, err2, digests)
		}
	}
	if _, err := things(t, thingRows).Call(t.Context(), "toolbroker__call_tool", `{"name":"files__read","arguments":{}}`); codeOf(err) != gateway.UnknownTool {
		t.Errorf("where there is no such catalogue: %v", err)
	}
}

// last is what the last event about a call says of it.
func last(h *gatewaytest.House) string {
	lines := h.Lines()
	for i := len(lines) - 1; i >= 0; i-- {
		if e := lines[i]; e.Call != nil && e.Tool != nil {
			return fmt.Sprint(e.Call.Method, *e.Tool, e.Args, e.Decision != nil && e.Decision.Effect == "allow")
		}
	}
	return ""
}

// A tool that its server has only for clients that can be asked while they call is shown
// to no other, nor found; a call of it says why it is refused, and is not sent.
func TestToolsForClientsThatCanBeAsked(t *testing.T) {
	h := gatewaytest.New(t, func(c *gateway.Config) { c.Search = true })
	plain := gatewaytest.New(t)
	for name, needs := range map[string][]string{"form": {"elicitation.form"}, "page": {"elicitation.url"}, "either": {"elicitation.form", "roots"}, "model": {"sampling"}, "any": nil} {
		for _, house := range []*gatewaytest.House{h, plain} {
			house.Servers.Offer(gateway.Tool{Server: "files", Name: "file:///" + name, Alias: "files__" + name, Kind: "http", Hash: "sha256:" + name, Needs: needs,
				Schema: json.RawMessage(`{"type":"object"}`), Definition: json.RawMessage(`{"name":"files__` + name + `","description":"findme"}`)})
			house.Policy.Set("p, agent:a, acme, work, files/file:///**, *, , allow\np, agent:a, acme, work, files/**, sample, , deny\n")
		}
	}
	for who, c := range map[string]struct{ protocol, caps, want string }{
		"everything":     {"2025-11-25", everyCap, "any either form page"}, // but sampling, of which policy grants nothing
		"an old form":    {"2025-06-18", `{"elicitation":{}}`, "any either form"},
		"a page":         {"2025-11-25", `{"elicitation":{"url":{}}}`, "any page"},
		"roots":          {"2025-11-25", `{"roots":{"listChanged":true}}`, "any either"},
		"a model":        {"2025-11-25", `{"sampling":{}}`, "any"},
		"nothing":        {"2025-11-25", `{}`, "any"},
		"of another era": {"2026-07-28", everyCap, "any"},
	} {
		for _, house := range []*gatewaytest.House{h, plain} {
			call := asking("a", "", `{}`, c.protocol)
			call.Caps = json.RawMessage(c.caps)
			if c.protocol < "2026" {
				id := "s-" + strings.ReplaceAll(who, " ", "-")
				if err := house.OpenSession(t.Context(), call.Credential, id, c.protocol, call.Caps); err != nil {
					t.Fatal(err)
				}
				call.Credential.Session = id
			}
			var could []string
			for _, name := range []string{"any", "either", "form", "model", "page"} {
				call.Name = "files__" + name
				before := len(house.Servers.Sent())
				_, err := house.Handle(t.Context(), call, nil)
				sent := len(house.Servers.Sent()) - before
				r, refused := errors.AsType[*gateway.Refusal](err)
				switch {
				case err == nil && sent == 1:
					could = append(could, name)
				case !refused || r.Code != gateway.Downstream || r.InDoubt || sent > 0 || !strings.Contains(r.Say, "only for clients that can be asked"):
					t.Errorf("%s, %s: %v", who, name, err)
				}
			}
			if got := strings.Join(could, " "); got != c.want {
				t.Errorf("%s could call %s, want %s", who, got, c.want)
			}
			var seen []string
			if house == plain {
				all, err := house.List(t.Context(), call.Credential, gateway.SortTool, gateway.CallRef{Protocol: c.protocol})
				if err != nil {
					t.Fatal(err)
				}
				for _, tool := range all {
					if tool.Server == "files" {
						seen = append(seen, strings.TrimPrefix(tool.Name, "file:///"))
					}
				}
			} else {
				call.Name, call.Args = "toolbroker__search_tools", json.RawMessage(`{"query":"findme","limit":20}`)
				r, err := house.Handle(t.Context(), call, nil)
				if err != nil {
					t.Fatal(err)
				}
				for _, name := range []string{"any", "either", "form", "model", "page"} {
					if strings.Contains(string(r.Raw), "files__"+name) {
						seen = append(seen, name)
					}
				}
			}
			if got := strings.Join(sorted(seen), " "); got != c.want {
				t.Errorf("%s sees %s, want %s", who, got, c.want)
			}
		}
	}
	// What a client hears of is what it sees.
	modern := gateway.Credential{Bearer: gateway.NewSecret("a")}
	asked := modern
	asked.Session = "s-everything"
	one, _ := plain.Shown(t.Context(), modern, gateway.SortTool)
	other, _ := plain.Shown(t.Context(), asked, gateway.SortTool)
	if one == other || one == "" {
		t.Error("it is told the same as who sees more")
	}
}
