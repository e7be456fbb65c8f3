package gateway

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/go-json-experiment/json/jsontext"

	"toolbroker/authz"
)

// digestOf returns "sha256:<hex>" over a domain and the canonical JSON (RFC
// 8785) of v, so that anyone can compute it again and no two kinds of thing
// share a digest.
func digestOf(domain string, v any) (string, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	canon := jsontext.Value(raw)
	if err := canon.Canonicalize(); err != nil {
		return "", err
	}
	h := sha256.New()
	h.Write([]byte(domain + "\x00"))
	h.Write(canon)
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}

func sha(b []byte) string {
	sum := sha256.Sum256(b)
	out := [7 + 2*sha256.Size]byte{'s', 'h', 'a', '2', '5', '6', ':'}
	hex.Encode(out[7:], sum[:])
	return string(out[:])
}

// newRequest is what operators are asked about c. Of its two digests the
// fingerprint says "the same call again", and the digest says "these bytes, this
// once, under these rows": it is what an operator answers to.
func (g *Gateway) newRequest(c *life) (ApprovalRequest, error) {
	p, t, now := c.Principal, c.Task, g.now().UTC()
	r := ApprovalRequest{
		ID: newID("apr"), Kind: RequestCall, Tenant: p.Tenant,
		Principal: p.ID, OnBehalfOf: p.OnBehalfOf, Owner: p.Owner, Chain: p.Chain,
		TaskID: t.ID, TaskKind: t.Kind, TaskOwner: t.Owner, TaskFor: t.OnBehalfOf, StartedBy: t.StartedBy, Purpose: t.Purpose,
		Asserted: t.Claims.asserted(), Implicit: t.Implicit, Approvers: t.Approvers,
		Server: c.Tool.Server, Tool: c.Tool.Name, Alias: c.Tool.Alias, Definition: c.Tool.Hash,
		Args: c.Args.shown(), ArgsDigest: c.Args.rawDigest, ArgsCanon: c.Args.canonDigest, Meta: c.Args.meta,
		Need: c.Decision.Need, Rules: c.Decision.Rules, Class: c.Tool.Class, Revision: c.Decision.Revision,
		Method: methodOf(c), Created: now, Expires: now.Add(g.ApprovalTTL), State: ApprovalPending, FourEyes: g.fourEyes(p, t),
		Holder: c.handle,
	}
	was := t.Shown()
	r.Was = &was
	if r.Expires.After(t.Expires) {
		r.Expires = t.Expires.UTC()
	}
	for _, a := range t.Ancestors {
		r.TaskChain, r.Starters = append(r.TaskChain, a.ID), append(r.Starters, a.StartedBy)
	}
	refused := []string{r.ArgsCanon}
	if c.Args.answers != nil {
		r.Answers = sha(nil)
		if inner := c.Args.state.Inner; inner != nil {
			r.Answers = sha([]byte(*inner))
		}
		// A server can word its question anew each time: a no is to what was answered.
		same := c.Args
		same.state.Questions = nil
		canon := jsontext.Value(same.shown())
		if err := canon.Canonicalize(); err != nil {
			return r, err
		}
		refused = []string{sha(canon)}
	}
	if c.Tool.ours != nil {
		r.Kind, refused = c.Tool.ours.asks(c)
	}
	var err error
	for _, what := range refused {
		d, err := denial(r, t.Human(), what)
		if err != nil {
			return r, fmt.Errorf("denial: %w", err)
		}
		r.Denials = append(r.Denials, d)
	}
	if r.Fingerprint, err = fingerprint(r); err != nil {
		return r, fmt.Errorf("fingerprint: %w", err)
	}
	if r.Digest, err = ApprovalDigest(r); err != nil {
		return r, fmt.Errorf("approval digest: %w", err)
	}
	return r, nil
}

// fingerprint names the call: identical repeats attach to one request by it.
func fingerprint(r ApprovalRequest) (string, error) {
	of := map[string]any{
		"tenant": r.Tenant, "principal": r.Principal, "on_behalf_of": r.OnBehalfOf, "chain": r.Chain, "task": r.TaskID,
		"server": r.Server, "tool": r.Tool, "definition": r.Definition, "arguments": r.ArgsCanon, "meta": r.Meta,
	}
	// A resource and a tool may have one name.
	if r.Method != "" {
		of["method"] = r.Method
	}
	if r.Answers != "" {
		of["answers"] = r.Answers
	}
	return digestOf("toolbroker-call-v1", of)
}

// denial names the call whatever task it is made on: what a human said no to
// stays refused to that workload and human, on another task too. A human whom
// nobody proved is none: naming one washes nothing off.
func denial(r ApprovalRequest, human, what string) (string, error) {
	return digestOf("toolbroker-denial-v1", map[string]any{
		"tenant": r.Tenant, "principal": r.Principal, "human": HumanName(human),
		"server": r.Server, "tool": r.Tool, "what": what, "meta": r.Meta,
	})
}

// ApprovalDigest is what an operator answers to. Whoever shows, stores or claims
// a request can compute it again from the request; see docs/audit-format.md.
func ApprovalDigest(r ApprovalRequest) (string, error) {
	need := make([]authz.Requirement, len(r.Need))
	copy(need, r.Need)
	return digestOf("toolbroker-approval-v1", map[string]any{
		"fingerprint": r.Fingerprint, "raw_arguments": r.ArgsDigest, "id": r.ID, "need": need,
		"class": r.Class, "expires": r.Expires.UTC().UnixMilli(), "revision": r.Revision, "kind": r.Kind, "approvers": orEmpty(r.Approvers),
	})
}

// methodOf is what is asked for, where it is not a tool's call.
func methodOf(c *life) string {
	if c.Method == MethodCall {
		return ""
	}
	return c.Method
}
