package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// What changes while an agent does not listen is not lost on it: the next list shows
// it, on whatever replica; and a stream that stands again tells of what changes from
// then on.
func TestChangesWhileNobodyListens(t *testing.T) {
	var both []*sdk.Server
	var config strings.Builder
	for _, era := range serverEras {
		s := sdk.NewServer(&sdk.Implementation{Name: "s", Version: "1"}, nil)
		s.AddTool(&sdk.Tool{Name: "act", InputSchema: json.RawMessage(`{"type":"object"}`)}, func(context.Context, *sdk.CallToolRequest) (*sdk.CallToolResult, error) {
			return &sdk.CallToolResult{Content: []sdk.Content{}}, nil
		})
		web := httptest.NewServer(sdk.NewStreamableHTTPHandler(func(*http.Request) *sdk.Server { return s }, &sdk.StreamableHTTPOptions{Stateless: era >= "2026"}))
		t.Cleanup(func() { web.CloseClientConnections(); web.Close() })
		fmt.Fprintf(&config, "  - {name: s%s, url: %q}\n", era[:4], web.URL)
		both = append(both, s)
	}
	add := func(name string) {
		for _, s := range both {
			s.AddResource(&sdk.Resource{Name: name, URI: "s://" + name}, func(context.Context, *sdk.ReadResourceRequest) (*sdk.ReadResourceResult, error) {
				return &sdk.ReadResourceResult{}, nil
			})
		}
	}
	add("first") // so that they say that they have resources
	h := newHouse(t, Options{Redis: redis(t), Servers: config.String(), Policy: `
p, agent:a, acme, work, **,        read,  , allow
p, agent:a, acme, work, **,        call,  , allow
p, agent:*, *,    *,    task:work, start, , allow
`})
	b := h.Replica("r2")
	_, token := h.Task("agent:a")
	for _, h := range []*House{h, b} {
		h.shows(token, "s2026__act")
		h.shows(token, "s2025__act")
	}
	for _, era := range []string{"2026-07-28", "2025-11-25"} {
		t.Run("client of "+era, func(t *testing.T) {
			c := newRaw(t, h.MCP, token, era, "{}")
			other := c.at(b)
			listen := func(c *raw, ctx context.Context) *stream {
				if era < "2026" {
					return c.notices(t, ctx)
				}
				all := c.stream(t, ctx, "subscriptions/listen", `{"notifications":{"resourcesListChanged":true,"toolsListChanged":true}}`)
				all.next(t, "acknowledged")
				return all
			}
			shows := func(c *raw, name string) {
				t.Helper()
				until(t, name+" in the list", func() bool {
					list := c.calls(t, "resources/list", "").Body
					return strings.Contains(list, `"s2026+s://`+name+`"`) && strings.Contains(list, `"s2025+s://`+name+`"`)
				})
			}
			ctx, hangUp := context.WithCancel(t.Context())
			heard := listen(c, ctx)
			add("heard-" + era)
			heard.next(t, "notifications/resources/list_changed")
			shows(c, "heard-"+era)
			hangUp()
			heard.ends(t)

			add("unheard-" + era)
			shows(c, "unheard-"+era)
			shows(other, "unheard-"+era)

			again := listen(other, t.Context())
			add("again-" + era)
			again.next(t, "notifications/resources/list_changed")
			shows(other, "again-"+era)
			for len(again.messages) > 0 {
				if m := <-again.messages; strings.Contains(m, "tools/list_changed") {
					t.Errorf("told of a list that did not change: %s", m)
				}
			}
		})
	}
	for _, h := range []*House{h, b} {
		h.Stop()
		h.Verify()
	}
}
