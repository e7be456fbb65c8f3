package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"toolbroker/cmd/toolbroker/internal/config"
)

// An adminClient speaks the console's admin API as one operator. It logs in
// when it is made and out when it is closed; nothing is stored in between.
type adminClient struct {
	base     string
	http     *http.Client
	token    string
	operator struct {
		Name   string   `json:"name"`
		Worlds []string `json:"worlds"` // its tenants, by name
	}
}

// adminFlags are how a command reaches the console and who is asking.
type adminFlags struct{ console, operator, passwordFile, ca string }

func (f *adminFlags) register(cmd *cobra.Command) {
	flags := cmd.PersistentFlags()
	flags.StringVar(&f.console, "console", "", "the console's address (or TOOLBROKER_CONSOLE)")
	flags.StringVar(&f.operator, "operator", "", "who logs in (or TOOLBROKER_OPERATOR)")
	flags.StringVar(&f.passwordFile, "password-file", "", "file with the password (or TOOLBROKER_OPERATOR_PASSWORD_FILE); default: ask")
	flags.StringVar(&f.ca, "ca", "", "PEM file of whom to trust (or TOOLBROKER_CA); default: the system's")
}

// login asks for the password where no file holds it.
func (f *adminFlags) login(ctx context.Context) (*adminClient, error) {
	base, err := endpoint(or(f.console, "TOOLBROKER_CONSOLE"), "--console", "TOOLBROKER_CONSOLE")
	if err != nil {
		return nil, err
	}
	name := or(f.operator, "TOOLBROKER_OPERATOR")
	if name == "" {
		return nil, usage("who are you? give --operator NAME or set TOOLBROKER_OPERATOR")
	}
	client, err := trusting(or(f.ca, "TOOLBROKER_CA"))
	if err != nil {
		return nil, err
	}
	password, err := f.password(name)
	if err != nil {
		return nil, err
	}
	a := &adminClient{base: base, http: client}
	var reply struct {
		Token    string          `json:"token"`
		Operator json.RawMessage `json:"operator"`
	}
	err = a.do(ctx, "POST", "/api/v1/login", map[string]string{"name": name, "password": password}, &reply)
	if err != nil {
		return nil, fmt.Errorf("log in as %s: %w", name, err)
	}
	a.token = reply.Token
	return a, json.Unmarshal(reply.Operator, &a.operator)
}

func (f *adminFlags) password(name string) (string, error) {
	if file := or(f.passwordFile, "TOOLBROKER_OPERATOR_PASSWORD_FILE"); file != "" {
		return secretFile(file)
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return "", usage("no terminal to ask for the password; give --password-file")
	}
	fmt.Fprintf(os.Stderr, "Password of %s: ", visible(name))
	password, err := term.ReadPassword(int(os.Stdin.Fd()))
	fmt.Fprintln(os.Stderr)
	return string(password), err
}

// close logs out, on a context of its own: an interrupted command leaves no session.
func (a *adminClient) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = a.do(ctx, "POST", "/api/v1/logout", nil, nil)
}

// tenant is the one named, or the only one the operator has.
func (a *adminClient) tenant(named string) (string, error) {
	theirs := a.operator.Worlds
	switch {
	case named == everyTenant:
		return "", usage("--tenant names one: %s", strings.Join(theirs, ", "))
	case named != "":
		return named, nil
	case len(theirs) == 1:
		return theirs[0], nil
	}
	return "", usage("whose? give --tenant NAME: %s", strings.Join(theirs, ", "))
}

// do sends one request and decodes the answer into out, unless that is nil.
func (a *adminClient) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if a.token != "" {
		req.Header.Set("Authorization", "Bearer "+a.token)
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return unreachable(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return unreachable(err)
	}
	if resp.StatusCode/100 != 2 {
		var said struct {
			Error struct{ Code, Message string } `json:"error"`
		}
		if json.Unmarshal(text, &said) != nil || said.Error.Message == "" {
			return fmt.Errorf("%s answered %s, which is no console's answer", a.base, resp.Status)
		}
		return errors.New(said.Error.Message)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("%s gave an answer that is no JSON", a.base)
	}
	return nil
}

// unreachable says it without the method and the whole URL.
func unreachable(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return fmt.Errorf("cannot reach %s: %w", u.URL, u.Err)
	}
	return err
}

// endpoint checks an address that a password or token is going to.
func endpoint(address, flag, env string) (string, error) {
	if address == "" {
		return "", usage("where is it? give %s URL or set %s", flag, env)
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return "", usage("%s: %q is not an http or https address", flag, address)
	}
	if u.Scheme == "http" && !config.Loopback(u.Hostname()) {
		return "", usage("%s: %s is plaintext off loopback; use https", flag, address)
	}
	return strings.TrimSuffix(address, "/"), nil
}

// trusting is an HTTP client that trusts the CA in a file, or the system's. It
// follows no redirect: what it carries is for one address.
func trusting(ca string) (*http.Client, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, usage("--ca: %s holds no PEM certificate", ca)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}, nil
}

// secretFile reads a secret's file and refuses one that others can read.
func secretFile(name string) (string, error) {
	info, err := os.Stat(name)
	if err != nil {
		return "", err
	}
	if info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%s can be read by others; chmod 600 it", name)
	}
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrPermission) {
		return "", err
	}
	return strings.TrimRight(string(text), "\r\n"), err
}

// or is a flag's value, or else the environment's.
func or(flag, env string) string {
	if flag != "" {
		return flag
	}
	return os.Getenv(env)
}
