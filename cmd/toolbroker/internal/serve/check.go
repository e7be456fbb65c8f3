package serve

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"toolbroker/authz"
	"toolbroker/brokers"
	"toolbroker/brokers/identity"
	"toolbroker/brokers/operators"
	"toolbroker/brokers/servers"
	"toolbroker/cmd/toolbroker/internal/config"
)

// Check reads what a config names and says what of it would keep [New] from
// starting, or what starts from working: the policy, certificates, keys, tokens,
// conditions, templates, commands. It makes no file, opens no address and asks
// nobody.
func Check(c *config.Config) []config.Problem {
	k := &checker{c: c}
	k.ours()
	k.policy()
	k.listener("agent", c.Agent.TLS)
	k.listener("console", c.Console.TLS)
	k.listener("management", c.Management.TLS)
	k.secret("redis.password_file", c.Redis.PasswordFile)
	k.authorities("redis.ca", c.Redis.CA)
	k.identity()
	k.vault()
	k.made()
	slices.SortStableFunc(k.found, func(a, b config.Problem) int { return cmp.Compare(a.Line, b.Line) })
	return k.found
}

type checker struct {
	c     *config.Config
	found []config.Problem
}

// is takes down what is wrong with a key, if something is.
func (k *checker) is(key string, err error) bool {
	if err != nil {
		k.found = append(k.found, k.c.At(key, "", "%v", err))
	}
	return err == nil
}

// there reports whether a file can be read, where one is named.
func (k *checker) there(key string, file config.Path) bool {
	if file == "" {
		return false
	}
	f, err := os.Open(string(file))
	if err == nil {
		_, err = f.Read(make([]byte, 1)) // a directory opens, too
		f.Close()
	}
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%s is empty", file)
	}
	return k.is(key, err)
}

// secret wants a file that only we can read.
func (k *checker) secret(key string, file config.Path) {
	if k.there(key, file) {
		k.is(key, private(string(file)))
	}
}

func (k *checker) authorities(key string, file config.Path) {
	if !k.there(key, file) {
		return
	}
	text, err := os.ReadFile(string(file))
	if err == nil && !x509.NewCertPool().AppendCertsFromPEM(text) {
		err = fmt.Errorf("%s holds no PEM certificate", file)
	}
	k.is(key, err)
}

// ours are the files that are made where there are none.
func (k *checker) ours() {
	if _, err := os.Stat(string(k.c.DataDir)); err == nil {
		k.is("data_dir", private(string(k.c.DataDir)))
	} else if !errors.Is(err, fs.ErrNotExist) {
		k.is("data_dir", err)
	}
	for key, files := range map[string][]string{
		"seal_key": {string(k.c.SealKey)},
		"data_dir": {filepath.Join(string(k.c.DataDir), "checkpoint.key"), filepath.Join(string(k.c.DataDir), "task.key")},
	} {
		for _, file := range files {
			if _, err := os.Lstat(file); errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if k.is(key, private(file)) && key == "seal_key" {
				_, err := sealKey(file)
				k.is(key, err)
			}
		}
	}
	if dir := filepath.Dir(string(k.c.SealKey)); dir != string(k.c.DataDir) { // which we do not make
		_, err := os.Stat(dir)
		k.is("seal_key", err)
	}
}

func (k *checker) policy() {
	if file := k.c.Policy.Model; file != "" && !k.there("policy.model", file) || !k.there("policy.file", k.c.Policy.File) {
		return
	}
	said := false
	_, err := authz.Open(authz.StoreConfig{File: string(k.c.Policy.File), Model: string(k.c.Policy.Model), Check: casesHold, OnReject: func(findings []authz.Finding) {
		for _, f := range findings {
			if f.Severity == authz.SeverityError {
				said = true
				k.is("policy.file", errors.New(f.String()))
			}
		}
	}})
	if !said {
		k.is("policy.file", err)
	}
}

func (k *checker) listener(name string, files config.TLS) {
	if files.Cert == "" || !k.there(name+".tls.cert", files.Cert) || !k.there(name+".tls.key", files.Key) || !k.is(name+".tls.key", private(string(files.Key))) {
		return
	}
	_, err := tls.LoadX509KeyPair(string(files.Cert), string(files.Key))
	k.is(name+".tls", err)
}

func (k *checker) identity() {
	c := k.c
	for i, key := range apiKeys(c) {
		_, err := identity.New(identity.Config{Keys: []identity.APIKey{key}, Tenants: c.Tenants, Owners: names(c.Operators)})
		k.is(fmt.Sprintf("identity.api_keys[%d]", i), err)
	}
	made := issuers(c)
	for i, is := range c.Identity.Issuers {
		key := fmt.Sprintf("identity.issuers[%d]", i)
		all := map[string]config.Path{"jwks_file": is.JWKSFile, "ca": is.CA, "token_file": is.TokenFile}
		for j, file := range is.CAs {
			all[fmt.Sprintf("cas[%d]", j)] = file
		}
		for domain, file := range is.Bundles {
			all["bundles."+domain] = file
		}
		good := true
		for _, setting := range slices.Sorted(maps.Keys(all)) {
			good = (all[setting] == "" || k.there(key+"."+setting, all[setting])) && good
		}
		if !good {
			continue
		}
		if is.JWKSFile != "" {
			k.is(key+".jwks_file", identity.CheckKeys(string(is.JWKSFile)))
		}
		_, err := identity.New(identity.Config{Issuers: made[i : i+1], Tenants: c.Tenants, Owners: names(c.Operators), ActDepth: c.Identity.ActDepth})
		k.is(key, err)
	}
}

func (k *checker) vault() {
	k.authorities("vault.ca", k.c.Vault.CA)
	k.secret("vault.token_file", k.c.Vault.TokenFile)
	k.secret("vault.approle.secret_id_file", k.c.Vault.AppRole.SecretIDFile)
}

// made is what is made of settings, and may turn out to be none.
func (k *checker) made() {
	c := k.c
	for i, kind := range c.TaskKinds {
		key := fmt.Sprintf("task_kinds[%d]", i)
		_, err := scopeOf(kind.Scope)
		k.is(key+".scope", err)
		_, err = scopeOf(kind.Initial)
		k.is(key+".initial", err)
	}
	nowhere, err := brokers.OpenStore(brokers.StoreConfig{Embedded: true, Tenants: []string{"check"}, SealKey: make([]byte, 32)})
	if k.is("operators", err) {
		defer nowhere.Close()
		for i, o := range people(c) {
			_, err := operators.New(operators.Config{Store: nowhere, Operators: []operators.Operator{o}})
			k.is(fmt.Sprintf("operators[%d]", i), err)
		}
	}
	var good []servers.Server
	for i, s := range downstreams(c, false) {
		made, err := servers.New(servers.Config{Servers: append(good, s), Tenants: c.Tenants})
		if k.is(fmt.Sprintf("servers[%d]", i), err) {
			good = append(good, s)
			_ = made.Close(context.Background()) // nothing runs
		}
	}
	at := map[string]int{}
	for i, s := range c.Servers {
		at[s.Name] = i
	}
	for _, b := range bindings(c) {
		if len(b.Tenants) == 0 {
			b.Tenants = c.Tenants
		}
		k.is(fmt.Sprintf("servers[%d].credential", at[b.Server]), b.Check())
	}
}
