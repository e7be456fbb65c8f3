// Tracker serves the sample issue tracker over Streamable HTTP.
package main

import (
	"context"
	"crypto/subtle"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"toolbroker/examples/servers/tracker"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:7301", "address to serve http://ADDRESS/mcp on")
	file := flag.String("file", "issues.json", "where the issues are kept")
	tokenFile := flag.String("token-file", "", "file with the token that calls must carry, read anew for each call; else TRACKER_TOKEN in the environment")
	flag.Parse()
	log.SetFlags(0)
	log.SetPrefix("tracker: ")

	want := func() (string, error) { return os.Getenv("TRACKER_TOKEN"), nil }
	if *tokenFile != "" {
		want = func() (string, error) {
			data, err := os.ReadFile(*tokenFile)
			return strings.TrimSpace(string(data)), err
		}
	}
	if token, err := want(); err != nil || token == "" {
		log.Fatal("give it the token that calls must carry: -token-file FILE, or TRACKER_TOKEN in the environment")
	}
	mux := http.NewServeMux()
	mux.Handle("/mcp", tracker.Handler(tracker.Config{File: *file, Verify: func(_ context.Context, token string) error {
		right, err := want()
		if err != nil || right == "" || subtle.ConstantTimeCompare([]byte(token), []byte(right)) != 1 {
			return errors.New("wrong token")
		}
		return nil
	}}))

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("http://%s/mcp\n", l.Addr())
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { s.Close() })
	if err := s.Serve(l); err != nil && ctx.Err() == nil {
		log.Fatal(err)
	}
}
