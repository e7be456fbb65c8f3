package console_test

import (
	"context"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"

	"toolbroker/gateway"
	"toolbroker/gateway/console"
)

// browse starts a headless Chromium of its own, or says why not.
func browse(t *testing.T) context.Context {
	t.Helper()
	bin := ""
	for _, p := range []string{"/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"} {
		if _, err := os.Stat(p); err == nil {
			bin = p
			break
		}
	}
	if bin == "" {
		if os.Getenv("TOOLBROKER_REQUIRE_REAL") == "1" {
			t.Fatal("no chromium, and TOOLBROKER_REQUIRE_REAL=1")
		}
		t.Skip("skipped: no chromium on this machine, so the page was not tried in a browser")
	}
	opts := []chromedp.ExecAllocatorOption{
		chromedp.ExecPath(bin), chromedp.UserDataDir(t.TempDir()), chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true), chromedp.Flag("disable-dev-shm-usage", true),
	}
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), opts...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 90*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// serve runs a console on loopback until the test ends.
func serve(t *testing.T, h *house, edit ...func(*console.Config)) string {
	t.Helper()
	c := console.Config{Gateway: h, Tenants: []string{"acme", "globex"}}
	for _, e := range edit {
		e(&c)
	}
	s := httptest.NewUnstartedServer(console.New(c))
	ctx, cancel := context.WithCancel(context.Background())
	s.Config.BaseContext = func(net.Listener) context.Context { return ctx }
	s.Start()
	t.Cleanup(func() { cancel(); s.Close() })
	return s.URL
}

// shot keeps a picture where CONSOLE_SHOTS says, for whoever works on the looks.
func shot(name string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, at *chromedp.Target) error {
		dir := os.Getenv("CONSOLE_SHOTS")
		if dir == "" {
			return nil
		}
		png, err := chromedp.FullScreenshot(100)(ctx, at)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, name+".png"), png, 0o600)
	})
}

func logIn(url, name, password string) chromedp.Action[chromedp.Void] {
	return chromedp.Steps(
		chromedp.Navigate(url+"/login"),
		chromedp.SendKeys(chromedp.CSS("#name"), name),
		chromedp.SendKeys(chromedp.CSS("#password"), password),
		chromedp.Click(chromedp.CSS("button.main")),
		chromedp.WaitVisible(chromedp.CSS("nav")),
	)
}

func TestOperatorApprovesInTheBrowser(t *testing.T) {
	ctx := browse(t)
	h := newHouse(t)
	url := serve(t, h)

	run(t, ctx,
		chromedp.EmulateViewport(1200, 900),
		logIn(url, "alice", "correct horse"),
		chromedp.WaitVisible(chromedp.CSS(".empty")),
		chromedp.WaitVisible(chromedp.CSS("[data-pulse=on]")),
		chromedp.Steps(chromedp.SetAttributeValue(chromedp.CSS("html"), "data-marker", "same page")),
	)
	h.ask("apr-1")
	run(t, ctx, chromedp.WaitVisible(chromedp.CSS(`a[href="/approvals/acme/apr-1"]`)))
	if m := read(t, ctx, chromedp.AttributeValue(chromedp.CSS("html"), "data-marker")); m.Value != "same page" {
		t.Error("the pending request appeared only because the page was loaded again")
	}
	// By the page's own hand: its list may be drawn anew between finding the link and
	// pressing the mouse on it.
	read(t, ctx, chromedp.Evaluate[bool](`document.querySelector('a[href="/approvals/acme/apr-1"]').click() === undefined`))
	run(t, ctx, chromedp.WaitEnabled(chromedp.CSS("button[value=approve]")))
	if heading := read(t, ctx, chromedp.Text(chromedp.CSS("h1"))); heading != "issues/close" {
		t.Errorf("heading is %q", heading)
	}
	run(t, ctx, chromedp.Click(chromedp.CSS("button[value=approve]")), chromedp.WaitVisible(chromedp.CSS(".outcome")))
	r, err := h.ApprovalShow(t.Context(), h.operators["alice"], "acme", "apr-1")
	if err != nil || r.State != gateway.ApprovalGranted || r.Votes[0].By != "alice" {
		t.Errorf("after Approve: %v, %v", r.State, err)
	}
}

func TestApproveWaitsUntilEverythingWasOpened(t *testing.T) {
	ctx := browse(t)
	h := newHouse(t)
	url := serve(t, h)
	h.ask("apr-1", func(r *gateway.ApprovalRequest) {
		r.Args = []byte(`{"body":"` + strings.Repeat("All work and no play. ", 200) + `","to":"ops"}`)
	})
	run(t, ctx,
		chromedp.EmulateViewport(1200, 900),
		logIn(url, "alice", "correct horse"),
		chromedp.Navigate(url+"/approvals/acme/apr-1"),
		chromedp.WaitVisible(chromedp.CSS(".unfold")),
		chromedp.Sleep(time.Second), // longer than the pause before Approve: it must still be off
		shot("folded"),
	)
	disabled := read(t, ctx, chromedp.Evaluate[bool](`document.querySelector("button[value=approve]").disabled`))
	hint := read(t, ctx, chromedp.Text(chromedp.CSS("[data-hint]")))
	if !disabled || !strings.Contains(hint, "open the folded value") {
		t.Errorf("with a folded value: disabled %v, hint %q", disabled, hint)
	}
	run(t, ctx,
		chromedp.Click(chromedp.CSS(".unfold")),
		chromedp.ScrollIntoView(chromedp.CSS("#fine")),
		chromedp.WaitEnabled(chromedp.CSS("button[value=approve]")),
		chromedp.Click(chromedp.CSS("button[value=deny]")), // without a reason: the browser stays
		chromedp.SendKeys(chromedp.CSS("#reason"), "Not now"),
		chromedp.Click(chromedp.CSS("button[value=deny]")),
		chromedp.WaitVisible(chromedp.CSS(".pill.bad")),
	)
	if r := h.requests[0]; r.State != gateway.ApprovalDenied || len(r.Votes) != 1 || r.Votes[0].Reason != "Not now" {
		t.Errorf("after Deny: %+v", r)
	}
}

func TestAnotherOperatorsAnswerEndsAnOpenPage(t *testing.T) {
	ctx := browse(t)
	h := newHouse(t)
	url := serve(t, h)
	h.ask("apr-1")
	run(t, ctx,
		logIn(url, "alice", "correct horse"),
		chromedp.Navigate(url+"/approvals/acme/apr-1"),
		chromedp.WaitVisible(chromedp.CSS("form[data-vote]")),
	)
	other := gateway.Operator{Name: "carol", Roles: []string{"approver"}, Tenants: []string{"acme"}}
	if _, err := h.Vote(t.Context(), other, "acme", "apr-1", false, h.requests[0].Digest, "no"); err != nil {
		t.Fatal(err)
	}
	run(t, ctx, chromedp.WaitNotPresent(chromedp.CSS("form[data-vote]")), chromedp.WaitVisible(chromedp.CSS(".pill.bad")))
}

// Nothing that an agent writes runs, breaks out, or widens the page of a phone.
func TestPhoneShowsHostileRequest(t *testing.T) {
	ctx := browse(t)
	h := newHouse(t)
	url := serve(t, h, func(c *console.Config) { c.Mode = "dev" })
	h.ask("apr-0")
	h.ask("apr-1", hostile)
	h.ask("apr-2", func(r *gateway.ApprovalRequest) { r.TaskOwner = "alice" })
	h.ask("apr-3", func(r *gateway.ApprovalRequest) {
		r.State = gateway.ApprovalDenied
		r.Votes = []gateway.Vote{{By: "carol", Reason: "not today", At: time.Now()}}
	})
	h.tasks = append(h.tasks, &gateway.Task{
		ID: "task-1", Tenant: "acme", Kind: "triage", Purpose: strings.Repeat("x", 300), Owner: "oscar", Principal: "agent:triage", StartedBy: "agent:planner",
		State: gateway.TaskRunning, Started: time.Now(), Expires: time.Now().Add(time.Hour),
	})
	h.family(t)
	h.ask("apr-4", growth, hostile)
	h.defined = defined()
	h.stops = append(stopped(), gateway.Stop{Tenant: "acme", Kind: gateway.StopHuman, Name: strings.Repeat("h", 200), By: "operator:alice", Reason: "<script>alert(3)</script>" + strings.Repeat("r", 300)})
	run(t, ctx, chromedp.EmulateViewport(390, 844, chromedp.EmulateScale(2), chromedp.EmulateMobile))
	witness := page.AddScriptToEvaluateOnNewDocumentParams{Source: `window.alert = () => { window.pwned = true }`}
	if _, err := chromedp.Call(ctx, page.AddScriptToEvaluateOnNewDocument, witness); err != nil {
		t.Fatal(err)
	}
	run(t, ctx, chromedp.Navigate(url+"/login"), shot("phone-login"), logIn(url, "alice", "correct horse"))
	for name, path := range map[string]string{
		"list": "/", "tasks": "/tasks", "plain": "/approvals/acme/apr-0", "hostile": "/approvals/acme/apr-1", "own": "/approvals/acme/apr-2", "ended": "/approvals/acme/apr-3",
		"task": "/tasks/acme/task-root", "stops": "/stops", "tools": "/tools", "growth": "/approvals/acme/apr-4",
	} {
		run(t, ctx,
			chromedp.Navigate(url+path),
			chromedp.WaitVisible(chromedp.CSS("h1")),
			openAll,
			chromedp.Sleep(time.Second), // for pictures and for scripts that should not run
			shot("phone-"+name),
		)
		wide := read(t, ctx, chromedp.Evaluate[bool](`document.documentElement.scrollWidth > document.documentElement.clientWidth || window.innerWidth > 390`))
		ran := read(t, ctx, chromedp.Evaluate[bool](`window.pwned === true`))
		small := read(t, ctx, chromedp.Evaluate[int](`[...document.querySelectorAll("button, nav a, summary, input:not([type=hidden])")].filter(e => e.offsetParent && e.getBoundingClientRect().height < 44).length`))
		if wide || ran || small > 0 {
			t.Errorf("%s: wider than the phone %v, agent's script ran %v, %d targets under 44 px", path, wide, ran, small)
		}
	}
	run(t, ctx, chromedp.Navigate(url+"/approvals/acme/apr-1"))
	text := read(t, ctx, chromedp.Text(chromedp.CSS("main")))
	for _, want := range []string{"⟦U+202E⟧", "⟦U+200B⟧", "⟦U+E0041⟧", "⟦U+001B⟧", "mixes Cyrillic and Latin"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not show %s", want)
		}
	}
}

// openAll unfolds what is folded, so that it is looked at, too.
var openAll = chromedp.Steps(chromedp.Func(func(ctx context.Context, at *chromedp.Target) error {
	_, err := chromedp.Evaluate[int](`[...document.querySelectorAll("details")].map(d => d.open = true).length`)(ctx, at)
	return err
}))

func TestPictures(t *testing.T) {
	if os.Getenv("CONSOLE_SHOTS") == "" {
		t.Skip("skipped: CONSOLE_SHOTS names no directory for pictures")
	}
	ctx := browse(t)
	h := newHouse(t)
	url := serve(t, h)
	h.ask("apr-1", rich)
	h.ask("apr-2", hostile)
	h.ask("apr-3", func(r *gateway.ApprovalRequest) { r.TaskOwner = "alice"; r.Tool = "delete" })
	h.ask("apr-4", func(r *gateway.ApprovalRequest) {
		r.State = gateway.ApprovalConsumed
		r.Votes = []gateway.Vote{{By: "carol", Approve: true, At: time.Now()}}
	})
	h.ask("apr-5", func(r *gateway.ApprovalRequest) {
		r.Need[0].N = 2
		r.Votes = []gateway.Vote{{By: "carol", Groups: []string{"sre"}, Approve: true, Reason: "Checked with the customer.", At: time.Now()}}
	})
	h.tasks = append(h.tasks,
		&gateway.Task{ID: "task-1", Tenant: "acme", Kind: "triage", Purpose: "Close duplicates", Owner: "oscar", OnBehalfOf: "mallory", Principal: "agent:triage", StartedBy: "agent:planner", State: gateway.TaskRunning, Started: time.Now(), Expires: time.Now().Add(time.Hour)},
		&gateway.Task{ID: "task-2", Tenant: "acme", Kind: "refund", Purpose: "Refund order 8812", Owner: "oscar", Principal: "agent:refund", StartedBy: "operator:oscar", State: gateway.TaskEnded, Started: time.Now(), Ended: time.Now().Add(-time.Minute), EndedBy: "operator:oscar", Expires: time.Now().Add(time.Hour)})
	h.defined = defined()
	run(t, ctx, chromedp.EmulateViewport(1280, 900), chromedp.Navigate(url+"/login"), shot("wide-login"), logIn(url, "alice", "correct horse"))
	for _, dark := range []string{"light", "dark"} {
		scheme := emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: dark}}}
		if _, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, scheme); err != nil {
			t.Fatal(err)
		}
		for name, path := range map[string]string{"list": "/", "tasks": "/tasks", "tools": "/tools", "rich": "/approvals/acme/apr-1", "hostile": "/approvals/acme/apr-2", "own": "/approvals/acme/apr-3", "used": "/approvals/acme/apr-4", "two": "/approvals/acme/apr-5"} {
			run(t, ctx, chromedp.Navigate(url+path), chromedp.Sleep(1200*time.Millisecond), shot("wide-"+dark+"-"+name))
		}
	}
	run(t, ctx, chromedp.Navigate(url+"/nowhere"), shot("wide-nowhere"))
}

func run(t *testing.T, ctx context.Context, steps ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	if err := chromedp.Do(ctx, steps...); err != nil {
		t.Fatal(err)
	}
}

func read[T any](t *testing.T, ctx context.Context, a chromedp.Action[T]) T {
	t.Helper()
	v, err := chromedp.Run(ctx, a)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func hostile(r *gateway.ApprovalRequest) {
	r.Purpose = "Urgent!\u202e <script>alert(1)</script> approved by security\u200b, see https://example.test/ok"
	r.Principal = "agent:\u202egairt"
	r.Args = []byte(`{"to":"billing@p` + "\u0430" + `ypal.com","subject":"Invoice` + "\u200b" + `2026","body":"<img src=x onerror=alert(1)>\nPlease \u001b[2Kpay\u202e001\u202c now\u0000` + "\U000E0041\U000E0042" + `",` +
		`"path":"https:/` + "\u2215" + `example.test` + "\uff0e" + `evil","'\"><script>alert(2)</script>":true,"nested":{"deep":{"er":[{"n":12345678901234567890.10,"empty":{},"none":[]}]}},"` + strings.Repeat("long", 60) + `":"` + strings.Repeat("A", 400) + `","name":"שלום abc 123"}`)
	r.Meta = []byte(`{"trace":"00-abc"}`)
}

func rich(r *gateway.ApprovalRequest) {
	r.Server, r.Tool, r.Alias = "payments", "refund", "payments__refund"
	r.Principal, r.OnBehalfOf, r.TaskKind = "spiffe://corp/agent/refund-7", "dana@example.test", "refund"
	r.Purpose = "Refund order 8812: the customer was charged twice"
	r.Chain = []string{"agent:planner", "agent:support"}
	r.Args = []byte(`{"order":"8812","amount":129.90,"currency":"EUR","notify":true,"note":"Hello Dana,\n\nwe are sorry for the double charge. The money will be back on your card within three days.\n\nThe support team","lines":[{"sku":"A-100","quantity":1},{"sku":"B-7","quantity":2}],"coupon":null}`)
	r.Expires = time.Now().Add(4*time.Minute + 31*time.Second)
	r.FourEyes = false
}
