package serve

import (
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"toolbroker/cmd/toolbroker/internal/config"
)

// What a config names and is no good is said at its line, and nothing is made.
func TestCheck(t *testing.T) {
	const (
		bare = "agent: {listen: '127.0.0.1:0', tls: {cert: tls.crt, key: tls.key}}\n" +
			"console: {listen: '127.0.0.1:0'}\nmanagement: {listen: '127.0.0.1:0'}\ndata_dir: data\nreplica: r1\ntenants: [acme]\npolicy: {file: policy.csv}\n"
		redis  = "redis: embedded\n"
		kinds  = "task_kinds: [{name: work, scope: [{tool: '**', action: call, verdict: allow}]}]\n"
		rule   = "rules: [{principal: 'agent:{sub}', tenant: acme, owner: alice}]"
		issuer = "identity:\n  issuers:\n    - {name: corp, kind: oidc, issuer: 'https://corp.example', audiences: [us], " + rule
	)
	hash, err := passwordHash()
	if err != nil {
		t.Fatal(err)
	}
	people := "operators: [{name: alice, password_hash: '" + hash + "', tenants: [acme]}]\n"
	vault := "vault: {address: 'https://v.example', policies: [p], token_file: secret"
	server := "servers:\n  - name: s\n    command: "
	good := bare + redis + kinds + people
	text := func(name, text string) func(dir string) error {
		return func(dir string) error { return os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600) }
	}
	gone := func(name string) func(string) error {
		return func(dir string) error { return os.Remove(filepath.Join(dir, name)) }
	}
	open := func(name string) func(string) error {
		return func(dir string) error { return os.Chmod(filepath.Join(dir, name), 0o644) }
	}
	for _, c := range []struct {
		name, config string
		change       func(dir string) error
		says         string // empty: good
	}{
		{"good", good, nil, ""},
		{"good, with all there is", good + issuer + ", jwks_file: keys.json, token_file: secret}\n    - {name: p, kind: mtls, cas: [tls.crt], " + rule + "}\n" +
			vault + ", ca: tls.crt}\n" + server + "sh\n", nil, ""},
		{"no policy", good, gone("policy.csv"), ":7: error: policy.file: open "},
		{"an empty policy", good, text("policy.csv", ""), ":7: error: policy.file: "},
		{"a mistake in the policy", good, text("policy.csv", "p, agent:a, acme, work, **, call, , alow\n"), "policy.csv:1: error: "},
		{"no certificate", good, gone("tls.crt"), ":1: error: agent.tls.cert: open "},
		{"no key", good, gone("tls.key"), ":1: error: agent.tls.key: open "},
		{"a key that others can read", good, open("tls.key"), ":1: error: agent.tls.key: "},
		{"a certificate that is none", good, text("tls.crt", "x"), ":1: error: agent.tls: "},
		{"a data directory that others can enter", good, func(dir string) error { return os.Mkdir(filepath.Join(dir, "data"), 0o755) }, ":4: error: data_dir: "},
		{"a seal key that others can read", good + "seal_key: seal\n", open("seal"), ":11: error: seal_key: "},
		{"a seal key that is none", good + "seal_key: seal\n", text("seal", "x"), ":11: error: seal_key: "},
		{"a seal key nowhere", good + "seal_key: no/seal\n", nil, ":11: error: seal_key: "},
		{"a scope's condition", bare + redis + people + "task_kinds:\n  - name: work\n    scope: [{tool: a/b, action: call, verdict: allow, when: 'args.x =='}]\n", nil, ":12: error: task_kinds[0].scope: "},
		{"no password", bare + kinds + people + "redis: {url: 'redis://127.0.0.1', password_file: no}\n", nil, ":10: error: redis.password_file: open "},
		{"a password that others can read", bare + kinds + people + "redis: {url: 'redis://127.0.0.1', password_file: secret}\n", open("secret"), ":10: error: redis.password_file: "},
		{"no CA of Redis'", bare + kinds + people + "redis: {url: 'rediss://127.0.0.1', ca: secret}\n", nil, ":10: error: redis.ca: "},
		{"no keys of an issuer", good + issuer + ", jwks_file: no}\n", nil, ":13: error: identity.issuers[0].jwks_file: open "},
		{"keys that are none", good + issuer + ", jwks_file: secret}\n", nil, ":13: error: identity.issuers[0].jwks_file: not a JWKS"},
		{"no CA of an issuer's", good + issuer + ", ca: no}\n", nil, ":13: error: identity.issuers[0].ca: open "},
		{"no token for an issuer", good + issuer + ", token_file: no}\n", nil, ":13: error: identity.issuers[0].token_file: open "},
		{"a CA that is none", good + "identity:\n  issuers:\n    - {name: p, kind: mtls, cas: [secret], " + rule + "}\n", nil, ":13: error: identity.issuers[0]: "},
		{"no bundle", good + "identity:\n  issuers:\n    - {name: p, kind: spiffe_x509, bundles: {corp.example: no}, " + rule + "}\n", nil, ":13: error: identity.issuers[0].bundles.corp.example: open "},
		{"a key's hash", good + "identity:\n  api_keys: [{id: k, hash: x, tenant: acme, principal: 'agent:a', owner: alice, expires: 2099-01-01}]\n", nil, ":12: error: identity.api_keys[0]: "},
		{"a password's hash", bare + redis + kinds + "operators:\n  - name: alice\n    password_hash: $argon2id$x\n    tenants: [acme]\n", nil, ":11: error: operators[0]: "},
		{"no token for Vault", good + vault + "s}\n", nil, ":11: error: vault.token_file: open "},
		{"a token for Vault that others can read", good + vault + "}\n", open("secret"), ":11: error: vault.token_file: "},
		{"no CA of Vault's", good + vault + ", ca: policy.csv}\n", nil, ":11: error: vault.ca: "},
		{"no program", good + server + "no-such-program\n", nil, ":12: error: servers[0]: server \"s\": its command: "},
		{"a program that is another tomorrow", good + server + "env\n    args: [npx, server@latest]\n", nil, ":12: error: servers[0]: "},
		{"a credential's template", good + vault + "}\n" + server + "sh\n    credential: {engine: kv, mount: m, path: p, env: {A: '{{'}}\n", nil, ":15: error: servers[0].credential: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			newCertificate(t, dir)
			write(t, filepath.Join(dir, "policy.csv"), "p, agent:a, acme, work, **, call, , allow\n")
			write(t, filepath.Join(dir, "secret"), "s3cret-canary\n")
			write(t, filepath.Join(dir, "seal"), "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n")
			write(t, filepath.Join(dir, "keys.json"), `{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"1","alg":"EdDSA","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`)
			file := filepath.Join(dir, "config.yaml")
			write(t, file, c.config)
			if c.change != nil {
				if err := c.change(dir); err != nil {
					t.Fatal(err)
				}
			}
			cfg, problems := config.Load(file)
			if len(problems) > 0 {
				t.Fatal(problems)
			}
			before := tree(t, dir)
			var said []string
			for _, p := range Check(cfg) {
				said = append(said, p.String())
			}
			got := strings.Join(said, "\n")
			if (c.says == "") != (got == "") || !strings.Contains(got, c.says) || len(said) > 1 || strings.Contains(got, "canary") {
				t.Errorf("said %q, want %q", got, c.says)
			}
			if after := tree(t, dir); after != before {
				t.Errorf("it made something:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
}

func tree(t *testing.T, dir string) string {
	var all []string
	if err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error { all = append(all, path); return err }); err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, "\n")
}

// A token for Vault that others can read is not used, as the docs promise.
func TestStartRefusesAnOpenToken(t *testing.T) {
	c, dir := newConfig(t, "vault: {address: 'https://v.example', token_file: token, policies: [p]}\n")
	write(t, filepath.Join(dir, "token"), "s3cret-canary\n")
	if err := os.Chmod(filepath.Join(dir, "token"), 0o640); err != nil {
		t.Fatal(err)
	}
	h, err := New(t.Context(), c, Options{Mode: "serve", Logger: slog.New(slog.DiscardHandler)})
	if err == nil {
		h.close()
		t.Fatal("it started")
	}
	if !strings.Contains(err.Error(), "mode 0640") || strings.Contains(err.Error(), "canary") {
		t.Error(err)
	}
}
