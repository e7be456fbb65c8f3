package importer

import (
	"encoding/base64"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"toolbroker/gateway"
)

// known are members of a server that are carried over, or said something about.
var known = []string{
	"type", "transport", "command", "args", "env", "envFile", "cwd", "url", "serverUrl", "httpUrl", "headers", "disabled", "enabled",
}

// clients are members that are about the client, and have no place here.
var clients = map[string]string{
	"alwaysAllow": "the policy says what needs no human", "autoApprove": "the policy says what needs no human", "disabledTools": "the policy says which tools there are",
	"timeout": "set timeout where 60s is not enough", "description": "", "name": "", "dev": "", "gallery": "", "version": "", "icon": "", "sandboxEnabled": "", "sandbox": "",
}

// server imports one.
func (im *importer) server(n *node) {
	if n.kind != '{' {
		im.find(n, "", "is not a server")
		return
	}
	if n.get("disabled") != nil && n.get("disabled").value == "true" || n.get("enabled") != nil && n.get("enabled").value == "false" {
		im.note(n, "", "is disabled there, and left out")
		return
	}
	for _, m := range n.all() {
		if why, ok := clients[m.name]; ok {
			im.note(m, why, "is the client's own, and left out")
		} else if !slices.Contains(known, m.name) {
			im.find(m, "look up what it means to the client", "is nothing that toolbroker knows, and left out")
		}
	}
	s := &draft{importer: im, Server: Server{Tenants: im.Tenants, Env: map[string]string{}}, node: n, env: map[string]*node{}}
	for _, e := range n.get("env").all() {
		s.env[e.name] = e
	}
	address := n.get("url")
	for _, other := range []string{"serverUrl", "httpUrl"} {
		if address == nil {
			address = n.get(other)
		}
	}
	switch command := n.get("command"); {
	case command.text() != "" && address.text() != "":
		im.find(n, "keep one of the two", "has a command and a url, and is left out")
		return
	case command.text() != "":
		s.Name = im.name(n)
		s.child(command)
	case address.text() != "":
		s.Name = im.name(n)
		s.remote(address, n.get("headers").all())
	default:
		im.find(n, "", "has neither a command nor a url, and is left out")
		return
	}
	s.done()
}

// A draft is a server that is being imported.
type draft struct {
	*importer
	Server
	node    *node
	env     map[string]*node // what its env says, to expand and to bind
	put     Put
	headers map[string]string // templates
	envs    map[string]string // templates
	dropped bool
}

// done adds the server to the result.
func (s *draft) done() {
	if s.dropped {
		return
	}
	if len(s.put.Fields) > 0 {
		s.put.Server, s.put.From, s.put.Line = s.Name, s.node.path, s.node.line
		s.put.Mount, s.put.Path = s.Mount, s.Prefix+"/"+s.Name
		s.put.say()
		s.Credential = &Credential{Engine: "kv", Mount: s.put.Mount, Path: s.put.Path, Headers: s.headers, Env: s.envs}
		s.result.Vault = append(s.result.Vault, &s.put)
	}
	s.result.Servers = append(s.result.Servers, s.Server)
}

func (s *draft) bindHeader(name, template string) {
	if s.headers == nil {
		s.headers = map[string]string{}
	}
	s.headers[name] = template
}

func (s *draft) bindEnv(name, template string) {
	if s.envs == nil {
		s.envs = map[string]string{}
	}
	s.envs[name] = template
}

// field adds a secret and returns what stands for it in a template.
func (s *draft) field(name string, f Field) string {
	if strings.EqualFold(name, "Authorization") {
		name = "token"
	}
	f.Name = s.put.fieldNamed(name)
	s.put.Fields = append(s.put.Fields, f)
	return "{{." + f.Name + "}}"
}

var (
	reference = regexp.MustCompile(`\$\{([^}]*)\}`)
	scheme    = regexp.MustCompile(`^(?i:Bearer|Basic|Token|Bot|ApiKey)\s+`)
	envName   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,63}$`)
	header    = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
)

// A ref is what a ${...} means: an input that the client asks for, a variable of
// the client's environment, or a place on its machine.
type ref struct {
	kind, name string
	value      string // known by the file; of an input its default
	known      bool
	secret     bool
}

func (s *draft) ref(text string) ref {
	kind, name, ok := strings.Cut(text, ":")
	switch {
	case ok && kind == "input":
		input := s.inputs[name]
		def := input.get("default")
		r := ref{kind: "input", name: name, value: def.text(), known: def.text() != ""}
		r.secret = input.get("password") != nil && input.get("password").value == "true" || secretValue(name, r.value+"x")
		return r
	case ok && kind == "env":
		return s.variable(name, "", false)
	case !ok && envName.MatchString(text) && strings.ToUpper(text) == text:
		return s.variable(text, "", false)
	case ok && strings.HasPrefix(name, "-") && envName.MatchString(kind): // ${NAME:-default}
		return s.variable(kind, name[1:], true)
	}
	return ref{kind: "place", name: text}
}

// variable is one of the client's environment, unless the server's own env says it.
func (s *draft) variable(name, def string, known bool) ref {
	if e := s.env[name]; e != nil && !reference.MatchString(e.value) {
		def, known = e.value, true
	}
	return ref{kind: "env", name: name, value: def, known: known, secret: secretName(name) || known && secretValue(name, def)}
}

// bind makes a template of a value: what is secret in it becomes a field. It reports
// whether anything is; where it cannot, that is found and the template is empty.
func (s *draft) bind(n *node, name, value string) (template string, secret bool) {
	refs := reference.FindAllStringSubmatchIndex(value, -1)
	if len(refs) == 0 {
		if !secretValue(name, value) {
			return value, false
		}
		if strings.ContainsFunc(value, unicode.IsControl) {
			s.find(n, "give it to the program by a file", "holds a secret of several lines, which cannot be bound; it is not carried over")
			return "", true
		}
		prefix := scheme.FindString(value)
		return prefix + s.field(name, Field{From: n.path, Inline: true, Value: gateway.NewSecret(value[len(prefix):])}), true
	}
	// Whatever stands around a reference has to be plain: a template can say it.
	plain := reference.ReplaceAllString(value, " ")
	if looksSecret(plain) || strings.Contains(plain, "{{") || strings.Contains(plain, "}}") {
		s.find(n, "put all of it into Vault as one field, and bind that", "mixes a secret with what the client fills in")
		return "", true
	}
	last := 0
	for _, at := range refs {
		template += value[last:at[0]]
		last = at[1]
		switch r := s.ref(value[at[2]:at[3]]); {
		case r.kind == "place":
			s.find(n, "write the path out", "names a place on the client's machine")
			template += removed
		case r.secret || secretName(name):
			secret = true
			template += s.field(r.name, Field{From: n.path, Inline: r.known, Value: gateway.NewSecret(r.value)})
		case r.known:
			s.note(n, "", "takes the default of %s", r.name)
			template += r.value
		default:
			s.find(n, "write the value out", "takes %s from the client, which toolbroker does not ask", r.name)
			template += removed
		}
	}
	return template + value[last:], secret
}

// remote imports a server with a URL.
func (s *draft) remote(address *node, headers []*node) {
	raw, _ := s.places(address, address.text())
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		s.find(address, "toolbroker speaks MCP over http and https", "is no address that can be reached, so %s is left out", s.Name)
		s.dropped = true
		return
	}
	switch kind := strings.ToLower(s.node.get("type").text() + s.node.get("transport").text()); kind {
	case "", "http", "streamable-http", "streamablehttp", "streamable_http":
	case "sse":
		s.Protocol = "sse"
	default:
		s.find(s.node, "", "is of a type that toolbroker does not speak, and left out")
		s.dropped = true
		return
	}
	if looksSecret(u.Hostname()) {
		s.find(address, "ask the server's maker for a header instead", "has a host that looks like a secret, and is left out")
		s.dropped = true
		return
	}
	if u.User != nil {
		password, _ := u.User.Password()
		both := base64.StdEncoding.EncodeToString([]byte(u.User.Username() + ":" + password))
		s.bindHeader("Authorization", "Basic "+s.field("basic", Field{From: address.path, Inline: true, Value: gateway.NewSecret(both)}))
		s.note(address, "", "holds a user; it becomes a header, of which Vault keeps the base64 of USER:PASSWORD")
		u.User = nil
	}
	if found := scrubURL(u); len(found) > 0 {
		s.find(address, "ask the server's maker for a header instead", "holds what looks like a secret in its %s; only headers can be bound, so it is not carried over", strings.Join(found, " and "))
	}
	s.URL = u.String()
	var plain []*node
	for _, h := range headers {
		value, ok := h.scalar()
		if name := strings.ReplaceAll(strings.ToLower(h.name), "_", "-"); name == "accept" || name == "content-type" || strings.HasPrefix(name, "mcp-") {
			s.note(h, "", "is toolbroker's to set")
			continue
		}
		if !ok || !header.MatchString(h.name) {
			s.find(h, "", "cannot be a header, and is left out")
			continue
		}
		template, secret := s.bind(h, h.name, value)
		switch {
		case !secret && (strings.Contains(template, "{{") || strings.Contains(template, "}}")):
			s.find(h, "", "holds braces, which mean a field here; it is left out")
		case !secret:
			plain = append(plain, h)
			fallthrough
		case template != "":
			s.bindHeader(h.name, template)
		}
	}
	if len(s.put.Fields) == 0 {
		s.headers = nil
		for _, h := range plain {
			s.find(h, "", "is a header without a secret, which only a server with a credential gets; it is left out")
		}
	} else if u.Scheme == "http" && !loopback(u.Hostname()) {
		s.find(address, "use https://", "would send a credential in plaintext; it is not bound")
		s.put.Fields, s.headers = nil, nil
	}
}

func loopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// places fills in references where there are no templates: an argument, a URL, a
// directory.
func (s *draft) places(n *node, value string) (string, bool) {
	fine := true
	return reference.ReplaceAllStringFunc(value, func(m string) string {
		switch r := s.ref(m[2 : len(m)-1]); {
		case r.kind == "place":
			s.find(n, "write the path out", "names a place on the client's machine")
		case r.secret:
			s.find(n, cannotBind, "takes a secret, %s, where none can be bound", r.name)
		case r.known:
			return r.value
		default:
			s.find(n, "write the value out", "takes %s from the client, which toolbroker does not ask", r.name)
		}
		fine = false
		return removed
	}), fine
}

const cannotBind = "give it to the program by its environment, where it reads one, and bind that"

// child imports a server that is a program.
func (s *draft) child(command *node) {
	s.Command, _ = s.places(command, command.text())
	var args []*node
	for _, a := range s.node.get("args").all() {
		if _, ok := a.scalar(); !ok {
			s.find(a, "", "is not an argument, and is left out")
			continue
		}
		args = append(args, a)
	}
	if s.bridged(args) {
		return
	}
	if base := program(s.Command); (base == "cmd") && len(args) > 1 && strings.EqualFold(args[0].value, "/c") {
		s.note(command, "", "is a shell that only starts another program")
		s.Command, args = args[1].value, args[2:]
	}
	if strings.ContainsAny(s.Command, " \t") && !strings.ContainsAny(s.Command, `/\`) {
		s.find(command, "put the words after the first into args", "is a line for a shell, and there is none")
	}
	if clean, found := scrub(s.Command); found {
		s.Command = clean
		s.find(command, cannotBind, "holds what looks like a secret; it is not carried over")
	}
	s.Args = s.arguments(args)
	if what := floating(s.Command, s.Args); what != "" {
		s.find(command, "name an exact version, and better install it", "runs %s, whatever that is on the day", what)
	}
	for _, e := range s.node.get("env").all() {
		value, ok := e.scalar()
		switch {
		case !ok || !envName.MatchString(e.name):
			s.find(e, "", "cannot be an environment variable, and is left out")
		case secretFile(e.name, value):
			s.find(e, "keep what is in it in Vault", "names a file that holds a credential, which toolbroker neither leases nor blanks out")
			s.Env[e.name], _ = s.places(e, value)
		default:
			if template, secret := s.bind(e, e.name, value); secret && template != "" {
				s.bindEnv(e.name, template)
			} else if !secret {
				s.Env[e.name] = template
			}
		}
	}
	if f := s.node.get("envFile"); f != nil {
		s.find(f, "bind its secrets, and write the rest into env", "names a file of environment variables, which was not read")
	}
	if cwd := s.node.get("cwd"); cwd.text() != "" {
		if dir, fine := s.places(cwd, cwd.text()); fine && filepath.IsAbs(dir) {
			s.Dir = dir
		} else if fine {
			s.find(cwd, "write an absolute path", "is a directory relative to the client's")
		}
	}
}

// arguments takes secrets out of a program's arguments: nothing can be bound there.
func (s *draft) arguments(args []*node) (out []string) {
	debt := func(n *node) {
		s.find(n, cannotBind, "holds what looks like a secret, and arguments cannot be bound; it is not carried over")
	}
	container := slices.Contains([]string{"docker", "podman", "nerdctl"}, program(s.Command))
	for i, n := range args {
		arg, _ := s.places(n, n.value)
		before := ""
		if i > 0 {
			before = args[i-1].value
		}
		if container && strings.HasPrefix(arg, "--env=") {
			out, before, arg = append(out, "--env"), "--env", strings.TrimPrefix(arg, "--env=")
		}
		name, value, assigned := strings.Cut(arg, "=")
		switch {
		case strings.Contains(arg, removed): // and said
		case container && (before == "-e" || before == "--env") && assigned && secretValue(name, value) && envName.MatchString(name) && s.env[name] == nil:
			s.bindEnv(name, s.field(name, Field{From: n.path, Inline: true, Value: gateway.NewSecret(value)}))
			s.note(n, "", "is handed on from the environment, where it is bound")
			arg = name
		case strings.HasPrefix(before, "-") && !strings.Contains(before, "=") && !strings.HasPrefix(arg, "-") && (secretValue(before, arg) && secretName(before) || login(before, arg)):
			debt(n)
			arg = removed
		case assigned && login(name, value):
			debt(n)
			arg = name + "=" + removed
		case assigned && !digest(name, value) && secretValue(strings.TrimLeft(name, "-"), value) && !strings.ContainsAny(name, " \t:/"):
			debt(n)
			arg = name + "=" + removed
		case digest(before, arg) || assigned && digest(name, value):
		case strings.HasPrefix(arg, "-p") && !assigned && drawn(arg[2:]):
			debt(n)
			arg = "-p" + removed
		case strings.HasPrefix(arg, "-") && assigned && drawn(value):
			debt(n)
			arg = name + "=" + removed
		case !strings.HasPrefix(arg, "-") && drawn(arg):
			debt(n)
			arg = removed
		default:
			clean, found := scrub(arg)
			if found {
				debt(n)
			} else if password(before, program(s.Command), arg) {
				s.find(n, "if it is one, "+cannotBind, "follows %s, which often is a password", before)
			}
			arg = clean
		}
		out = append(out, arg)
	}
	return out
}

// bridged imports a program that only brings a client of stdio to a URL as what it
// brings to: mcp-remote, with its --header arguments.
func (s *draft) bridged(args []*node) bool {
	at := slices.IndexFunc(args, func(a *node) bool { return a.value == "mcp-remote" || strings.HasPrefix(a.value, "mcp-remote@") })
	if program(s.Command) != "npx" || at < 0 || at+1 >= len(args) || !strings.HasPrefix(args[at+1].value, "http") {
		return false
	}
	s.note(args[at], "", "is left out: toolbroker reaches the address itself")
	var headers []*node
	for i := at + 2; i < len(args); i++ {
		switch {
		case args[i].value == "--header" && i+1 < len(args):
			i++
			name, value, _ := strings.Cut(args[i].value, ":")
			headers = append(headers, &node{path: args[i].path, name: strings.TrimSpace(name), line: args[i].line, kind: '"', value: strings.TrimSpace(value)})
		case args[i].value == "--transport" && i+1 < len(args):
			if i++; strings.HasPrefix(args[i].value, "sse") {
				s.Protocol = "sse"
			}
		default:
			switch value := args[i].value; {
			case looksSecret(value) || i > 0 && secretName(args[i-1].value) && !strings.HasPrefix(value, "-"):
				s.find(args[i], "bind it as a header, if it is one", "holds what looks like a secret of mcp-remote's own, which toolbroker has no use for; it is not carried over")
			case strings.HasPrefix(value, "-") && !strings.Contains(value, "="):
				s.note(args[i], "", "is mcp-remote's own (%s), and left out", value)
			default:
				s.note(args[i], "", "is mcp-remote's own, and left out")
			}
		}
	}
	s.Command = ""
	s.remote(args[at+1], headers)
	return true
}

// program is a command's name without its folder and Windows' endings.
func program(command string) string {
	name := strings.ToLower(command[strings.LastIndexAny(command, `/\`)+1:])
	for _, end := range []string{".exe", ".cmd", ".bat"} {
		name = strings.TrimSuffix(name, end)
	}
	return name
}
