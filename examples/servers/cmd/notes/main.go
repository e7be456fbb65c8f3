// Notes serves a folder of .md files, read only, over stdio.
package main

import (
	"context"
	"flag"
	"log"
	"os"
	"os/signal"
	"syscall"

	"toolbroker/examples/servers/notes"
)

func main() {
	c := notes.Config{Key: os.Getenv("NOTES_KEY")}
	flag.StringVar(&c.Dir, "dir", ".", "folder with the notes")
	flag.BoolVar(&c.RequireKey, "require-key", false, "refuse calls unless NOTES_KEY is in the environment")
	flag.StringVar(&c.KeyHash, "key-sha256", "", "with -require-key: the SHA-256 of the right key, in hex")
	flag.Parse()
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := notes.Run(ctx, os.Stdin, os.Stdout, c); err != nil {
		log.Fatal(err)
	}
}
