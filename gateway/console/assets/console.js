// What a page does beyond what it says: it keeps itself fresh, counts down, and
// holds the approve button back until everything was on screen. Without this
// script every page works, with all values open.
"use strict";

(() => {
  const idleLimit = 25 * 60 * 1000;

  document.documentElement.classList.add("js");
  document.addEventListener("DOMContentLoaded", () => {
    tick();
    setInterval(tick, 1000);
    guard(document.querySelector("form[data-vote]"));
    if (document.querySelector("[data-live]")) live();
  });

  // words says a span of time as the server does.
  function words(ms) {
    const s = Math.abs(Math.round(ms / 1000));
    const two = (n) => String(n).padStart(2, "0");
    if (s === 0) return "now";
    const out =
      s < 60 ? s + " s"
      : s < 3600 ? Math.floor(s / 60) + " min " + two(s % 60) + " s"
      : s < 172800 ? Math.floor(s / 3600) + " h " + two(Math.floor((s % 3600) / 60)) + " min"
      : Math.floor(s / 86400) + " days";
    return ms < 0 ? out + " ago" : "in " + out;
  }

  function tick() {
    for (const t of document.querySelectorAll("time[data-tick]")) {
      const left = new Date(t.dateTime) - Date.now();
      const text = words(left);
      if (t.textContent !== text) t.textContent = text;
      t.classList.toggle("soon", left > 0 && left < 60000);
    }
  }

  // live fetches the live part again whenever the server says that something
  // changed. XMLHttpRequest parses a page into a document in which no script
  // runs, so no markup is ever made from a string.
  function live() {
    const pulse = document.querySelector("[data-pulse]");
    let source, again, loading = false, stale = false, idle;

    const say = (state, text) => {
      const at = document.querySelector("[data-pulse]");
      if (!at) return;
      at.dataset.pulse = state;
      at.querySelector("[data-pulse-text]").textContent = text;
    };
    const now = () => source && source.readyState === EventSource.OPEN ? say("on", "Live") : say("off", "Reconnecting…");

    function refresh() {
      if (loading) { stale = true; return; }
      loading = true;
      const was = document.querySelector("[data-live]");
      const ask = new XMLHttpRequest();
      ask.open("GET", was.dataset.live);
      ask.responseType = "document";
      ask.onload = () => {
        const fresh = ask.response && ask.response.getElementById("live");
        if (!fresh || ask.status !== 200) { location.reload(); return; }
        swap(was, document.importNode(fresh, true));
      };
      ask.onloadend = () => {
        loading = false;
        if (stale) { stale = false; refresh(); }
      };
      ask.send();
    }

    function swap(was, fresh) {
      // What can no longer be answered must not look as if it could.
      if (was.dataset.open === "yes" && fresh.dataset.open === "no") { location.reload(); return; }
      if (was.dataset.state && was.dataset.state !== fresh.dataset.state) { location.reload(); return; }
      const focused = document.activeElement && was.contains(document.activeElement) && document.activeElement.getAttribute("href");
      const before = Number(was.dataset.waiting || 0), after = Number(fresh.dataset.waiting || 0);
      was.replaceWith(fresh);
      tick();
      now();
      if (focused) {
        for (const a of fresh.querySelectorAll("a")) if (a.getAttribute("href") === focused) a.focus();
      }
      if (fresh.dataset.waiting !== undefined) {
        title(after);
        const news = document.querySelector("[data-news]");
        if (news && after > before) news.textContent = after === 1 ? "1 request waits for you" : after + " requests wait for you";
      }
    }

    const name = document.title;
    function title(n) { document.title = n > 0 ? "(" + n + ") " + name : name; }

    function connect() {
      clearTimeout(again);
      source = new EventSource("/events");
      source.onopen = now;
      source.onmessage = refresh;
      source.onerror = () => {
        now();
        // A refused stream (logged out, or too many) is not tried again by the
        // browser; the page itself says which.
        if (source.readyState === EventSource.CLOSED) again = setTimeout(() => { refresh(); connect(); }, 5000);
      };
    }

    // A page that nobody sits at must not keep its session alive.
    function awake() {
      clearTimeout(idle);
      if (source === null) connect();
      idle = setTimeout(() => {
        source.close();
        clearTimeout(again);
        source = null;
        say("off", "Paused; move or touch to go on");
      }, idleLimit);
    }

    if (pulse) { say("off", "Connecting…"); title(Number(document.querySelector("[data-live]").dataset.waiting || 0)); }
    connect();
    awake();
    for (const what of ["pointerdown", "pointermove", "keydown", "scroll"]) addEventListener(what, awake, { passive: true });
    addEventListener("pagehide", () => source && source.close());
    addEventListener("pageshow", (e) => { if (e.persisted) location.reload(); });
  }

  // guard folds long values and enables Approve once every fold was opened, the
  // end of the arguments was on screen, and a breath has passed.
  function guard(form) {
    const folds = [];
    for (const value of document.querySelectorAll("[data-fold]")) {
      const open = document.createElement("button");
      open.type = "button";
      open.className = "unfold";
      open.textContent = "Show all of it";
      open.setAttribute("aria-expanded", "false");
      value.classList.add("folded");
      value.after(open);
      folds.push(value);
      open.addEventListener("click", () => {
        value.classList.remove("folded");
        value.tabIndex = -1;
        value.focus({ preventScroll: true });
        open.remove();
        check();
      });
    }
    if (!form) return;

    const approve = form.querySelector("button[value=approve]");
    const hint = form.querySelector("[data-hint]");
    const reason = form.querySelector("textarea");
    const end = document.getElementById("read");
    let seen = !end, rested = false, sent = false;

    function check() {
      const left = folds.filter((f) => f.classList.contains("folded")).length;
      if (approve) approve.disabled = left > 0 || !seen || !rested || sent;
      hint.textContent =
        !approve ? ""
        : left > 0 ? "To approve, first open " + (left === 1 ? "the folded value" : "the " + left + " folded values") + "."
        : !seen ? "To approve, first scroll to the end of what " + (form.dataset.vote === "escalation" ? "is asked." : "will be sent.")
        : "";
    }
    if (end) {
      new IntersectionObserver((entries, watch) => {
        if (!entries.some((e) => e.isIntersecting)) return;
        seen = true;
        watch.disconnect();
        check();
      }).observe(end);
    }
    setTimeout(() => { rested = true; check(); }, 800);
    check();

    reason.addEventListener("input", () => reason.setCustomValidity(""));
    form.addEventListener("click", (e) => {
      const button = e.target.closest("button[name=answer]");
      if (button) reason.setCustomValidity(button.value === "deny" && !reason.value.trim() ? "Say why: a denial needs a reason." : "");
    });
    form.addEventListener("submit", (e) => {
      if (sent) { e.preventDefault(); return; }
      sent = true;
      setTimeout(check); // after the browser has read which button it was
    });
    addEventListener("pageshow", () => { sent = false; check(); });
  }
})();
