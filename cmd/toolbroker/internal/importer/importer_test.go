package importer

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"go.yaml.in/yaml/v4"

	"toolbroker/cmd/toolbroker/internal/config"
)

var update = flag.Bool("update", false, "write what comes out into the samples")

var options = Options{File: "in.json", Tenants: []string{"acme"}, Mount: "secret", Prefix: "mcp"}

// printed is all that anybody reads of a result.
func printed(t testing.TB, r *Result) (fragment, said, whole string) {
	t.Helper()
	text, err := yaml.Dump(r)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, p := range r.Vault {
		b.WriteString(p.Command + "\n")
	}
	for _, f := range r.Findings {
		b.WriteString(f.String("debt") + "\n")
	}
	for _, f := range r.Notes {
		b.WriteString(f.String("note") + "\n")
	}
	j, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(text), b.String(), string(text) + b.String() + string(j)
}

// Each client's file, as people write it, comes out as its sample says; no secret
// in it does, and toolbroker's config takes the rest.
func TestSamples(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) < 6 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			part := func(name string) *txtar.File {
				return &archive.Files[slices.IndexFunc(archive.Files, func(f txtar.File) bool { return f.Name == name })]
			}
			r, err := Read(part("in.json").Data, options)
			if err != nil {
				t.Fatal(err)
			}
			fragment, said, whole := printed(t, r)
			for secret := range strings.Lines(string(part("secrets").Data)) {
				if secret = strings.TrimSpace(secret); strings.Contains(whole, secret) {
					t.Errorf("%s is printed", secret)
				}
			}
			loads(t, fragment)
			if *update {
				part("out.yaml").Data, part("said").Data = []byte(fragment), []byte(said)
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want := string(part("out.yaml").Data); fragment != want {
				t.Errorf("it is\n%s\nwant\n%s", fragment, want)
			}
			if want := string(part("said").Data); said != want {
				t.Errorf("said is\n%s\nwant\n%s", said, want)
			}
		})
	}
}

// loads holds that a fragment is servers of a config as serve takes it.
func loads(t *testing.T, fragment string) {
	t.Helper()
	rest := `
data_dir: d
redis: embedded
policy: {file: policy.csv}
operators: [{name: alice, password_hash: $argon2id$x, tenants: [acme]}]
vault: {address: "https://vault.example.com", token_file: token, token_role: r}
`
	_, problems := config.Parse("config.yaml", []byte(strings.ReplaceAll(fragment, "protocol: sse", "protocol: legacy")+rest))
	for _, p := range problems {
		t.Error(p)
	}
}

// What is bound is what the file holds, to the byte.
func TestValues(t *testing.T) {
	r, err := Read([]byte(`{"mcpServers": {
		"a": {"command": "x", "env": {"API_TOKEN": " sp ace\u00e9\"' "}},
		"b": {"url": "https://x.example.com", "headers": {"Authorization": "Bearer  t0k", "X-Api-Key": "k"}},
		"c": {"url": "https://u%40x:p%3A@x.example.com"},
		"d": {"command": "x", "env": {"API_TOKEN": "${input:a}", "OTHER_TOKEN": "${OTHER:-def}"}},
		"e": {"url": "https://x.example.com", "headers": {"CONTEXT7_API_KEY": "k7", "Mcp_Session_Id": "s"}}
	}}`), options)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range r.Vault {
		for _, f := range p.Fields {
			got = append(got, p.Path+" "+f.Name+"="+f.Value.Reveal()+" "+f.From)
			if f.Inline != (f.Value.Reveal() != "") {
				t.Errorf("%s: inline %v", f.From, f.Inline)
			}
		}
	}
	want := []string{
		"mcp/a api_token= sp ace\u00e9\"'  mcpServers.a.env.API_TOKEN",
		"mcp/b token=t0k mcpServers.b.headers.Authorization",
		"mcp/b x_api_key=k mcpServers.b.headers.X-Api-Key",
		"mcp/c basic=dUB4OnA6 mcpServers.c.url",
		"mcp/d a= mcpServers.d.env.API_TOKEN",
		"mcp/d other=def mcpServers.d.env.OTHER_TOKEN",
		"mcp/e context7_api_key=k7 mcpServers.e.headers.CONTEXT7_API_KEY",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
	if h := r.Servers[1].Credential.Headers["Authorization"]; h != "Bearer  {{.token}}" {
		t.Errorf("header %q", h)
	}
}

func TestNotAConfiguration(t *testing.T) {
	for text, want := range map[string]string{
		``:                             "not JSON",
		`{"mcpServers": {"canary": }}`: "line 1, column",
		`[]`:                           "not a JSON object",
		`{"a": 1}`:                     "no mcpServers",
		`{"mcpServers": []}`:           "no mcpServers",
		strings.Repeat(`{"mcpServers":`, 99) + `1` + strings.Repeat(`}`, 99): "nested too deeply",
	} {
		if _, err := Read([]byte(text), options); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%.40s: %v", text, err)
		}
	}
	if r, err := Read([]byte("\ufeff{\"mcpServers\": {}}"), options); err != nil || len(r.Servers) != 0 {
		t.Errorf("an empty one: %+v, %v", r, err)
	}
}

func TestNames(t *testing.T) {
	for name, want := range map[string]bool{
		"GITHUB_TOKEN": true, "API_KEY": true, "apiKey": true, "--api-key": true, "SECRET": true, "Authorization": true, "X-Auth": true, "PGPASSWORD": true,
		"DB_PASSWORD": true, "clientSecret": true, "SSH_PRIVATE_KEY": true, "key": true, "SLACK_BOT_TOKEN": true, "Cookie": true, "GITHUB_PAT": true,
		"TOKEN_URL": false, "MAX_TOKENS": false, "KEY_FILE": false, "AUTH_TYPE": false, "PUBLIC_KEY": false, "LOG_LEVEL": false, "PATH": false, "monkey": false, "KEYBOARD": false,
	} {
		if got := secretName(name); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestLooks(t *testing.T) {
	for value, want := range map[string]bool{
		"ghp_1234567890abcdefghij": true, "sk-proj-abcdefgh12345": true, "Bearer abcdef1": true, "AKIAIOSFODNN7EXAMPLE": true, "postgres://u:p@h/d": true,
		"0123456789abcdef0123456789abcdef": true, "eyJhbGciOiJIUzI1NiJ9.e30.x": true, "wJalrXUtnFEMI7K7MDENG4bPxRfiCYEXAMPLEKEY": true,
		"debug": false, "https://api.example.com/v1": false, "/usr/local/share/some-long-folder-name": false, "@modelcontextprotocol/server-filesystem": false,
		"Europe/Berlin": false, "some-package@1.2.3": false, "img@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855": false,
		"aVeryLongCamelCaseNameWithoutDigits": false, "127.0.0.1:8080": false,
	} {
		if got := looksSecret(value); got != want {
			t.Errorf("%s: %v", value, got)
		}
	}
}

// What holds a secret by a name within it is not printed, and said.
func TestSecretsByANameInside(t *testing.T) {
	for about, server := range map[string]string{
		"docker's --env=":              `"command": "docker", "args": ["run", "--env=API_KEY=canary", "img@sha256:e3b0"]`,
		"the query of an argument":     `"command": "x", "args": ["https://h.example.com/mcp?token=canary"]`,
		"another":                      `"command": "x", "args": ["https://h.example.com/mcp?a=b&api_key=canary"]`,
		"JSON after a flag":            `"command": "x", "args": ["--config", "{\"apiKey\":\"canary\"}"]`,
		"JSON in a flag":               `"command": "x", "args": ["--config={\"braveApiKey\":\"canary\"}"]`,
		"a user":                       `"command": "x", "args": ["--user=bob:canary"]`,
		"a user after a flag":          `"command": "x", "args": ["-u", "bob:canary"]`,
		"a password after -p":          `"command": "x", "args": ["-p", "Tr0ub4dor&3canary"]`,
		"a password in -p":             `"command": "x", "args": ["-pTr0ub4dor&3canary"]`,
		"a password after any flag":    `"command": "x", "args": ["-w", "tr0ub4dor&3canary"]`,
		"a password in any flag":       `"command": "x", "args": ["--w=Tr0ub4dor3canary"]`,
		"a password by itself":         `"command": "x", "args": ["run", "Tr0ub4dor3canary"]`,
		"a connection string":          `"command": "x", "env": {"CONNECTION_STRING": "Server=h;Password=canary;"}`,
		"JSON in the environment":      `"command": "x", "env": {"CONFIG_JSON": "{\"a\":[{\"token\":\"canary\"}]}"}`,
		"what mcp-remote registers as": `"command": "npx", "args": ["mcp-remote", "https://h.example.com/mcp", "--static-oauth-client-info", "{\"client_secret\":\"canary\"}"]`,
	} {
		r, err := Read([]byte(`{"mcpServers": {"a": {`+server+`}}}`), options)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, whole := printed(t, r); strings.Contains(whole, "canary") {
			t.Errorf("%s: printed:\n%s", about, whole)
		}
		if len(r.Findings)+len(r.Vault) == 0 {
			t.Errorf("%s: nothing is said of it", about)
		}
	}
	for _, arg := range []string{"--user=1000:1000", "--publish=8080:80", "https://h.example.com/mcp?page=2", `{"a":"b","n":[1]}`, "--log=level:debug", "Meta-Llama-3.1-8B", "MyProject2", "page=1&size=2", "x86_64-linux", "some-package@1.2.3-Beta", "ghcr.io/Org1/img:2"} {
		r, err := Read([]byte(`{"mcpServers": {"a": {"command": "x", "args": [`+strconv.Quote(arg)+`]}}}`), options)
		if err != nil || len(r.Servers) != 1 || r.Servers[0].Args[0] != arg {
			t.Errorf("%s: %+v, %v", arg, r.Servers, err)
		}
	}
}

// What follows -p is named where it could be a password, and goes over where it does
// not look like one.
func TestAfterP(t *testing.T) {
	for args, said := range map[string]bool{
		`"x", ["-p", "hunter"]`: true, `"x", ["-P", "a/b"]`: true, `"x", ["--pw", "hunter"]`: true,
		`"x", ["-p", "8080"]`: false, `"x", ["-p", "127.0.0.1:80:80"]`: false, `"x", ["-p", "--quiet"]`: false, `"x", ["-p", "./here"]`: false,
		`"docker", ["run", "-p", "web", "img@sha256:e3b0"]`: false, `"npx", ["-p", "pkg@1.0.0", "bin"]`: false, `"x", ["-q", "hunter"]`: false,
	} {
		command, list, _ := strings.Cut(args, ", ")
		r, err := Read([]byte(`{"mcpServers": {"a": {"command": `+command+`, "args": `+list+`}}}`), options)
		if err != nil || len(r.Servers) != 1 {
			t.Fatal(err)
		}
		var want []string
		if err := json.Unmarshal([]byte(list), &want); err != nil || !slices.Equal(r.Servers[0].Args, want) {
			t.Errorf("%s: %q", args, r.Servers[0].Args)
		}
		if got := slices.ContainsFunc(r.Findings, func(f Finding) bool { return strings.Contains(f.What, "often is a password") }); got != said {
			t.Errorf("%s: %v", args, r.Findings)
		}
	}
}

func TestFloating(t *testing.T) {
	for line, want := range map[string]string{
		"npx -y @scope/pkg": "@scope/pkg", "npx pkg@latest": "pkg@latest", "npx pkg@^1.2.3": "pkg@^1.2.3", "npx pkg@1": "pkg@1", "npx -p pkg bin": "pkg", "npx --package=pkg bin": "pkg",
		"npx -y @scope/pkg@1.2.3": "", "npx pkg@1.2.3-beta.1": "", "npx ./local": "", "/usr/bin/npx.cmd pkg": "pkg", "bunx pkg": "pkg", "pnpm dlx pkg": "pkg", "npm exec pkg@1.0.0": "", "npm start": "",
		"uvx pkg": "pkg", "uvx pkg@latest": "pkg@latest", "uvx pkg@1.2.3": "", "uvx pkg==1.2.3": "", "uvx --python 3.12 pkg": "pkg", "uvx --from git+https://x/y pkg": "git+https://x/y", "uvx --from pkg==1.2.3 bin": "",
		"uv run --with mcp server.py": "mcp", "uv --directory /x run server.py": "", "uv run server.py": "", "uv tool run pkg": "pkg", "pipx run --spec pkg==1.0.0 bin": "", "uvx pkg>=1.2.3": "pkg>=1.2.3",
		"docker run -i --rm -e A img": "img", "docker run -v /a:/b img:1.2": "img:1.2", "docker run img@sha256:e3b0": "", "docker exec x y": "", "podman run --env=A img": "img",
		"node index.js": "", "npx": "", "uv run": "", "docker run": "",
	} {
		words := strings.Fields(line)
		if got := floating(words[0], words[1:]); got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}

// Wherever a secret stands that is called one, nothing that is printed holds it.
func FuzzNothingPrintsASecret(f *testing.F) {
	for _, s := range []string{"canary-0123456789", "a b c d e f g h i j", `"quoted" and \ more`, "${NAME}-canary-123", "{{.field}}canary", "Bearer canary-12345", "x@y:z/canary-123?a=b&c", "päss wörd\ncanary", `  ""00000000`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, secret string) {
		quoted, err := json.Marshal(secret)
		var back string
		if err != nil || json.Unmarshal(quoted, &back) != nil || back != secret || len(secret) < 12 || strings.Contains(secret, "${") {
			t.Skip()
		}
		if v := strings.ToLower(strings.TrimSpace(secret)); v == "" || v == "true" || v == "false" || places.MatchString(secret) {
			t.Skip("no secret")
		}
		without := withSecret(t, "another-0123456789")
		for i, whole := range withSecret(t, secret) {
			if strings.Contains(without[i], secret) {
				continue // it stands there anyway
			}
			if strings.Contains(whole, secret) || strings.Contains(whole, string(quoted[1:len(quoted)-1])) {
				t.Errorf("%q is printed:\n%s", secret, whole)
			}
		}
	})
}

// withSecret is what is printed of a secret in each of its places, by itself.
func withSecret(t *testing.T, secret string) (all []string) {
	in := func(prefix string) string { q, _ := json.Marshal(prefix + secret); return string(q) }
	for _, server := range []string{
		`"command": "x", "args": ["--token=` + in("")[1:] + `]`,
		`"command": "x", "args": [` + in("API_KEY=") + `]`,
		`"command": "x", "env": {"MY_SECRET": ` + in("") + `}`,
		`"url": "https://x.example.com", "headers": {"Authorization": ` + in("Bearer ") + `}`,
		`"url": "https://x.example.com", "headers": {"X-Api-Key": ` + in("") + `}`,
		`"command": "npx", "args": ["mcp-remote", "https://x.example.com", "--header", ` + in("Authorization: Bearer ") + `]`,
		`"command": "x", "args": ["--header", ` + in("Authorization: ") + `]`,
		`"command": "docker", "args": ["run", "-e", ` + in("API_TOKEN=") + `, "img@sha256:e3b0"]`,
		`"command": "docker", "args": ["run", ` + in("--env=API_KEY=") + `, "img@sha256:e3b0"]`,
		`"command": "x", "args": ["--api-key", ` + in("_") + `]`, // what begins with - may be a flag of its own
	} {
		r, err := Read([]byte(`{"mcpServers": {"a": {`+server+`}}}`), options)
		if err != nil {
			t.Fatal(err)
		}
		_, _, whole := printed(t, r)
		all = append(all, whole)
	}
	return all
}
