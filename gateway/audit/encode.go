package audit

import (
	"strconv"
	"unicode/utf8"
)

// A line is JSON being written: canonical (RFC 8785) as it comes, because each
// method below writes its members in the order of their names. It says what
// encoding/json would say, without reflection; a test holds every member of
// every event to that.
type line struct {
	b       []byte
	longest int // of the strings in it, in bytes
}

func (b *line) raw(s string) { b.b = append(b.b, s...) }
func (b *line) open()        { b.b = append(b.b, '{') }
func (b *line) close()       { b.b = append(b.b, '}') }

// name begins a member.
func (b *line) name(name string) {
	if b.b[len(b.b)-1] != '{' {
		b.b = append(b.b, ',')
	}
	b.b = append(append(append(b.b, '"'), name...), '"', ':')
}

func (b *line) text(name, s string) {
	b.name(name)
	b.quote(s)
}

func (b *line) number(name string, n int64) {
	b.name(name)
	b.b = strconv.AppendInt(b.b, n, 10)
}

func (b *line) truth(name string, v bool) {
	b.name(name)
	b.b = strconv.AppendBool(b.b, v)
}

func (b *line) texts(name string, all []string) {
	b.name(name)
	list(b, all, func(s *string) { b.quote(*s) })
}

func objects[T any, P interface {
	*T
	json(*line)
}](b *line, name string, all []T) {
	b.name(name)
	list(b, all, func(v *T) { P(v).json(b) })
}

func list[T any](b *line, all []T, one func(*T)) {
	if all == nil {
		b.raw("null")
		return
	}
	b.b = append(b.b, '[')
	for i := range all {
		if i > 0 {
			b.b = append(b.b, ',')
		}
		one(&all[i])
	}
	b.b = append(b.b, ']')
}

// quote writes a string as RFC 8785 does: what need not be escaped is not. What is
// not UTF-8 becomes U+FFFD, as encoding/json has it.
func (b *line) quote(s string) {
	const hex = "0123456789abcdef"
	b.longest = max(b.longest, len(s))
	out := append(b.b, '"')
	done := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && n == 1 {
				out = append(append(out, s[done:i]...), "\ufffd"...)
				done = i + 1
			}
			i += n
			continue
		}
		if c >= ' ' && c != '"' && c != '\\' {
			i++
			continue
		}
		out = append(append(out, s[done:i]...), '\\')
		switch c {
		case '"', '\\':
			out = append(out, c)
		case '\b':
			out = append(out, 'b')
		case '\f':
			out = append(out, 'f')
		case '\n':
			out = append(out, 'n')
		case '\r':
			out = append(out, 'r')
		case '\t':
			out = append(out, 't')
		default:
			out = append(out, 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		i++
		done = i
	}
	b.b = append(append(out, s[done:]...), '"')
}

func (e *Event) json(b *line) {
	b.open()
	if e.Approval != nil {
		b.name("approval")
		e.Approval.json(b)
	}
	if e.Args != nil {
		b.name("args")
		e.Args.json(b)
	}
	if e.At != "" {
		b.text("at", e.At)
	}
	if e.Call != nil {
		b.name("call")
		e.Call.json(b)
	}
	if e.Closing != nil {
		b.name("closing")
		e.Closing.json(b)
	}
	b.text("code", e.Code)
	if e.Corr != nil {
		b.name("corr")
		e.Corr.json(b)
	}
	if e.Count != 0 {
		b.number("count", e.Count)
	}
	if e.Decision != nil {
		b.name("decision")
		e.Decision.json(b)
	}
	if e.Detail != "" {
		b.text("detail", e.Detail)
	}
	b.text("first_class", e.FirstClass)
	b.name("gw")
	e.Gateway.json(b)
	b.text("id", e.ID)
	b.name("integrity")
	e.Integrity.json(b)
	if e.Key != "" {
		b.text("key", e.Key)
	}
	b.number("mono_ns", e.MonoNS)
	if e.Operator != nil {
		b.name("operator")
		e.Operator.json(b)
	}
	if e.Outcome != nil {
		b.name("outcome")
		e.Outcome.json(b)
	}
	b.text("phase", e.Phase)
	if e.Policy != nil {
		b.name("policy")
		e.Policy.json(b)
	}
	if e.Secret != nil {
		b.name("secret")
		e.Secret.json(b)
	}
	b.text("severity", e.Severity)
	if e.Stop != nil {
		b.name("stop")
		e.Stop.json(b)
	}
	if e.Target != nil {
		b.name("target")
		e.Target.json(b)
	}
	if e.Task != nil {
		b.name("task")
		e.Task.json(b)
	} else {
		b.name("task")
		b.raw("null")
	}
	b.text("tenant", e.Tenant)
	b.text("time", e.Time)
	if e.Tool != nil {
		b.name("tool")
		e.Tool.json(b)
	}
	b.text("type", string(e.Type))
	if e.Unbound != "" {
		b.text("unbound_reason", e.Unbound)
	}
	b.number("v", int64(e.V))
	if e.Workload != nil {
		b.name("workload")
		e.Workload.json(b)
	} else {
		b.name("workload")
		b.raw("null")
	}
	b.close()
}

func (v *Approval) json(b *line) {
	b.open()
	b.text("digest", v.Digest)
	b.text("expires", v.Expires)
	b.text("fingerprint", v.Fingerprint)
	b.text("four_eyes", v.FourEyes)
	b.text("id", v.ID)
	objects(b, "need", v.Need)
	if v.Reason != "" {
		b.text("reason", v.Reason)
	}
	b.number("seq", v.Seq)
	b.text("state", v.State)
	objects(b, "votes", v.Votes)
	b.close()
}

func (v *Need) json(b *line) {
	b.open()
	b.text("group", v.Group)
	b.number("n", int64(v.N))
	b.text("rule", v.Rule)
	b.close()
}

func (v *Vote) json(b *line) {
	b.open()
	b.text("at", v.At)
	b.text("by", v.By)
	b.text("decision", v.Decision)
	b.text("digest", v.Digest)
	b.close()
}

func (v *Args) json(b *line) {
	b.open()
	b.number("bytes", int64(v.Bytes))
	b.text("digest", v.Digest)
	b.text("raw_digest", v.RawDigest)
	b.close()
}

func (v *Call) json(b *line) {
	b.open()
	b.text("id", v.ID)
	b.text("jsonrpc_id", v.JSONRPCID)
	b.text("mcp_method", v.Method)
	b.text("mcp_protocol", v.Protocol)
	b.text("session", v.Session)
	b.text("source", v.Source)
	b.text("trace_id", v.TraceID)
	b.close()
}

func (v *Closing) json(b *line) {
	b.open()
	b.number("approvals", int64(v.Approvals))
	b.number("calls", int64(v.Calls))
	b.number("children", int64(v.Children))
	b.number("leases", int64(v.Leases))
	b.number("links", int64(v.Links))
	b.name("names")
	v.Names.json(b)
	b.number("sessions", int64(v.Sessions))
	b.number("took_ms", v.TookMS)
	b.texts("unproven", v.Unproven)
	b.text("why", v.Why)
	b.close()
}

func (v *ClosingNames) json(b *line) {
	b.open()
	b.texts("approvals", v.Approvals)
	b.texts("children", v.Children)
	b.texts("leases", v.Leases)
	b.texts("links", v.Links)
	b.close()
}

func (v *Corr) json(b *line) {
	b.open()
	b.text("oauth_client", v.OAuthClient)
	b.text("oauth_issuer", v.OAuthIssuer)
	b.text("vault_request_id", v.VaultRequestID)
	b.close()
}

func (v *Stop) json(b *line) {
	b.open()
	b.text("kind", v.Kind)
	b.text("name", v.Name)
	b.text("reason", v.Reason)
	b.close()
}

func (v *Decision) json(b *line) {
	b.open()
	b.text("effect", v.Effect)
	b.text("engine", v.Engine)
	objects(b, "need", v.Need)
	b.text("policy_rev", v.PolicyRev)
	b.text("reason", v.Reason)
	b.text("reason_code", v.ReasonCode)
	b.texts("rules", v.Rules)
	b.close()
}

func (v *Gateway) json(b *line) {
	b.open()
	b.text("boot", v.Boot)
	b.text("build", v.Build)
	b.text("config_hash", v.ConfigHash)
	b.text("mode", v.Mode)
	b.text("replica", v.Replica)
	b.text("version", v.Version)
	b.close()
}

func (v *Integrity) json(b *line) {
	b.open()
	b.number("idx", v.Index)
	b.text("log", v.Log)
	b.text("prev", v.Prev)
	b.close()
}

func (v *Operator) json(b *line) {
	b.open()
	b.texts("groups", v.Groups)
	b.text("name", v.Name)
	b.text("source", v.Source)
	b.close()
}

func (v *Outcome) json(b *line) {
	b.open()
	b.text("code", v.Code)
	b.number("latency_us", v.LatencyUS)
	b.number("redacted", int64(v.Redacted))
	b.number("result_bytes", int64(v.ResultBytes))
	b.text("result_digest", v.ResultDigest)
	b.text("status", v.Status)
	b.close()
}

func (v *PolicyRef) json(b *line) {
	b.open()
	b.text("file", v.File)
	b.text("model", v.Model)
	b.text("revision", v.Revision)
	b.number("rows", int64(v.Rows))
	b.close()
}

func (v *Secret) json(b *line) {
	b.open()
	b.text("binding", v.Binding)
	b.text("class", v.Class)
	b.truth("confirmed", v.Confirmed)
	b.text("end_kind", v.EndKind)
	b.text("engine", v.Engine)
	b.text("expires", v.Expires)
	b.text("id", v.ID)
	b.text("lease_hash", v.LeaseHash)
	b.text("server", v.Server)
	b.number("ttl_s", v.TTLS)
	b.text("version", v.Version)
	b.close()
}

func (v *Target) json(b *line) {
	b.open()
	b.text("addr", v.Addr)
	b.text("kind", v.Kind)
	b.text("object", v.Object)
	b.close()
}

func (v *Task) json(b *line) {
	b.open()
	if len(v.Approvers) > 0 {
		b.texts("approvers", v.Approvers)
	}
	b.texts("asserted", v.Asserted)
	b.texts("chain", v.Chain)
	b.text("expires", v.Expires)
	b.text("id", v.ID)
	b.truth("implicit", v.Implicit)
	b.text("kind", v.Kind)
	if len(v.Labels) > 0 {
		b.texts("labels", v.Labels)
	}
	b.text("on_behalf_of", v.OnBehalf)
	b.text("owner", v.Owner)
	b.text("parent", v.Parent)
	b.text("purpose", v.Purpose)
	if v.Reference != "" {
		b.text("reference", v.Reference)
	}
	b.text("scope_hash", v.ScopeHash)
	b.text("state", v.State)
	if len(v.Widened) > 0 {
		b.texts("widened", v.Widened)
	}
	b.close()
}

func (v *Tool) json(b *line) {
	b.open()
	b.text("def_hash", v.Definition)
	b.text("name", v.Name)
	b.text("server", v.Server)
	b.close()
}

func (v *Workload) json(b *line) {
	b.open()
	b.text("authn", v.Authn)
	b.text("bound", v.Bound)
	b.text("credential", v.Credential)
	b.texts("delegation", v.Delegation)
	b.text("id", v.ID)
	b.text("on_behalf_of", v.OnBehalfOf)
	b.text("owner", v.Owner)
	b.close()
}
