package edge

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"toolbroker/gateway"
)

func many(n int) []gateway.Tool {
	all := make([]gateway.Tool, n)
	for i := range all {
		all[i] = tool(fmt.Sprintf("t%04d", i), `{"type":"object"}`)
	}
	return all
}

// Every list can be paged through, in every era, and each page says where the next
// begins.
func TestPages(t *testing.T) {
	for method, s := range map[string]gateway.Sort{"tools/list": gateway.SortTool, "resources/list": gateway.SortResource,
		"resources/templates/list": gateway.SortTemplate, "prompts/list": gateway.SortPrompt} {
		_, member := sortOf(method)
		d := open(t)
		d.house.tools = many(2*pageSize + 1)
		for i := range d.house.tools {
			d.house.tools[i].Sort = s
		}
		slices.Reverse(d.house.tools[pageSize-20 : pageSize+20]) // not every list comes in order
		for _, era := range []string{"legacy", "modern"} {
			var names []string
			cursor, pages := "", 0
			for {
				params := ""
				if cursor != "" {
					params = `"cursor":` + string(mustJSON(cursor))
				}
				r := req{body: rpc(1, method, params)}
				if era == "modern" {
					r = modernReq(method, "", params)
				}
				var out struct {
					Result map[string]json.RawMessage
				}
				if got := d.do(r); json.Unmarshal([]byte(got.body), &out) != nil || got.status != 200 {
					t.Fatalf("%d %s", got.status, got.body)
				}
				var page []struct{ Name string }
				if err := json.Unmarshal(out.Result[member], &page); err != nil || len(page) > pageSize {
					t.Fatalf("%s: %d in a page, %v", method, len(page), err)
				}
				if (out.Result["cacheScope"] != nil) != (era == "modern") {
					t.Errorf("%s %s: %s", method, era, out.Result["cacheScope"])
				}
				for _, p := range page {
					names = append(names, p.Name)
				}
				pages++
				cursor = ""
				if out.Result["nextCursor"] == nil {
					break
				}
				if err := json.Unmarshal(out.Result["nextCursor"], &cursor); err != nil || cursor == "" {
					t.Fatalf("%s: cursor %s", method, out.Result["nextCursor"])
				}
			}
			if pages != 3 || len(names) != 2*pageSize+1 || !slices.IsSorted(names) || len(slices.Compact(names)) != 2*pageSize+1 {
				t.Errorf("%s %s: %d names on %d pages", method, era, len(names), pages)
			}
		}
	}
}

// What stays in a list that changes between two pages is on one of them, once.
func TestPagesOfAListThatChanges(t *testing.T) {
	all := many(pageSize + 200)
	first, next := page(all, gateway.SortTool, "")
	after, ok := readCursor(mustJSON(next), gateway.SortTool)
	if !ok || after != first[pageSize-1].Alias {
		t.Fatalf("%q %v", after, ok)
	}
	for name, changed := range map[string][]gateway.Tool{
		"the last one is gone":      slices.Delete(slices.Clone(all), pageSize-1, pageSize),
		"earlier ones are gone":     slices.Clone(all)[100:],
		"others came before":        append([]gateway.Tool{tool("a", "{}"), tool("b", "{}")}, all...),
		"it fits one page by now":   slices.Clone(all)[pageSize-1:],
		"nothing of it is the same": {tool("a", "{}")},
	} {
		rest, more := page(changed, gateway.SortTool, after)
		var want []string
		for _, t := range changed {
			if t.Alias > after {
				want = append(want, t.Alias)
			}
		}
		var got []string
		for _, t := range rest {
			got = append(got, t.Alias)
		}
		if !slices.Equal(got, want) || more != "" {
			t.Errorf("%s: %d of %d, %q", name, len(got), len(want), more)
		}
	}
}

func TestCursorsAreOurs(t *testing.T) {
	d := open(t)
	ours := writeCursor(gateway.SortTool, "echo")
	for _, row := range []struct{ name, method, cursor string }{
		{"another list's", "prompts/list", string(mustJSON(ours))},
		{"a word", "tools/list", `"abc"`},
		{"a number", "tools/list", `1`},
		{"an object", "tools/list", `{}`},
		{"ours, padded", "tools/list", string(mustJSON(ours + "="))},
		{"ours, with a line in it", "tools/list", string(mustJSON(ours[:4] + "\n" + ours[4:]))},
		{"of nothing", "tools/list", string(mustJSON(writeCursor(gateway.SortTool, "")))},
		{"of another version", "tools/list", string(mustJSON(base64.RawURLEncoding.EncodeToString([]byte("2\ntool\necho"))))},
	} {
		if got := d.do(req{body: rpc(1, row.method, `"cursor":`+row.cursor)}); got.status != 200 || !strings.Contains(got.body, `-32602,"message":"unknown cursor"`) {
			t.Errorf("%s: %d %s", row.name, got.status, got.body)
		}
		if got := d.do(modernReq(row.method, "", `"cursor":`+row.cursor)); got.status != 400 || !strings.Contains(got.body, `-32602`) {
			t.Errorf("%s, modern: %d %s", row.name, got.status, got.body)
		}
	}
	if got := d.do(req{body: rpc(1, "tools/list", `"cursor":`+string(mustJSON(ours)))}); !strings.Contains(got.body, `[{"name":"hold"`) {
		t.Error(got.body)
	}
}

// FuzzCursor: a cursor that is taken is one that we give, and means what it meant.
func FuzzCursor(f *testing.F) {
	f.Add("echo")
	f.Add(writeCursor(gateway.SortTool, "echo"))
	f.Add("MQp0b29sCmVjaG8")
	f.Fuzz(func(t *testing.T, s string) {
		if s != "" && json.Valid(mustJSON(s)) {
			cursor := writeCursor(gateway.SortPrompt, s)
			if after, ok := readCursor(mustJSON(cursor), gateway.SortPrompt); (!ok || after != s) && len(cursor) < 2*maxURI-2 {
				t.Fatalf("%q came back as %q %v", s, after, ok)
			}
			if _, ok := readCursor(mustJSON(cursor), gateway.SortTool); ok {
				t.Fatal("another list takes it")
			}
		}
		var plain string
		if json.Unmarshal(mustJSON(s), &plain) != nil || plain == "" {
			return
		}
		if after, ok := readCursor(mustJSON(s), gateway.SortTool); ok && writeCursor(gateway.SortTool, after) != plain {
			t.Fatalf("%q is taken for %q", s, after)
		}
	})
}
