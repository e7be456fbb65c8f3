package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"toolbroker/cmd/toolbroker/internal/config"
	"toolbroker/cmd/toolbroker/internal/serve"
	"toolbroker/gateway"
)

func serveCommand() *cobra.Command {
	var file, tokenFile, task string
	var stdio, check bool
	cmd := &cobra.Command{
		Use:   "serve --config FILE",
		Short: "Run the gateway",
		Long: `Run the gateway that a config describes; config.example.yaml has every setting with
its sentence. /readyz on the management listener answers 200 when it can serve.

SIGHUP reads the policy and the certificates again. SIGTERM ends it in order: no new
calls, running ones finish (` + serve.Grace.String() + ` at most), credentials are given back, the log is closed.

With --stdio it also serves one agent on standard input and output, whose token is in
--token-file or TOOLBROKER_TOKEN, and ends with it.`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, problems := config.Load(file)
			for _, p := range problems {
				fmt.Fprintln(cmd.ErrOrStderr(), visible(p.String()))
			}
			if len(problems) > 0 {
				return errSilent
			}
			if check {
				problems := serve.Check(cfg)
				for _, p := range problems {
					fmt.Fprintln(cmd.ErrOrStderr(), visible(p.String()))
				}
				if len(problems) > 0 {
					return errSilent
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: good\n", visible(file))
				return err
			}
			if os.Getenv("GOGC") == "" {
				debug.SetGCPercent(200) // little is live, and every call leaves a lot behind
			}
			var level slog.Level
			if err := level.UnmarshalText([]byte(cfg.Log.Level)); err != nil {
				return err
			}
			opts := serve.Options{
				Mode: "serve", Version: version(),
				Logger: slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level})),
			}
			slog.SetDefault(opts.Logger) // for what a library says of its own accord
			if stdio {
				token, err := agentToken(tokenFile)
				if err != nil {
					return err
				}
				opts.Stdio = &serve.Stdio{In: os.Stdin, Out: os.Stdout, Cred: gateway.Credential{
					Bearer: gateway.NewSecret(token), Task: or(task, "TOOLBROKER_TASK"), Source: gateway.SourceStdio,
				}}
			}
			return runHouse(cmd.Context(), cfg, opts)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "the config file")
	cmd.Flags().BoolVar(&check, "check", false, "only say whether the config, and every file that it names, is good")
	cmd.Flags().BoolVar(&stdio, "stdio", false, "also serve one agent on standard input and output")
	cmd.Flags().StringVar(&tokenFile, "token-file", "", "with --stdio: file with the agent's token (or TOOLBROKER_TOKEN holds it)")
	cmd.Flags().StringVar(&task, "task", "", "with --stdio: the task, where the token is an API key (or TOOLBROKER_TASK)")
	required(cmd, "config")
	return cmd
}

func runHouse(ctx context.Context, cfg *config.Config, opts serve.Options) error {
	house, err := serve.New(ctx, cfg, opts)
	if err != nil {
		return err
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case <-hup:
				house.Reload()
			case <-done:
				return
			}
		}
	}()
	if err := house.Run(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// agentToken is an agent's own credential, never from the command line.
func agentToken(file string) (string, error) {
	if file != "" {
		return secretFile(file)
	}
	if token := os.Getenv("TOOLBROKER_TOKEN"); token != "" {
		return token, nil
	}
	return "", usage("who are you? give --token-file or set TOOLBROKER_TOKEN")
}
