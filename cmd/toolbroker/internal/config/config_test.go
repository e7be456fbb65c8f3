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
	k := c.TaskKinds[0]
	if len(k.Initial) != 1 || !k.SelfStart || k.Parallel || k.Bound || !k.PlainReference || k.Budget != (Budget{500, 2000}) ||
		k.Delegation != (Delegation{2, 8}) || k.Escalation != 30*time.Minute {
		t.Errorf("read another kind than the file holds: %+v", k)
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
	kind := small + "task_kinds:\n  - name: k\n    scope: [{tool: t, action: call, verdict: allow}]\n"
	oidc := func(change string) string { // one issuer, with one thing about it changed
		is := "    - {name: i, kind: oidc, issuer: 'https://idp.example', audiences: [a], rules: [{principal: a, tenant: acme, owner: alice}]}\n"
		name, _, _ := strings.Cut(change, ":")
		if change != "" {
			is = regexp.MustCompile(", "+name+": ('[^']*'|\\[.*\\]|[a-z]+)").ReplaceAllString(is, "")
			is = strings.Replace(is, "name: i", "name: i, "+change, 1)
		}
		return small + "identity:\n  issuers:\n" + is
	}
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
		"issuer of no kind":       {oidc("kind: odic"), `c.yaml:11: error: identity.issuers[0].kind: "odic" is not one of those known; did you mean "oidc"?`},
		"issuer in plaintext":     {oidc("issuer: 'http://idp.example'"), `identity.issuers[0].issuer: would be plaintext off loopback`},
		"issuer for anybody":      {oidc("audiences: []"), `identity.issuers[0].audiences: at least one is required; who we are to the issuer`},
		"HMAC":                    {oidc("algorithms: [HS256]"), `identity.issuers[0].algorithms[0]: "HS256" is not one of those known`},
		"algorithm none":          {oidc("algorithms: [none]"), `"none" is not one of those known`},
		"skew":                    {oidc("skew: 1h"), `identity.issuers[0].skew: 1h0m0s is out of range`},
		"another kind's setting":  {oidc("cas: [a.pem]"), `identity.issuers[0].cas: means nothing to kind oidc; it belongs to kind mtls`},
		"two places for keys":     {oidc("jwks_uri: 'https://a.example', jwks_file: b"), `identity.issuers[0].jwks_file: jwks_uri is set as well`},
		"bound to what":           {oidc("bound: yes"), `identity.issuers[0].bound: "yes" is not one of those known`},
		"nobody's tokens":         {oidc("rules: []"), `identity.issuers[0].rules: at least one is required; a credential that no rule names is nobody's`},
		"rule without principal":  {oidc("rules: [{tenant: acme, owner: alice}]"), `identity.issuers[0].rules[0].principal: is required`},
		"rule with a star":        {oidc("rules: [{principal: 'a:*', tenant: acme, owner: alice}]"), `identity.issuers[0].rules[0].principal: "a:*" is not a template for a name`},
		"rule for an operator":    {oidc("rules: [{principal: 'operator:{sub}', tenant: acme, owner: alice}]"), `"operator:{sub}" is not a name for a workload or a human`},
		"rule's tenant":           {oidc("rules: [{principal: a, tenant: acem, owner: alice}]"), `identity.issuers[0].rules[0].tenant: "acem" is not one of those known; did you mean "acme"?`},
		"rule's owner":            {oidc("rules: [{principal: a, tenant: acme, owner: bob}]"), `identity.issuers[0].rules[0].owner: "bob" is not one of those known`},
		"default task":            {oidc("rules: [{principal: a, tenant: acme, owner: alice, default_task: x}]"), `identity.issuers[0].rules[0].default_task: "x" is not one of those known; none is declared`},
		"vouches":                 {oidc("rules: [{principal: a, tenant: acme, owner: alice, vouches: [labls]}]"), `did you mean "labels"?`},
		"one issuer twice":        {oidc("") + "    - {name: j, kind: oidc, issuer: 'https://idp.example', audiences: [a], rules: [{principal: a, tenant: acme, owner: alice}]}\n", `identity.issuers[1].issuer: "https://idp.example" is taken`},
		"certificates by proxy":   {small + "identity:\n  issuers:\n    - {name: i, kind: mtls, cas: [a], rules: [{principal: a, tenant: acme, owner: alice}]}\n", `identity.issuers[0].kind: needs TLS connections of agents' own; set agent.tls`},
		"certificates of nobody":  {small + "identity:\n  issuers:\n    - {name: i, kind: mtls, rules: [{principal: a, tenant: acme, owner: alice}]}\n", `identity.issuers[0].cas: at least one is required`},
		"SVIDs from nowhere":      {small + "identity:\n  issuers:\n    - {name: i, kind: spiffe_jwt, audiences: [a], rules: [{principal: a, tenant: acme, owner: alice}]}\n", `needs exactly one source of SPIFFE bundles`},
		"SVIDs of everybody":      {small + "identity:\n  issuers:\n    - {name: i, kind: spiffe_jwt, audiences: [a], workload_api: 'unix:///a', rules: [{principal: a, tenant: acme, owner: alice}]}\n", `identity.issuers[0].trust_domains: at least one is required`},
		"endless delegation":      {small + "identity: {act_depth: 100}\n", `identity.act_depth: 100 is out of range`},
		"key of a role":           {small + "identity: {api_keys: [{id: k, hash: h, tenant: acme, principal: 'role:admin', owner: alice, expires: 2030-01-01}]}\n", `"role:admin" is not a name for a workload`},
		"plain password":          {strings.Replace(small, "$argon2id$v=19$m=65536,t=3,p=2$c2FsdA$aGFzaA", "hunter2", 1), `c.yaml:7: error: operators[0].password_hash: is not an argon2id hash; make one with`},
		"unknown tenant of kind":  {small + "task_kinds:\n  - name: k\n    tenants: [acem]\n    scope: [{tool: t, action: call, verdict: allow}]\n", `c.yaml:11: error: task_kinds[0].tenants[0]: "acem" is not one of those known; did you mean "acme"?`},
		"kind twice":              {small + "task_kinds:\n  - {name: k, scope: [{tool: t, action: call, verdict: allow}]}\n  - {name: k, scope: [{tool: t, action: call, verdict: allow}]}\n", `c.yaml:11: error: task_kinds[1].name: "k" is taken; task_kinds[0] has it already`},
		"initial row's verdict":   {kind + "    initial: [{tool: t, action: call}]\n", `c.yaml:12: error: task_kinds[0].initial[0].verdict: is required`},
		"self_start misspelt":     {kind + "    self_strat: true\n", `c.yaml:12: error: task_kinds[0].self_strat: unknown key; did you mean "self_start"?`},
		"bound is a yes or no":    {kind + "    bound: dpop\n", `c.yaml:12: error: task_kinds[0].bound: "dpop" is not a yes or no; write true or false`},
		"a budget of nothing":     {kind + "    budget:\n      calls: 0\n", `c.yaml:13: error: task_kinds[0].budget.calls: 0 is out of range; write 1 to 1000000000`},
		"a budget below nothing":  {kind + "    budget: {calls_per_day: -1}\n", `c.yaml:12: error: task_kinds[0].budget.calls_per_day: -1 is out of range`},
		"budget misspelt":         {kind + "    budget: {cals: 5}\n", `c.yaml:12: error: task_kinds[0].budget.cals: unknown key; did you mean "calls"?`},
		"delegation too deep":     {kind + "    delegation:\n      depth: 9\n      fan_out: 2\n", `c.yaml:13: error: task_kinds[0].delegation.depth: 9 is out of range; write 1 to 8`},
		"delegation too wide":     {kind + "    delegation:\n      depth: 8\n      fan_out: 257\n", `c.yaml:14: error: task_kinds[0].delegation.fan_out: 257 is out of range; write 1 to 256`},
		"half a delegation":       {kind + "    delegation: {depth: 2}\n", `c.yaml:12: error: task_kinds[0].delegation: needs both depth and fan_out; leave it out for none`},
		"escalation past the end": {kind + "    escalation: 2h\n", `c.yaml:12: error: task_kinds[0].escalation: 2h0m0s is out of range; write 1s to 1h0m0s: it ends with the task`},
		"escalation of no time":   {kind + "    escalation: 0s\n", `c.yaml:12: error: task_kinds[0].escalation: 0s is out of range`},
		"disabled is no date":     {small + "    disabled: 2027-01-31\n", `c.yaml:9: error: operators[0].disabled: "2027-01-31" is not a yes or no`},
		"no way to log in":        {small + "vault: {address: 'https://v:1'}\n", `vault: says no way to log in; set token_file, or approle`},
		"plaintext vault":         {small + "vault: {address: 'http://v:1', token_file: t}\n", `vault.address: would speak plaintext off loopback`},
		"server without a way":    {server, `c.yaml:11: error: servers[0]: needs either url or command`},
		"credential in plaintext": {server + "    url: http://far.example.com/mcp\n    credential: {engine: kv, mount: m, path: p, headers: {A: b}}\n", `would send a credential in plaintext off loopback`},
		"no header's name":        {server + "    url: https://a.example\n    credential: {engine: kv, mount: m, path: p, headers: {'X Y': '{{.b}}'}}\n", `is not a header's name`},
		"per-call child":          {server + "    command: /bin/x\n    credential: {engine: leased, mode: call, mount: m, path: p, env: {A: b}}\n", `c.yaml:13: error: servers[0].credential.mode: a child lives as long as its task`},
		"reserved name":           {strings.Replace(server, "name: s", "name: toolbroker\n    command: /bin/x", 1), `is the gateway's own name`},
		"trust in what":           {server + "    url: https://a.example\n    trust: always\n", `c.yaml:13: error: servers[0].trust: "always" is not one of those known; there are first_use, review`},
		"a digest of what":        {server + "    command: /bin/x\n    digest: sha256:abc\n", `c.yaml:13: error: servers[0].digest: is not a digest; write sha256: and the 64 hex digits that sha256sum prints`},
		"unsafe how":              {server + "    command: npx\n    unsafe: yes\n", `c.yaml:13: error: servers[0].unsafe: "yes" is not one of those known`},
		"a user of a url":         {server + "    url: https://a.example\n    user: nobody\n", `args, env, dir, digest, user and unsafe are a command's`},
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

// A header's name may hold an underscore, as some servers want theirs.
func TestHeaderWithAnUnderscore(t *testing.T) {
	for name, good := range map[string]bool{"CONTEXT7_API_KEY": true, "X-Api-Key": true, "X Key": false} {
		_, problems := Parse("c.yaml", []byte(small+"vault: {address: 'http://127.0.0.1:8200', token_file: t, policies: [p]}\nservers:\n  - name: s\n    url: https://a.example\n"+
			"    credential: {engine: kv, mount: m, path: p, headers: {'"+name+"': '{{.b}}'}}\n"))
		if refused := strings.Contains(fmt.Sprint(problems), "is not a header's name"); refused == good {
			t.Errorf("%s: %v", name, problems)
		}
	}
}

// What a kind does not say is no: it starts by others' hands, has no budget,
// delegates nothing and is granted nothing on request.
func TestKindThatSaysLittle(t *testing.T) {
	c, problems := Parse("c.yaml", []byte(small+"task_kinds:\n  - name: k\n    scope: [{tool: t, action: call, verdict: allow}]\n"))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if k := c.TaskKinds[0]; k.Initial != nil || k.SelfStart || k.Parallel || k.Bound || k.PlainReference || k.Budget != (Budget{}) || k.Delegation != (Delegation{}) || k.Escalation != 0 {
		t.Errorf("%+v", k)
	}
	c, problems = Parse("c.yaml", []byte(small+"task_kinds: [{name: k, initial: [], scope: [{tool: t, action: call, verdict: allow}]}]\n"))
	if len(problems) > 0 || c.TaskKinds[0].Initial == nil {
		t.Error("an empty initial scope is not told from none:", problems)
	}
}

func TestDisabledOperators(t *testing.T) {
	c, problems := Parse("c.yaml", []byte(small+`  - name: bob
    password_hash: $argon2id$v=19$m=65536,t=3,p=2$c2FsdA$aGFzaA
    tenants: [acme]
    disabled: true
`))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if got := fmt.Sprint(c.DisabledOperators()); got != "[bob]" {
		t.Error(got)
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
