package importer

import (
	"encoding/json"
	"math"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// What is a secret is guessed from how it is called and how it looks. To take a
// plain value for one costs a line in Vault; the other way round costs a secret, so
// the guesses lean that way.

// removed stands where a value was that the fragment may not hold.
const removed = "REMOVED"

var secretWords = []string{
	"token", "tokens", "secret", "secrets", "password", "passwd", "passphrase", "pwd", "pass", "apikey", "auth", "authorization",
	"bearer", "credential", "credentials", "cookie", "pat", "dsn", "jwt", "sas", "apitoken", "accesstoken", "secretkey", "accesskey",
	"authtoken", "privatekey", "webhook",
}

// secretEnds end words that are run together: PGPASSWORD.
var secretEnds = []string{"password", "passwd", "passphrase", "pwd", "secret", "token", "apikey"}

// what a name of a secret word ends with that is about the secret, not it.
var aboutSecrets = []string{
	"url", "uri", "endpoint", "host", "port", "name", "type", "mode", "scheme", "algorithm", "header", "limit", "max", "count", "ttl",
	"timeout", "expiry", "scope", "scopes", "audience", "issuer", "enabled", "required", "provider", "file", "path", "dir", "method", "length", "size",
}

// words cuts a name such as GITHUB_TOKEN, --api-key or apiKey into lower-case words.
func words(name string) []string {
	var b strings.Builder
	lower := false
	for _, r := range name {
		if unicode.IsUpper(r) && lower {
			b.WriteByte(' ')
		}
		lower = unicode.IsLower(r) || unicode.IsDigit(r)
		if !unicode.IsLetter(r) && !unicode.IsDigit(r) {
			r = ' '
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return strings.Fields(b.String())
}

// secretName reports whether what is called that is a secret.
func secretName(name string) bool {
	all := words(name)
	if len(all) == 0 {
		return false
	}
	last := all[len(all)-1]
	if len(all) > 1 && slices.Contains(aboutSecrets, last) || slices.Contains([]string{"max", "limit"}, all[0]) {
		return false
	}
	if last == "key" && !slices.Contains(all, "public") {
		return true
	}
	return slices.ContainsFunc(all, func(w string) bool {
		return slices.Contains(secretWords, w) || slices.ContainsFunc(secretEnds, func(end string) bool { return strings.HasSuffix(w, end) })
	})
}

// secretFile reports whether what is called that, and is this, names a file that
// holds a secret.
func secretFile(name, value string) bool {
	all := words(name)
	isPath := strings.ContainsAny(value, `/\`) && !strings.Contains(value, "://") && !looksSecret(strings.TrimLeft(value, "/"))
	if len(all) > 1 && slices.Contains([]string{"file", "path"}, all[len(all)-1]) {
		return isPath && secretName(strings.Join(all[:len(all)-1], " "))
	}
	return isPath && secretName(name) && places.MatchString(value)
}

// places begin a path on somebody's machine; a key may begin with a slash as well.
var places = regexp.MustCompile(`^(~|\.{1,2}|[A-Za-z]:|\$\{[A-Za-z]+\}|/(home|Users|root|etc|var|run|opt|tmp|usr|srv|mnt|secrets|private|Library))[/\\]`)

// secretValue reports whether a named value is a secret.
func secretValue(name, value string) bool {
	return !empty(value) && (secretName(name) || looksSecret(value))
}

// empty reports whether a value says nothing, or only yes or no.
func empty(value string) bool {
	return slices.Contains([]string{"", "true", "false", "yes", "no", "on", "off", "none", "null"}, strings.ToLower(strings.TrimSpace(value)))
}

var hexDigest = regexp.MustCompile(`^[0-9a-f]{32,128}$`)

// digest reports whether a value is called the digest of something, and looks so.
func digest(name, value string) bool {
	all := words(name)
	return len(all) > 0 && hexDigest.MatchString(value) && slices.Contains([]string{"sha256", "sha384", "sha512", "sha1", "md5", "digest", "checksum", "fingerprint", "commit"}, all[len(all)-1])
}

// shapes of keys and tokens whose makers let them be recognised, and of secrets
// within other text.
var shapes = regexp.MustCompile(`(?i:\b(?:bearer|basic|token|apikey|bot)\s+[A-Za-z0-9._~+/=-]{6,})` +
	`|\b(?:gh[pousr]_|github_pat_|glpat-|glptt-|sk-|sk_(?:live|test)_|rk_(?:live|test)_|pk_(?:live|test)_|xox[abeoprs]-|xapp-|hvs\.|hvb\.|npm_|pypi-|ntn_|secret_|figd_|lin_api_|dop_v1_|shpat_|ATATT|ATCTT|SG\.|tvly-|fc-|dapi|pplx-|gsk_|hf_|r8_|BSA|ctx7sk-|sntrys_|sntryu_|eyJ)[A-Za-z0-9_.=-]{8,}` +
	`|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[A-Za-z0-9_-]{20,}` +
	`|-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(?:-----END [A-Z ]*PRIVATE KEY-----)?` +
	`|\b[a-fA-F0-9]{32,}\b`)

var (
	userinfo   = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)([^\s/@:]*):([^\s/@]+)@`)
	digests    = regexp.MustCompile(`\bsha(?:256|384|512)[:-][A-Za-z0-9+/=]+|#[a-f0-9]{40}\b|@[a-f0-9]{40}\b`)
	runs       = regexp.MustCompile(`[A-Za-z0-9]{20,}`)
	uuid       = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)
	addresses  = regexp.MustCompile(`[A-Za-z][A-Za-z0-9+.-]*://[^\s"'<>]+`)
	headerLine = regexp.MustCompile(`^([A-Za-z0-9_-]{1,64}):\s*(.+)$`)
	assigns    = regexp.MustCompile(`(^|[\s"';&?])(-{0,2}[A-Za-z][A-Za-z0-9_.-]*)(\s*[=:]\s*|\s+)("[^"]*"|'[^']*'|[^\s"'&;]+)`)
)

// looksSecret reports whether a text has a secret in it, whatever it is called.
func looksSecret(s string) bool {
	s = digests.ReplaceAllString(s, "")
	return shapes.MatchString(s) || userinfo.MatchString(s) || slices.ContainsFunc(runs.FindAllString(s, -1), random) || names(s)
}

// names reports whether something within a text is called a secret: in JSON, in the
// query of an address, or in what is assigned.
func names(s string) bool {
	if v, ok := asJSON(s); ok {
		return named(v)
	}
	for _, address := range addresses.FindAllString(s, -1) {
		if u, err := url.Parse(address); err == nil && len(scrubURL(u)) > 0 {
			return true
		}
	}
	return slices.ContainsFunc(assigns.FindAllStringSubmatch(addresses.ReplaceAllString(s, " "), -1), assigned)
}

// asJSON is a text that is an object or a list in JSON.
func asJSON(s string) (v any, ok bool) {
	s = strings.TrimSpace(s)
	return v, strings.ContainsAny(s[:min(1, len(s))], "{[") && json.Unmarshal([]byte(s), &v) == nil
}

func named(v any) bool {
	switch v := v.(type) {
	case map[string]any:
		for name, x := range v {
			if text, ok := x.(string); named(x) || ok && secretValue(name, text) {
				return true
			}
		}
	case []any:
		return slices.ContainsFunc(v, named)
	case string:
		return looksSecret(v)
	}
	return false
}

// assigned reports whether a match of assigns gives a secret its value.
func assigned(p []string) bool {
	flag := strings.HasPrefix(p[2], "-") || strings.TrimSpace(p[3]) != ""
	return flag && secretName(p[2]) && !strings.HasPrefix(p[4], "-") && !strings.HasPrefix(p[4], "$") && !empty(p[4]) && p[4] != removed
}

// login reports whether an argument called name is a user with a password; uid:gid
// is none.
func login(name, value string) bool {
	user, password, ok := strings.Cut(value, ":")
	return ok && user != "" && password != "" && !strings.ContainsAny(value, "/\\ ") && strings.Trim(value, "0123456789:") != "" &&
		slices.Contains([]string{"u", "user", "userpwd", "proxy-user", "basic-auth", "login"}, strings.TrimLeft(name, "-"))
}

var (
	odd    = regexp.MustCompile("[!#$%^&*?~|<>`;]")
	inside = regexp.MustCompile(`[A-Za-z][0-9]+[A-Za-z]`)
)

// drawn reports whether an argument as a whole looks like a password: no word, name,
// number, path or address, with signs or digits where people do not write them.
func drawn(s string) bool {
	lower, upper, digit := strings.IndexFunc(s, unicode.IsLower) >= 0, strings.IndexFunc(s, unicode.IsUpper) >= 0, strings.IndexFunc(s, unicode.IsDigit) >= 0
	switch {
	case len(s) < 8 || len(s) > 128 || strings.ContainsAny(s, " \t\n/\\={}()[]") || !digit || !lower && !upper:
		return false
	case odd.MatchString(s):
		return true
	}
	return lower && upper && inside.MatchString(s)
}

// ordinary is what follows -p where that is no password: a port, a version.
var ordinary = regexp.MustCompile(`^[0-9.:,-]+(/(tcp|udp))?$`)

// password reports whether what follows a flag often is one, for programs of whose
// flags nothing is known.
func password(flag, program, value string) bool {
	known := []string{"npx", "bunx", "pnpx", "npm", "pnpm", "yarn", "bun", "uv", "uvx", "pipx", "docker", "podman", "nerdctl"}
	return slices.Contains([]string{"-p", "-P", "-pw", "--pw"}, flag) && !slices.Contains(known, program) &&
		!strings.HasPrefix(value, "-") && !ordinary.MatchString(value) && !places.MatchString(value) && !empty(value)
}

// random reports whether a run of letters and digits looks drawn, not written.
func random(s string) bool {
	count, digits, letters := map[rune]float64{}, 0, 0
	for _, r := range s {
		count[r]++
		if unicode.IsDigit(r) {
			digits++
		} else {
			letters++
		}
	}
	bits := 0.0
	for _, n := range count {
		bits -= n / float64(len(s)) * math.Log2(n/float64(len(s)))
	}
	return digits >= 2 && letters >= 2 && bits >= 3
}

// scrub takes secrets out of a text that is no longer named, such as a shell's
// line, and reports whether it found one.
func scrub(s string) (string, bool) {
	was := s
	if h := headerLine.FindStringSubmatch(s); h != nil && secretName(h[1]) {
		return h[1] + ": " + removed, true
	}
	if v, ok := asJSON(s); ok && named(v) {
		return removed, true
	}
	s = addresses.ReplaceAllStringFunc(s, func(address string) string {
		if u, err := url.Parse(address); err == nil && len(scrubURL(u)) > 0 {
			return u.String()
		}
		return address
	})
	s = userinfo.ReplaceAllString(s, "${1}"+removed+"@")
	kept := digests.FindAllString(s, -1)
	s = digests.ReplaceAllString(s, "\x00")
	s = shapes.ReplaceAllString(s, removed)
	s = runs.ReplaceAllStringFunc(s, func(run string) string {
		if random(run) {
			return removed
		}
		return run
	})
	for _, d := range kept {
		s = strings.Replace(s, "\x00", d, 1)
	}
	s = assigns.ReplaceAllStringFunc(s, func(m string) string {
		p := assigns.FindStringSubmatch(m)
		if !assigned(p) {
			return m
		}
		return p[1] + p[2] + p[3] + removed
	})
	return s, s != was
}

// scrubURL takes secrets out of a URL's path and query; its user is another matter.
func scrubURL(u *url.URL) (found []string) {
	var parts []string
	for _, part := range strings.Split(u.EscapedPath(), "/") {
		plain, err := url.PathUnescape(part)
		if err != nil || looksSecret(plain) || uuid.MatchString(plain) {
			part, found = removed, append(found, "path")
		}
		parts = append(parts, part)
	}
	if len(found) > 0 {
		u.RawPath = ""
		u.Path = strings.Join(parts, "/")
	}
	query := strings.Split(u.RawQuery, "&")
	for i, pair := range query {
		name, value, _ := strings.Cut(pair, "=")
		plain, err := url.QueryUnescape(value)
		key, kerr := url.QueryUnescape(name)
		if pair != "" && (err != nil || kerr != nil || secretValue(key, plain) || uuid.MatchString(plain)) {
			query[i], found = name+"="+removed, append(found, "query")
			if looksSecret(key) {
				query[i] = removed
			}
		}
	}
	u.RawQuery = strings.Join(query, "&")
	if looksSecret(u.Fragment) {
		u.Fragment, u.RawFragment, found = removed, "", append(found, "fragment")
	}
	return slices.Compact(found)
}
