package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What a server may list: definitions that no client can read, and legal ones that some
// cannot. Each is a thing's members beside its name.
var listed = map[string]struct {
	key, member string
	base        map[string]string
	unfit, odd  map[string]string
}{
	"tools/list": {"name", "tools", map[string]string{"inputSchema": `{"type":"object"}`}, map[string]string{
		"description-number": `"description":5`, "description-null": `"description":null`, "title-number": `"title":7`,
		"annotations-text": `"annotations":"x"`, "annotations-null": `"annotations":null`, "hint-text": `"annotations":{"readOnlyHint":"yes"}`, "hint-title": `"annotations":{"title":3}`,
		"icons-text": `"icons":"x"`, "icon-without-src": `"icons":[{"a":1}]`, "icon-theme": `"icons":[{"src":"https://x/y.png","theme":"blue"}]`, "icon-sizes": `"icons":[{"src":"https://x/y.png","sizes":"48x48"}]`,
		"task-support": `"execution":{"taskSupport":"sometimes"}`, "execution-text": `"execution":"x"`, "meta-list": `"_meta":[]`, "meta-null": `"_meta":null`, "meta-huge": `"_meta":{"n":1e999}`,
		"input-true": `"inputSchema":true`, "input-no-type": `"inputSchema":{}`, "input-types": `"inputSchema":{"type":["object"]}`, "input-required": `"inputSchema":{"type":"object","required":"a"}`,
		"input-properties": `"inputSchema":{"type":"object","properties":[]}`, "input-null": `"inputSchema":{"type":"object","properties":null}`, "input-property": `"inputSchema":{"type":"object","properties":{"a":"string"}}`,
		"input-defs": `"inputSchema":{"$schema":"http://json-schema.org/draft-07/schema#","type":"object","$defs":5}`, "input-number": `"inputSchema":{"type":"object","properties":{"a":{"default":1e350}}}`,
		"output-null": `"outputSchema":null`, "output-true": `"outputSchema":true`, "defer": `"defer_loading":"x"`,
		"other-case": `"NAME":"good__fine"`, "other-case-too": `"Description":5`, "other-case-below": `"inputSchema":{"type":"object","Required":5}`,
	}, map[string]string{
		"input-property-true": `"inputSchema":{"type":"object","properties":{"a":true,"b":false}}`, "output-array": `"outputSchema":{"type":"array"}`, "output-any": `"outputSchema":{"anyOf":[{"type":"object"}]}`,
		"output-no-type": `"outputSchema":{}`, "output-types": `"outputSchema":{"type":["object","null"]}`, "output-property": `"outputSchema":{"type":"object","properties":{"a":true}}`,
		"output-reference": `"outputSchema":{"type":"object","properties":{"a":{"$ref":"https://x.example/y"}}}`, "output-dialect": `"outputSchema":{"type":"object","properties":{"a":{"$ref":"https://json-schema.org/draft/2020-12/schema"}}}`,
		"output-pattern": `"outputSchema":{"type":"object","properties":{"a":{"type":"string","pattern":"(?i)a"}}}`, "output-bad-pattern": `"outputSchema":{"type":"object","properties":{"a":{"pattern":"("}}}`,
		"output-brace": `"outputSchema":{"type":"object","properties":{"a":{"pattern":"a{"}}}`, "output-enum": `"outputSchema":{"type":"object","properties":{"a":{"enum":[]}}}`,
		"output-nullable": `"outputSchema":{"type":"object","properties":{"a":{"nullable":true}}}`, "output-id": `"outputSchema":{"type":"object","id":"x"}`, "output-async": `"outputSchema":{"type":"object","properties":{"a":{"$async":true}}}`,
		"output-proto": `"outputSchema":{"type":"object","properties":{"__proto__":{"type":"string"}}}`, "output-type": `"outputSchema":{"type":"objct"}`, "meta-proto": `"_meta":{"__proto__":{"a":1}}`,
		"output-mail":  `"outputSchema":{"type":"object","properties":{"a":{"type":"string","pattern":"^(?!\\.)(?!.*\\.\\.)([A-Za-z0-9_'+\\-\\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\\-]*\\.)+[A-Za-z]{2,}$"}}}`,
		"output-whole": `"outputSchema":{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object","properties":{"a":{"anyOf":[{"$ref":"#/$defs/b"},{"type":"null"}],"default":null}},"required":["a"],"$defs":{"b":{"type":"object","additionalProperties":false,"properties":{"c":{"type":"array","items":{"type":"string","format":"date-time","pattern":"^[0-9]{4}-\\d\\d$"}}}}}}`,
		"unknown":      `"unknown":[{"name":5}],"arguments":7`, "nested": `"x":` + strings.Repeat("[", 200) + strings.Repeat("]", 200),
	}},
	"resources/list": {"uri", "resources", map[string]string{"name": `"n"`}, annotated(map[string]string{
		"size-text": `"size":"x"`, "size-fraction": `"size":-1.5`, "no-name": `"name":null`, "other-case": `"URI":"good+good://fine"`,
	}), annotatedOddly(map[string]string{"size-huge": `"size":1e300`, "size-float": `"size":1.0`, "size-negative": `"size":-1`})},
	"resources/templates/list": {"uriTemplate", "resourceTemplates", map[string]string{"name": `"n"`}, annotated(map[string]string{}), annotatedOddly(map[string]string{})},
	"prompts/list": {"name", "prompts", nil, map[string]string{
		"arguments-object": `"arguments":{}`, "arguments-null": `"arguments":null`, "argument-text": `"arguments":["x"]`, "argument-without-name": `"arguments":[{"description":"x"}]`,
		"argument-required": `"arguments":[{"name":"x","required":"yes"}]`, "argument-case": `"arguments":[{"name":"x","Required":5}]`, "description": `"description":4`, "icons": `"icons":[5]`,
	}, map[string]string{"unknown": `"arguments":[{"name":"x","type":5}],"inputSchema":5`}},
}

func annotated(more map[string]string) map[string]string {
	for name, members := range map[string]string{
		"mime": `"mimeType":5`, "priority": `"annotations":{"priority":5}`, "audience": `"annotations":{"audience":["robot"]}`, "audience-text": `"annotations":{"audience":"user"}`,
		"date-number": `"annotations":{"lastModified":5}`, "description": `"description":[]`, "icons": `"icons":{}`, "meta": `"_meta":"x"`, "annotations": `"annotations":null`,
	} {
		more[name] = members
	}
	return more
}

func annotatedOddly(more map[string]string) map[string]string {
	more["date-word"], more["date-only"], more["unknown"] = `"annotations":{"lastModified":"yesterday"}`, `"annotations":{"lastModified":"2026-01-01","priority":1}`, `"x":null`
	return more
}

// lister is a server that only lists, by what it says at its greeting in one era.
func lister(t *testing.T, modern bool, things func(list string) map[string]string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var m struct {
			ID     json.RawMessage
			Method string
		}
		if r.Method != http.MethodPost || json.NewDecoder(r.Body).Decode(&m) != nil {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		if m.ID == nil {
			w.WriteHeader(http.StatusAccepted)
			return
		}
		const can = `"capabilities":{"tools":{},"resources":{},"prompts":{}},"serverInfo":{"name":"s","version":"1"}`
		out := `"error":{"code":-32601,"message":"no"}`
		switch l, ok := listed[m.Method]; {
		case ok:
			var all []string
			for name, members := range things(m.Method) {
				if l.key != "name" {
					name = "good://" + name
				}
				if l.key == "uriTemplate" {
					name += "/{x}"
				}
				thing := fmt.Sprintf(`{%q:%q`, l.key, name)
				for member, value := range l.base {
					if !strings.Contains(members, `"`+member+`":`) {
						thing += fmt.Sprintf(`,%q:%s`, member, value)
					}
				}
				if members != "" {
					thing += "," + members
				}
				all = append(all, thing+"}")
			}
			out = fmt.Sprintf(`"result":{%q:[%s],"resultType":"complete","ttlMs":0,"cacheScope":"private"}`, l.member, strings.Join(all, ","))
		case m.Method == "initialize" && !modern:
			out = `"result":{"protocolVersion":"2025-11-25",` + can + `}`
		case m.Method == "server/discover" && modern:
			out = `"result":{"supportedVersions":["2026-07-28"],"resultType":"complete","ttlMs":0,"cacheScope":"private",` + can + `}`
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,%s}`, m.ID, out)
	}))
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s.URL
}

// One server's definitions cost no client the list, and no other server its place in
// it; what is withheld is there for an admin to see.
func TestNoDefinitionBreaksAList(t *testing.T) {
	npm(t)
	hostile := func(list string) map[string]string {
		all := map[string]string{}
		for name, members := range listed[list].unfit {
			all[name] = members
		}
		for name, members := range listed[list].odd {
			all[name] = members
		}
		return all
	}
	fine := func(string) map[string]string { return map[string]string{"fine": ""} }
	h := newHouse(t, Options{Policy: `
p, agent:a, acme, work, **, *, , allow
p, agent:*, *, *, task:work, start, , allow
`, Servers: fmt.Sprintf("  - {name: odd, url: %q}\n  - {name: old, url: %q}\n  - {name: good, url: %q}\n", lister(t, true, hostile), lister(t, false, hostile), lister(t, false, fine))})
	_, token := h.Task("agent:a")
	want := map[string][]string{}
	for of, list := range map[string]string{"tools": "tools/list", "resources": "resources/list", "templates": "resources/templates/list", "prompts": "prompts/list"} {
		alias := func(server, name string) string {
			switch of {
			case "resources":
				return server + "+good://" + name
			case "templates":
				return server + "+good://" + name + "/{x}"
			}
			return server + "__" + name
		}
		want[of] = append(want[of], alias("good", "fine"))
		for name := range listed[list].odd {
			want[of] = append(want[of], alias("odd", name), alias("old", name))
		}
		slices.Sort(want[of])
	}
	agents := map[string]func() agent{
		"typescript v1/2025-11-25": func() agent {
			return scripted(t, "2025-11-25", []string{"TOKEN=" + token}, "agent.mjs", "v1", h.MCP, "2025-11-25")
		},
	}
	for _, era := range []string{"2025-11-25", "2026-07-28"} {
		agents["mcp-go/"+era] = func() agent { return mcpGo(t, h.MCP, token, era) }
		agents["go-sdk/"+era] = func() agent { return goSDK(t, h.MCP, token, era) }
		agents["typescript v2/"+era] = func() agent {
			return scripted(t, era, []string{"TOKEN=" + token}, "agent.mjs", "v2", h.MCP, era)
		}
	}
	for name, connect := range agents {
		t.Run(name, func(t *testing.T) {
			a := connect()
			for of, names := range want {
				got, err := a.more(t.Context(), of)
				if of == "tools" {
					got, err = a.list(t.Context())
				}
				got = slices.DeleteFunc(got, func(name string) bool { return strings.HasPrefix(name, "toolbroker__") })
				slices.Sort(got)
				if err != nil || !slices.Equal(got, names) {
					t.Errorf("%s: %.300v, sees\n%v\nnot\n%v", of, err, got, names)
				}
			}
		})
	}
	secret := filepath.Join(t.TempDir(), "password")
	write(t, secret, password)
	admin := exec.Command(binary, "tools", "list", "--withheld", "--tenant", "acme", "--operator", "alice", "--console", h.Console, "--password-file", secret)
	out, err := admin.CombinedOutput()
	if err != nil {
		t.Fatalf("tools list: %v\n%s", err, out)
	}
	n := 0
	for list := range listed {
		n += 2 * len(listed[list].unfit)
	}
	if got := strings.Count(string(out), "it cannot be used: "); got != n {
		t.Errorf("%d of %d are withheld where an admin sees it:\n%s", got, n, out)
	}
}
