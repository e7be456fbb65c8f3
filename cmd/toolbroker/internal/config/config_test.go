package config

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const example = "../../../../config.example.yaml"

func TestExampleLoads(t *testing.T) {
	c, problems := Load(example)
	for _, p := range problems {
		t.Error(p)
	}
	if c == nil {
		t.FailNow()
	}
	if c.Servers[0].Credential.TTL != 5*time.Minute || c.Servers[1].Timeout != time.Minute || c.Agent.MaxBody != 4<<20 {
		t.Errorf("read other values than the file holds: %+v", c)
	}
	if !strings.HasPrefix(c.Hash, "sha256:") || !strings.HasPrefix(string(c.Policy.File), "/") {
		t.Errorf("hash %q, policy %q", c.Hash, c.Policy.File)
	}
}

func TestExampleIsComplete(t *testing.T) {
	text, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	for key := range settings(reflect.TypeFor[Config](), "") {
		name := key[strings.LastIndex(key, ".")+1:]
		line := regexp.MustCompile(`(?m)^(.*\n)\s*(- )?#?(- )?` + name + `:`)
		found := line.FindSubmatch(text)
		if found == nil {
			t.Errorf("%s stands nowhere in config.example.yaml", key)
		}
	}
}

// settings lists every setting, as a dotted key.
func settings(t reflect.Type, prefix string) map[string]bool {
	all := map[string]bool{}
	for f := range t.Fields() {
		name := f.Tag.Get("yaml")
		if name == "" || name == "-" {
			continue
		}
		all[prefix+name] = true
		ft := f.Type
		if ft.Kind() == reflect.Slice {
			ft = ft.Elem()
		}
		if ft.Kind() == reflect.Struct && ft != reflect.TypeFor[time.Time]() {
			for k := range settings(ft, prefix+name+".") {
				all[k] = true
			}
		}
	}
	return all
}

// The smallest file that is accepted.
const small = `data_dir: data
redis: embedded
policy: {file: policy.csv}
tenants: [acme]
operators:
  - name: alice
    password_hash: $argon2id$v=19$m=65536,t=3,p=2$c2FsdA$aGFzaA
    tenants: [acme]
`

func TestSmallestFileStays(t *testing.T) {
	c, problems := Parse("x/config.yaml", []byte(small))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if c.Agent.Listen != "127.0.0.1:8080" || c.Console.Listen != "127.0.0.1:8081" || !c.Redis.Embedded ||
		!strings.HasSuffix(string(c.Policy.File), "/x/policy.csv") || !strings.HasSuffix(string(c.Audit.Dir), "/x/data/audit") {
		t.Errorf("%+v", c)
	}
}

func TestProblemsNameLineAndWayOut(t *testing.T) {
	server := small + "vault: {address: 'http://127.0.0.1:8200', token_file: t, policies: [p]}\nservers:\n  - name: s\n"
	for name, tt := range map[string]struct{ text, want string }{
		"unknown key":             {small + "redsi: embedded\n", `c.yaml:9: error: redsi: unknown key; did you mean "redis"?`},
		"unknown nested key":      {small + "agent:\n  listn: x\n", `c.yaml:10: error: agent.listn: unknown key; did you mean "listen"?`},
		"far from any key":        {small + "log: {zzzzzzzz: 1}\n", `c.yaml:9: error: log.zzzzzzzz: unknown key; there are level`},
		"twice":                   {small + "tenants: [b]\n", `c.yaml:9: error: tenants: is set twice; it stands at line 4 already`},
		"no value":                {small + "agent:\n", `c.yaml:9: error: agent: has no value; give it a value or leave the key out`},
		"duration without unit":   {small + "approvals: {hold: 25}\n", `c.yaml:9: error: approvals.hold: "25" is not a duration; write a number with a unit, such as 30s, 10m or 1h`},
		"hold too long":           {small + "approvals:\n  hold: 1m\n", `c.yaml:10: error: approvals.hold: 1m0s is out of range; write 0s to 25s: clients give up on a call that answers later`},
		"size":                    {small + "agent: {max_body: 4MB}\n", `c.yaml:9: error: agent.max_body: "4MB" is not a size; write bytes, or a number with KiB, MiB or GiB`},
		"bool":                    {small + "audit: {sync_outcomes: yes}\n", `c.yaml:9: error: audit.sync_outcomes: "yes" is not a yes or no; write true or false`},
		"list":                    {small + "servers: none\n", `c.yaml:9: error: servers: is not a list; write it as [a, b] or as lines that begin with -`},
		"bad word":                {small + "log: {level: inof}\n", `c.yaml:9: error: log.level: "inof" is not one of those known; did you mean "info"?`},
		"plaintext off loopback":  {small + "agent:\n  listen: 0.0.0.0:80\n", `c.yaml:10: error: agent.listen: "0.0.0.0:80" would serve plaintext off loopback; set tls, or name in tls_proxy what terminates TLS in front, or listen on 127.0.0.1`},
		"every interface":         {small + "console:\n  listen: :80\n", `plaintext off loopback`},
		"management too":          {small + "management: {listen: '10.0.0.1:9'}\n", `plaintext off loopback`},
		"same address":            {small + "console: {listen: '127.0.0.1:8080'}\n", `c.yaml:9: error: console.listen: 127.0.0.1:8080 is agent's address already; every listener has an address of its own`},
		"no port":                 {small + "agent: {listen: localhost}\n", `"localhost" is not an address`},
		"nobody's word":           {small + "console: {trust_forwarded: true}\n", `c.yaml:9: error: console.trust_forwarded: there is no proxy`},
		"half a certificate":      {small + "agent: {tls: {cert: a}}\n", `c.yaml:9: error: agent.tls: needs both cert and key`},
		"other word for embedded": {strings.Replace(small, "embedded", "embeded", 1), `c.yaml:2: error: redis: "embeded" is no Redis; write`},
		"plaintext redis":         {strings.Replace(small, "redis: embedded", "redis: {url: 'redis://10.0.0.1:6379'}", 1), `c.yaml:2: error: redis.url: would speak plaintext off loopback; use rediss://, or name`},
		"inline redis password":   {strings.Replace(small, "redis: embedded", "redis: {url: 'rediss://u:hunter2@h:1'}", 1), `c.yaml:2: error: redis.url: holds a password; put it into a file and name that in password_file`},
		"no redis":                {strings.Replace(small, "redis: embedded", "", 1), `error: redis: is required`},
		"no tenant":               {strings.Replace(small, "tenants: [acme]\nop", "tenants: []\nop", 1), `c.yaml:4: error: tenants: at least one is required`},
		"tenant's name":           {strings.Replace(small, "[acme]", "[Acme]", 1), `c.yaml:4: error: tenants[0]: "Acme" is not a name; use lower-case letters, digits and -, at most 64`},
		"unknown owner":           {small + "identity:\n  api_keys:\n    - {id: k, hash: h, tenant: acme, principal: p, expires: 2030-01-01, owner: alcie}\n", `c.yaml:11: error: identity.api_keys[0].owner: "alcie" is not one of those known; did you mean "alice"?`},
		"key without an end":      {small + "identity: {api_keys: [{id: k, hash: h, tenant: acme, principal: p, owner: alice}]}\n", `identity.api_keys[0].expires: is required`},
		"plain password":          {strings.Replace(small, "$argon2id$v=19$m=65536,t=3,p=2$c2FsdA$aGFzaA", "hunter2", 1), `c.yaml:7: error: operators[0].password_hash: is not an argon2id hash; make one with`},
		"unknown tenant of kind":  {small + "task_kinds:\n  - name: k\n    tenants: [acem]\n    scope: [{tool: t, action: call, verdict: allow}]\n", `c.yaml:11: error: task_kinds[0].tenants[0]: "acem" is not one of those known; did you mean "acme"?`},
		"kind twice":              {small + "task_kinds:\n  - {name: k, scope: [{tool: t, action: call, verdict: allow}]}\n  - {name: k, scope: [{tool: t, action: call, verdict: allow}]}\n", `c.yaml:11: error: task_kinds[1].name: "k" is taken; task_kinds[0] has it already`},
		"no way to log in":        {small + "vault: {address: 'https://v:1'}\n", `vault: says no way to log in; set token_file, or approle`},
		"plaintext vault":         {small + "vault: {address: 'http://v:1', token_file: t}\n", `vault.address: would speak plaintext off loopback`},
		"server without a way":    {server, `c.yaml:11: error: servers[0]: needs either url or command`},
		"credential in plaintext": {server + "    url: http://far.example.com/mcp\n    credential: {engine: kv, mount: m, path: p, headers: {A: b}}\n", `would send a credential in plaintext off loopback`},
		"per-call child":          {server + "    command: /bin/x\n    credential: {engine: leased, mode: call, mount: m, path: p, env: {A: b}}\n", `c.yaml:13: error: servers[0].credential.mode: a child lives as long as its task`},
		"reserved name":           {strings.Replace(server, "name: s", "name: toolbroker\n    command: /bin/x", 1), `is the gateway's own name`},
		"not YAML":                {small + "agent: [\n", `c.yaml:`},
		"empty":                   {"", `c.yaml: error: the file is empty; start from config.example.yaml`},
		"a list":                  {"- a\n", `c.yaml:1: error: is not a mapping`},
	} {
		t.Run(name, func(t *testing.T) {
			c, problems := Parse("c.yaml", []byte(tt.text))
			if c != nil || len(problems) == 0 {
				t.Fatal("accepted")
			}
			if all := fmt.Sprint(problems); !strings.Contains(all, tt.want) {
				t.Errorf("said  %v\nwant  %s", all, tt.want)
			}
			if strings.Contains(fmt.Sprint(problems), "hunter2") {
				t.Error("a secret is in the message")
			}
		})
	}
}

func TestMissingFile(t *testing.T) {
	_, problems := Load("nowhere.yaml")
	if got := fmt.Sprint(problems); got != "[nowhere.yaml: error: cannot be read: no such file or directory]" {
		t.Error(got)
	}
}

func FuzzParse(f *testing.F) {
	text, _ := os.ReadFile(example)
	f.Add(string(text))
	f.Add(small)
	f.Add("a: &a [*a]\nredis: *a\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, problems := Parse("c.yaml", []byte(text))
		if (c == nil) == (len(problems) == 0) {
			t.Fatal("neither a config nor a problem, or both")
		}
	})
}

func TestDistanceIsADistance(t *testing.T) {
	word := rapid.StringMatching(`[a-d]{0,6}`)
	rapid.Check(t, func(t *rapid.T) {
		a, b := word.Draw(t, "a"), word.Draw(t, "b")
		if d := distance(a, b); d != distance(b, a) || (d == 0) != (a == b) || d > max(len(a), len(b)) {
			t.Fatalf("%q %q: %d", a, b, d)
		}
	})
}
