package config

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// Every snippet of docs/identity.md is taken as it stands.
func TestIdentityPageLoads(t *testing.T) {
	page, err := os.ReadFile("../../../../docs/identity.md")
	if err != nil {
		t.Fatal(err)
	}
	around := strings.NewReplacer("[acme]\nop", "[acme, globex]\nop").Replace(small) +
		"  - name: bob\n    password_hash: $argon2id$v=19$m=65536,t=3,p=2$c2FsdA$aGFzaA\n    tenants: [acme]\n" +
		"agent: {tls: {cert: a, key: b}}\n" +
		"task_kinds: [{name: triage, scope: [{tool: t, action: call, verdict: allow}]}]\n"
	kinds := map[string]bool{}
	for _, snippet := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		text := snippet[1]
		if strings.HasPrefix(text, "    - ") {
			text = "identity:\n  issuers:\n" + text
		}
		if !strings.HasPrefix(text, "identity:") {
			continue
		}
		c, problems := Parse("identity.md", []byte(around+text))
		for _, p := range problems {
			t.Errorf("%v\nin\n%s", p, snippet[1])
		}
		if c != nil {
			for _, is := range c.Identity.Issuers {
				kinds[is.Kind] = true
			}
		}
	}
	for _, k := range issuerKinds {
		if !kinds[k] {
			t.Errorf("no snippet of kind %s", k)
		}
	}
}
