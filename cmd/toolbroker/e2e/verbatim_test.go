package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// odd is the inside of an object that a decoder and an encoder between would not leave
// as it is: members that nobody knows, numbers in every spelling, escapes that need not
// be and characters that some escape, spaces, and an order that is nobody's.
const odd = `"z":12345678901234567890,"a" : 1.0,"exp":[1e2,1E+2,1e-7,100,-0,-0.0,0.10,3.14159265358979323846264338327950288,9007199254740993],` +
	`"esc":"\/ \u002F \u0041 \u00e9 é \ud83d\ude00 😀 \n\t \" \\ <>&'","unknown":{"Deep":[{"empty":{},"none":[],"null":null}, true,false]},` +
	`"e\u0301":"é","":"no name","sameCase":1,"samecase":2`

// unseen is what in a definition would have it withheld.
const unseen = `,"unseen":"\u0000\b\f\r\u2028\u202e"`

// What a server says, in the places where an agent reads it. NAME and URI are what is
// renamed on the way, and nothing else is.
const (
	oddTool     = `{"title":"<Odd>","x-first":{` + odd + `},"name":"NAME","inputSchema":{"type":"object","properties":{"n":{"type":"number","maximum":1e2,"multipleOf":1.0,"x":{` + odd + `}}}},"annotations":{"readOnlyHint":false,` + odd + `},"_meta":{"example.com/k":{` + odd + `}}}`
	oddResource = `{"x":{` + odd + `},"uri":"URI","name":"r","size":1,"_meta":{"example.com/k":{` + odd + `}}}`
	oddTemplate = `{"x":{` + odd + `},"uriTemplate":"URI/{id}","name":"t"}`
	oddPrompt   = `{"x":{` + odd + `},"name":"NAME","arguments":[{"name":"a",` + odd + `}]}`

	oddResult = `"content":[{` + odd + `,"type":"text","text":"\u003c\/\ud83d\ude00"},{"type":"resource_link","uri":"URI","name":"n",` + odd + `},{"type":"resource","resource":{` + odd + `,"uri":"URI","text":""}},{"type":"hologram",` + odd + `}],` +
		`"structuredContent":{` + odd + `},"_meta":{"example.com/k":{` + odd + `}},` + odd + unseen
	oddRead   = `"contents":[{` + odd + `,"uri":"URI","text":"\u0041"},{"uri":"URI","blob":"AA==",` + odd + `}],` + odd + unseen
	oddGet    = `"description":"\u0041","messages":[{"role":"user","content":{"type":"text","text":"\/",` + odd + `},` + odd + `},{"role":"user","content":{"type":"resource","resource":{"uri":"URI","text":"",` + odd + `}}}],` + odd + unseen
	oddAnswer = `"completion":{"values":["\u0041\/"],"total":1.0,"x":{` + odd + `}},` + odd + unseen
	oddFault  = `{"code":-32050,"message":"no","data":{` + odd + unseen + `}}`

	// And an agent, in a call; its numbers must be such as every reader reads alike.
	oddArgs = `{"n": 1.0,"exp":[1e2,1E+2,100,0.10],"x" : {"esc":"\/ \u002F \u00e9 é \ud83d\ude00 <>&'","unknown":[{}, [],null],"":1}}`
)

// Both of its texts, as the server has them and as the agent does.
func ownText(s string) string {
	return strings.NewReplacer("NAME", "odd", "URI", "odd://r").Replace(s)
}

func seenText(server, s string) string {
	return strings.NewReplacer("NAME", server+"__odd", "URI", server+"+odd://r").Replace(s)
}

// A tool's result and its definition, resources, templates, prompts, completions and
// errors reach an agent byte for byte, but for the names that are the gateway's to
// give, whatever era the agent and the server are of; and so do an agent's arguments
// the server.
func TestByteForByte(t *testing.T) {
	var mu sync.Mutex
	var args string
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		modern := r.URL.Path == "/modern"
		body, _ := io.ReadAll(r.Body)
		var in struct {
			ID     json.RawMessage
			Method string
			Params struct {
				Name      string
				Arguments json.RawMessage
			}
		}
		if r.Method != "POST" || json.Unmarshal(body, &in) != nil {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		d := &deed{w: w, r: r, id: in.ID}
		says := func(inside string) {
			if modern {
				inside += `,"resultType":"complete"`
			}
			d.says("{" + ownText(inside) + "}")
		}
		const can = `{"tools":{},"resources":{},"prompts":{},"completions":{}}`
		switch {
		case in.Method == "server/discover" && modern:
			says(`"supportedVersions":["2026-07-28"],"ttlMs":0,"cacheScope":"private","capabilities":` + can)
		case in.Method == "initialize" && !modern:
			d.says(`{"protocolVersion":"2025-11-25","serverInfo":{"name":"odd","version":"1"},"capabilities":` + can + `}`)
		case in.ID == nil:
			w.WriteHeader(http.StatusAccepted)
		case in.Method == "tools/list":
			says(`"tools":[` + oddTool + `,{"name":"fails","inputSchema":{"type":"object"}}]`)
		case in.Method == "resources/list":
			says(`"resources":[` + oddResource + `]`)
		case in.Method == "resources/templates/list":
			says(`"resourceTemplates":[` + oddTemplate + `]`)
		case in.Method == "prompts/list":
			says(`"prompts":[` + oddPrompt + `]`)
		case in.Method == "tools/call" && in.Params.Name == "fails":
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":%s}`, in.ID, oddFault)
		case in.Method == "tools/call":
			mu.Lock()
			args = string(in.Params.Arguments)
			mu.Unlock()
			says(oddResult)
		case in.Method == "resources/read":
			says(oddRead)
		case in.Method == "prompts/get":
			says(oddGet)
		case in.Method == "completion/complete":
			says(oddAnswer)
		default:
			d.fails(-32601)
		}
	}))
	t.Cleanup(func() { web.CloseClientConnections(); web.Close() })
	h := newHouse(t, Options{Redis: redis(t), Servers: fmt.Sprintf("  - {name: modern, url: %q}\n  - {name: legacy, url: %q}\n", web.URL+"/modern", web.URL+"/legacy"), Policy: eraRows})
	_, token := h.Task("agent:a")
	h.shows(token, "modern__odd")
	h.shows(token, "legacy__odd")
	for _, server := range []string{"modern", "legacy"} {
		for _, era := range clientEras {
			t.Run(era+" before "+server, func(t *testing.T) {
				c := newRaw(t, h.MCP, token, era, "{}")
				for _, ask := range []struct{ method, params, want string }{
					{"tools/list", ``, oddTool},
					{"resources/list", ``, oddResource},
					{"resources/templates/list", ``, oddTemplate},
					{"prompts/list", ``, oddPrompt},
					{"tools/call", `{"name":"NAME","arguments":` + oddArgs + `}`, oddResult},
					{"resources/read", `{"uri":"URI"}`, oddRead},
					{"prompts/get", `{"name":"NAME","arguments":{"a":"\u0041"}}`, oddGet},
					{"completion/complete", `{"ref":{"type":"ref/prompt","name":"NAME"},"argument":{"name":"a","value":"\/"}}`, oddAnswer},
					{"tools/call", `{"name":"` + server + `__fails","arguments":{}}`, oddFault},
				} {
					a := c.calls(t, ask.method, seenText(server, ask.params))
					want := seenText(server, ask.want)
					whole := string(a.Result)
					if ask.want == oddFault {
						// The envelope of an error is ours, its data the server's.
						whole, want = string(a.Error.Data), `{`+odd+unseen+`}`
					}
					if !strings.Contains(whole, want) {
						t.Fatalf("%s:\n%s\nis not in\n%s", ask.method, want, a.Body)
					}
					// Beside it stands what the agent's era asks for, and nothing else.
					rest := strings.Replace(whole, want, "", 1)
					for _, may := range []string{`"resultType":"complete"`, `"ttlMs":5000`, `"ttlMs":0`, `"cacheScope":"private"`} {
						if era >= "2026" {
							rest = strings.Replace(rest, may, "", 1)
						}
					}
					if left := strings.Trim(rest, "{},"); left != "" && !strings.HasSuffix(ask.method, "/list") {
						t.Errorf("%s: and there is %s", ask.method, left)
					}
					mu.Lock()
					if ask.want == oddResult && args != oddArgs {
						t.Errorf("the server was given\n%s\nand not\n%s", args, oddArgs)
					}
					mu.Unlock()
				}
			})
		}
	}
	h.Stop()
	h.Verify()
}
