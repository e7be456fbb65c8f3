package dev

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"toolbroker/brokers/secrets/standin"
)

// A vault is where the sample servers' credentials come from.
type vault struct {
	name      string // for the tutorial
	address   string
	token     string
	ca        string
	namespace string
	standIn   bool
	notesKey  string
	verify    func(ctx context.Context, token string) error // of the tracker's callers
	close     func()
}

// openVault takes the Vault that the environment names, else runs a vault or bao
// that is on PATH, else our stand-in; and puts the samples' secrets there.
func openVault(ctx context.Context, dir string) (*vault, error) {
	v := &vault{notesKey: rand.Text(), close: func() {}}
	if address := os.Getenv("VAULT_ADDR"); address != "" {
		v.name, v.address, v.token = "Vault at "+address, address, os.Getenv("VAULT_TOKEN")
		v.ca, v.namespace = os.Getenv("VAULT_CACERT"), os.Getenv("VAULT_NAMESPACE")
		if v.token == "" {
			return nil, errors.New("VAULT_ADDR is set but VAULT_TOKEN is not; set both, or neither")
		}
		return v, v.furnish(ctx)
	}
	for _, program := range []string{"vault", "bao"} {
		if path, err := exec.LookPath(program); err == nil {
			if err := v.run(ctx, program, path, dir); err != nil {
				return nil, err
			}
			if err := v.furnish(ctx); err != nil {
				v.close()
				return nil, err
			}
			return v, nil
		}
	}
	s, err := standin.Start("127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s.Creds("tracker", 5*time.Minute)
	s.PutKV("toolbroker-dev/notes", map[string]any{"key": v.notesKey})
	s.Policy("toolbroker-dev", map[string][]string{"creds/tracker": {"read"}, "secret/data/toolbroker-dev/*": {"read"}})
	v.name, v.address, v.token, v.standIn = "a stand-in for Vault, in this process", s.Address(), s.RootToken(), true
	v.verify = func(_ context.Context, token string) error { return s.Verify(token) }
	v.close = func() { s.Close() }
	return v, nil
}

// run starts a Vault or OpenBao in its dev mode: in memory, on loopback, gone with us.
func (v *vault) run(ctx context.Context, program, path, dir string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	listen := l.Addr().String()
	l.Close()
	v.name, v.address, v.token = program+" in dev mode", "http://"+listen, rand.Text()
	logFile, err := os.OpenFile(filepath.Join(dir, "vault.log"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close()
	// By environment, because a command line can be read by everybody here.
	cmd := exec.Command(path, "server", "-dev", "-dev-no-store-token")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir,
		"VAULT_DEV_ROOT_TOKEN_ID=" + v.token, "VAULT_DEV_LISTEN_ADDRESS=" + listen,
		"BAO_DEV_ROOT_TOKEN_ID=" + v.token, "BAO_DEV_LISTEN_ADDRESS=" + listen}
	cmd.SysProcAttr = child()
	startedUp, ended := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // a child that is to end with us ends with the thread that started it
		err := cmd.Start()
		startedUp <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is in its log
		}
	}()
	if err := <-startedUp; err != nil {
		return fmt.Errorf("start %s: %w", path, err)
	}
	v.close = func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // it keeps nothing, so nothing is lost
		<-ended
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		if v.request(ctx, "GET", "sys/health", nil) == nil {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ended:
			return fmt.Errorf("%s ended at once; see %s/vault.log", path, dir)
		case <-ctx.Done():
			v.close()
			return fmt.Errorf("%s did not answer; see %s/vault.log", path, dir)
		}
	}
}

// furnish puts the samples' secrets into a real Vault, under a policy of their own.
func (v *vault) furnish(ctx context.Context) error {
	trackerToken := rand.Text()
	v.verify = func(_ context.Context, token string) error {
		if subtle.ConstantTimeCompare([]byte(token), []byte(trackerToken)) != 1 {
			return errors.New("wrong token")
		}
		return nil
	}
	for path, body := range map[string]any{
		"sys/policies/acl/toolbroker-dev":    map[string]any{"policy": `path "secret/data/toolbroker-dev/*" { capabilities = ["read"] }`},
		"secret/data/toolbroker-dev/tracker": map[string]any{"data": map[string]string{"token": trackerToken}},
		"secret/data/toolbroker-dev/notes":   map[string]any{"data": map[string]string{"key": v.notesKey}},
	} {
		if err := v.request(ctx, "POST", path, body); err != nil {
			return fmt.Errorf("prepare %s (KV version 2 at secret/, and a token that may write it and a policy): %w", v.name, err)
		}
	}
	return nil
}

func (v *vault) client() (*http.Client, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if v.ca != "" {
		pem, err := os.ReadFile(v.ca)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("VAULT_CACERT: %s holds no PEM certificate", v.ca)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	return &http.Client{Transport: transport, Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // the token is for this address only
	}}, nil
}

func (v *vault) request(ctx context.Context, method, path string, body any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, v.address+"/v1/"+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	req.Header.Set("X-Vault-Token", v.token)
	req.Header.Set("X-Vault-Request", "true")
	if v.namespace != "" {
		req.Header.Set("X-Vault-Namespace", v.namespace)
	}
	client, err := v.client()
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s: %s", path, resp.Status)
	}
	return nil
}
