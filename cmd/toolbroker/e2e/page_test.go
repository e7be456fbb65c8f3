package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

const chromium = "/usr/bin/chromium"

// A person logs in, sees the pending call appear without a reload, approves it,
// and the agent that waits is served.
func TestPage(t *testing.T) {
	_, err := os.Stat(chromium)
	need(t, chromium, err == nil)
	h := newHouse(t, Options{Servers: "  - {name: slow, url: " + newSlow(t, make(chan struct{}, 1)) + "}\n", Policy: `
p, agent:a, acme, work, slow/danger, call, , approve
p, agent:*, *, *, task:work, start, , allow
`})
	_, token := h.Task("agent:a")
	a := goSDK(t, h.MCP, token, "2025-11-25")
	until(t, "tools", func() bool { names, err := a.list(t.Context()); return err == nil && len(names) == 1 })

	ctx, cancel := chromedp.NewExecAllocator(t.Context(),
		chromedp.ExecPath(chromium), chromedp.UserDataDir(t.TempDir()), chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true), chromedp.Flag("disable-dev-shm-usage", true))
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 2*time.Minute)
	t.Cleanup(cancel)
	run := func(steps ...chromedp.Action[chromedp.Void]) {
		t.Helper()
		for i, s := range steps {
			if _, err := chromedp.Run(ctx, s); err != nil {
				t.Fatalf("step %d: %v", i, err)
			}
		}
	}
	run(
		chromedp.EmulateViewport(390, 844),
		chromedp.Navigate(h.Console+"/"), // sends us to the login
		chromedp.SendKeys(chromedp.CSS("#name"), "bob"),
		chromedp.SendKeys(chromedp.CSS("#password"), password),
		chromedp.Click(chromedp.CSS("button.main")),
		chromedp.WaitVisible(chromedp.CSS("[data-pulse=on]")),
		chromedp.Steps(chromedp.SetAttributeValue(chromedp.CSS("html"), "data-marker", "same page")),
	)
	done := make(chan string, 1)
	go func() {
		text, _, err := a.call(t.Context(), "slow__danger", map[string]any{"n": 7})
		if err != nil {
			text = err.Error()
		}
		done <- text
	}()
	run(chromedp.WaitVisible(chromedp.CSS(`html[data-marker="same page"] a[href^="/approvals/acme/"]`)))
	run(chromedp.Click(chromedp.CSS(`a[href^="/approvals/acme/"]`)), chromedp.WaitEnabled(chromedp.CSS("button[value=approve]")))
	if dir := os.Getenv("CONSOLE_SHOTS"); dir != "" {
		png, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "approval.png"), png, 0o600)
		}
		if err != nil {
			t.Error(err)
		}
	}
	run(chromedp.Click(chromedp.CSS("button[value=approve]")), chromedp.WaitVisible(chromedp.CSS(".outcome")))
	if text := <-done; !strings.Contains(text, `"done"`) {
		t.Errorf("approved, but the agent reads %s", text)
	}
	h.Stop()
	h.Verify()
}
