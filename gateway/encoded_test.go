package gateway_test

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"

	"toolbroker/gateway"
)

// However the caller's own credential is encoded, once or twice, no tool gets it.
func TestOwnCredentialEncoded(t *testing.T) {
	upper := func(s string) string {
		var b strings.Builder
		for i, c := range hex.EncodeToString([]byte(s)) {
			if i%3 == 0 {
				b.WriteString(strings.ToUpper(string(c)))
			} else {
				b.WriteRune(c)
			}
		}
		return b.String()
	}
	std := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	url := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	plain := func(s string) string { return s }
	ways := map[string]func(string) string{"plain": plain, "hex in both cases": upper, "hex": func(s string) string { return hex.EncodeToString([]byte(s)) }, "base64": std, "base64url": url}
	for _, secret := range []string{"tbk_Zm9vYmFyYmF6cXV4MDEyMzQ1Njc4OWFiY2RlZg", "ÿÿþ~~~???>>>ÿÿÿ", strings.Repeat("eyJhbGciOi.", 60)} {
		for first, a := range ways {
			for second, b := range ways {
				for _, around := range [][2]string{{"", ""}, {"x", "y"}, {"Bearer ", " and more"}, {"ab", "cd=="}} {
					text, _ := json.Marshal(map[string]string{"x": around[1] + b(around[0]+a(secret)+around[1]) + "."})
					if gateway.Keeps(text, secret) == nil {
						t.Errorf("%s of %s, in %q: goes through", second, first, around)
					}
					escaped := strings.ReplaceAll(string(text), "/", `\/`)
					if gateway.Keeps(json.RawMessage(escaped), secret) == nil {
						t.Errorf("%s of %s, in %q, escaped: goes through", second, first, around)
					}
				}
				other, _ := json.Marshal(map[string]string{"x": b(a("another" + secret[:len(secret)-2]))})
				if err := gateway.Keeps(other, secret); err != nil {
					t.Errorf("%s of %s of another: %v", second, first, err)
				}
			}
		}
	}
}

func BenchmarkEncodes(b *testing.B) {
	const secret = "tbk_Zm9vYmFyYmF6cXV4MDEyMzQ1Njc4OWFiY2RlZg"
	for name, text := range map[string]string{
		"small":           `{"path":"some/file","amount":12.5,"to":{"iban":"DE00"},"tags":["a","b","c"],"text":"a few more words, as people write them"}`,
		"1 MiB of words":  strings.Repeat("as people write them, ", 50_000),
		"1 MiB of base64": base64.StdEncoding.EncodeToString([]byte(strings.Repeat("as people write them, ", 36_000))),
		"1 MiB of zeros":  strings.Repeat("0", 1<<20),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if gateway.Encodes([]byte(text), secret) {
					b.Fatal("it does not")
				}
			}
		})
	}
}
