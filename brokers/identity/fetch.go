package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/go-json-experiment/json"
)

const mostFetched = 512 << 10

// fetcher returns what gets an issuer's JWKS: from a file, from its URL, or from
// the URL that its metadata names.
func fetcher(is Issuer) (func(context.Context) ([]byte, error), error) {
	if is.JWKSFile != "" {
		if is.JWKSURL != "" {
			return nil, errors.New("its keys are in a file or at a URL, not both")
		}
		return func(context.Context) ([]byte, error) { return readFile(is.JWKSFile) }, nil
	}
	if is.JWKSURL != "" {
		if u, err := url.Parse(is.JWKSURL); err != nil || !safeURL(u) {
			return nil, errors.New("its keys' url must be https://, or http:// on loopback")
		}
	}
	client, err := httpClient(is.CAFile)
	if err != nil {
		return nil, err
	}
	w := web{client: client, tokenFile: is.TokenFile}
	return func(ctx context.Context) ([]byte, error) {
		if is.JWKSURL != "" {
			return w.get(ctx, is.JWKSURL)
		}
		at, err := w.discover(ctx, is.URL)
		if err != nil {
			return nil, err
		}
		return w.get(ctx, at)
	}, nil
}

// httpClient follows no redirect: where keys are is said by the config or by the
// issuer's metadata, not by whoever answers.
func httpClient(caFile string) (*http.Client, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile != "" {
		text, err := readFile(caFile)
		if err != nil {
			return nil, err
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s holds no PEM certificate", caFile)
		}
	}
	return &http.Client{
		Timeout: fetchTimeout,
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: conf, ForceAttemptHTTP2: true, DisableCompression: true,
			MaxResponseHeaderBytes: 16 << 10, MaxIdleConnsPerHost: 1, IdleConnTimeout: fetchTimeout,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

type web struct {
	client    *http.Client
	tokenFile string
}

// get returns a document of bounded size. Its errors name no URL, which may be
// anything, and nothing that was answered.
func (w web) get(ctx context.Context, at string) ([]byte, error) {
	u, err := url.Parse(at)
	if err != nil || !safeURL(u) {
		return nil, errors.New("a url that is not https://, nor http:// on loopback")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, errors.New("a url that is none")
	}
	req.Header.Set("Accept", "application/json, application/jwk-set+json")
	if w.tokenFile != "" {
		token, err := readFile(w.tokenFile)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	res, err := w.client.Do(req)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err
		}
		return nil, fmt.Errorf("fetch: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetch: status %d", res.StatusCode)
	}
	text, err := io.ReadAll(io.LimitReader(res.Body, mostFetched+1))
	if err != nil {
		return nil, fmt.Errorf("fetch: %w", err)
	}
	if len(text) > mostFetched {
		return nil, fmt.Errorf("fetch: longer than %d bytes", mostFetched)
	}
	return text, nil
}

// discover asks the issuer's metadata where its keys are: OpenID Connect's
// place, then RFC 8414's. Metadata about another issuer is none.
func (w web) discover(ctx context.Context, issuer string) (string, error) {
	u, err := url.Parse(issuer)
	if err != nil {
		return "", errors.New("a url that is none")
	}
	host, path := u.Scheme+"://"+u.Host, strings.TrimSuffix(u.Path, "/")
	var last error
	for _, at := range []string{
		host + path + "/.well-known/openid-configuration",
		host + "/.well-known/oauth-authorization-server" + path,
	} {
		text, err := w.get(ctx, at)
		if err != nil {
			last = err
			continue
		}
		var meta struct {
			Issuer string `json:"issuer"`
			Keys   string `json:"jwks_uri"`
		}
		if err := json.Unmarshal(text, &meta); err != nil || meta.Issuer != issuer || meta.Keys == "" {
			last = errors.New("its metadata is about another issuer, or names no keys")
			continue
		}
		if k, err := url.Parse(meta.Keys); err != nil || !safeURL(k) || k.Scheme != "https" && u.Scheme == "https" {
			last = errors.New("its metadata names keys at a url that is not https://")
			continue
		}
		return meta.Keys, nil
	}
	return "", fmt.Errorf("discovery: %w", last)
}

// safeURL reports whether nobody on the way can answer in another's place.
func safeURL(u *url.URL) bool {
	if u.User != nil || u.Host == "" || u.Fragment != "" {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Scheme == "https" || u.Scheme == "http" && (u.Hostname() == "localhost" || ip != nil && ip.IsLoopback())
}

// CheckKeys says what is wrong with a file of an issuer's keys; nil is nothing.
func CheckKeys(path string) error {
	text, err := readFile(path)
	if err == nil {
		_, err = parseKeys(text)
	}
	return err
}

// readFile reads a file of bounded size.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, mostFetched+1))
	if err != nil {
		return nil, err
	}
	if len(text) > mostFetched {
		return nil, fmt.Errorf("%s is longer than %d bytes", path, mostFetched)
	}
	return text, nil
}
