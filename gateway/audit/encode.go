package audit

import (
	"math/bits"
	"strconv"
	"unicode/utf8"
)

// A line is JSON being written: canonical (RFC 8785) as it comes, because each
// method below writes its members in the order of their names. It says what
// encoding/json would say, without reflection; a test holds every member of
// every event to that.
//
// A comma follows every value; whatever ends next is written over the last one.
type line struct {
	b       []byte
	longest int // of the strings in it, in bytes
}

func (b *line) raw(s string) { b.b = append(b.b, s...) }
func (b *line) open()        { b.b = append(b.b, '{') }

// close ends an object, of which none is empty.
func (b *line) close() {
	b.b[len(b.b)-1] = '}'
	b.b = append(b.b, ',')
}

// text and its like write a member, whose name comes as it is written: `"name":`.
func (b *line) text(name, s string) {
	b.raw(name)
	b.quote(s)
}

func (b *line) number(name string, n int64) {
	b.raw(name)
	b.b = append(strconv.AppendInt(b.b, n, 10), ',')
}

func (b *line) truth(name string, v bool) {
	b.raw(name)
	b.b = append(strconv.AppendBool(b.b, v), ',')
}

func (b *line) texts(name string, all []string) {
	b.raw(name)
	if b.list(all == nil) {
		for _, s := range all {
			b.quote(s)
		}
		b.endList()
	}
}

func objects[T any, P interface {
	*T
	json(*line)
}](b *line, name string, all []T) {
	b.raw(name)
	if b.list(all == nil) {
		for i := range all {
			P(&all[i]).json(b)
		}
		b.endList()
	}
}

// list begins a list, where there is one.
func (b *line) list(none bool) bool {
	if none {
		b.raw("null,")
	} else {
		b.raw("[")
	}
	return !none
}

func (b *line) endList() {
	if last := len(b.b) - 1; b.b[last] == ',' {
		b.b[last] = ']'
	} else {
		b.raw("]")
	}
	b.raw(",")
}

// quote writes a string as RFC 8785 does: what need not be escaped is not. What is
// not UTF-8 becomes U+FFFD, as encoding/json has it.
func (b *line) quote(s string) {
	b.longest = max(b.longest, len(s))
	out := append(b.b, '"')
	for {
		n := asIs(s)
		out = append(out, s[:n]...)
		if s = s[n:]; s == "" {
			break
		}
		if s[0] < utf8.RuneSelf {
			out, s = escape(out, s[0]), s[1:]
			continue
		}
		r, n := utf8.DecodeRuneInString(s)
		if r == utf8.RuneError && n == 1 {
			out = append(out, "\ufffd"...)
		} else {
			out = append(out, s[:n]...)
		}
		s = s[n:]
	}
	b.b = append(out, '"', ',')
}

func escape(out []byte, c byte) []byte {
	const hex = "0123456789abcdef"
	out = append(out, '\\')
	switch c {
	case '"', '\\':
		return append(out, c)
	case '\b':
		return append(out, 'b')
	case '\f':
		return append(out, 'f')
	case '\n':
		return append(out, 'n')
	case '\r':
		return append(out, 'r')
	case '\t':
		return append(out, 't')
	}
	return append(out, 'u', '0', '0', hex[c>>4], hex[c&15])
}

// asIs returns how many bytes s begins with that are ASCII and stand for themselves.
// It looks at eight at once: what is under ' ' borrows when that is taken away, '"'
// and '\\' when they are made zero and one is taken away, and others have the high
// bit anyway. Only of the first in eight that is found is that certain.
func asIs(s string) int {
	const each, high = 0x0101010101010101, 0x8080808080808080
	i := 0
	for ; i+8 <= len(s); i += 8 {
		w := s[i : i+8]
		x := uint64(w[0]) | uint64(w[1])<<8 | uint64(w[2])<<16 | uint64(w[3])<<24 |
			uint64(w[4])<<32 | uint64(w[5])<<40 | uint64(w[6])<<48 | uint64(w[7])<<56
		if found := ((x - ' '*each) | ((x ^ '"'*each) - each) | ((x ^ '\\'*each) - each) | x) & high; found != 0 {
			return i + bits.TrailingZeros64(found)/8
		}
	}
	for ; i < len(s); i++ {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			break
		}
	}
	return i
}

func (e *Event) json(b *line) {
	b.open()
	if e.Approval != nil {
		b.raw(`"approval":`)
		e.Approval.json(b)
	}
	if e.Args != nil {
		b.raw(`"args":`)
		e.Args.json(b)
	}
	if e.At != "" {
		b.text(`"at":`, e.At)
	}
	if e.Call != nil {
		b.raw(`"call":`)
		e.Call.json(b)
	}
	if e.Closing != nil {
		b.raw(`"closing":`)
		e.Closing.json(b)
	}
	b.text(`"code":`, e.Code)
	if e.Corr != nil {
		b.raw(`"corr":`)
		e.Corr.json(b)
	}
	if e.Count != 0 {
		b.number(`"count":`, e.Count)
	}
	if e.Decision != nil {
		b.raw(`"decision":`)
		e.Decision.json(b)
	}
	if e.Detail != "" {
		b.text(`"detail":`, e.Detail)
	}
	b.text(`"first_class":`, e.FirstClass)
	b.raw(`"gw":`)
	e.Gateway.json(b)
	b.text(`"id":`, e.ID)
	b.raw(`"integrity":`)
	e.Integrity.json(b)
	if e.Key != "" {
		b.text(`"key":`, e.Key)
	}
	b.number(`"mono_ns":`, e.MonoNS)
	if e.Operator != nil {
		b.raw(`"operator":`)
		e.Operator.json(b)
	}
	if e.Outcome != nil {
		b.raw(`"outcome":`)
		e.Outcome.json(b)
	}
	b.text(`"phase":`, e.Phase)
	if e.Policy != nil {
		b.raw(`"policy":`)
		e.Policy.json(b)
	}
	if e.Secret != nil {
		b.raw(`"secret":`)
		e.Secret.json(b)
	}
	b.text(`"severity":`, e.Severity)
	if e.Stop != nil {
		b.raw(`"stop":`)
		e.Stop.json(b)
	}
	if e.Target != nil {
		b.raw(`"target":`)
		e.Target.json(b)
	}
	if e.Task != nil {
		b.raw(`"task":`)
		e.Task.json(b)
	} else {
		b.raw(`"task":null,`)
	}
	b.text(`"tenant":`, e.Tenant)
	b.text(`"time":`, e.Time)
	if e.Tool != nil {
		b.raw(`"tool":`)
		e.Tool.json(b)
	}
	b.text(`"type":`, string(e.Type))
	if e.Unbound != "" {
		b.text(`"unbound_reason":`, e.Unbound)
	}
	b.number(`"v":`, int64(e.V))
	if e.Workload != nil {
		b.raw(`"workload":`)
		e.Workload.json(b)
	} else {
		b.raw(`"workload":null,`)
	}
	b.close()
}

func (v *Approval) json(b *line) {
	b.open()
	b.text(`"digest":`, v.Digest)
	b.text(`"expires":`, v.Expires)
	b.text(`"fingerprint":`, v.Fingerprint)
	b.text(`"four_eyes":`, v.FourEyes)
	b.text(`"id":`, v.ID)
	objects(b, `"need":`, v.Need)
	if v.Reason != "" {
		b.text(`"reason":`, v.Reason)
	}
	b.number(`"seq":`, v.Seq)
	b.text(`"state":`, v.State)
	objects(b, `"votes":`, v.Votes)
	b.close()
}

func (v *Need) json(b *line) {
	b.open()
	b.text(`"group":`, v.Group)
	b.number(`"n":`, int64(v.N))
	b.text(`"rule":`, v.Rule)
	b.close()
}

func (v *Vote) json(b *line) {
	b.open()
	b.text(`"at":`, v.At)
	b.text(`"by":`, v.By)
	b.text(`"decision":`, v.Decision)
	b.text(`"digest":`, v.Digest)
	b.close()
}

func (v *Args) json(b *line) {
	b.open()
	b.number(`"bytes":`, int64(v.Bytes))
	b.text(`"digest":`, v.Digest)
	b.text(`"raw_digest":`, v.RawDigest)
	b.close()
}

func (v *Call) json(b *line) {
	b.open()
	b.text(`"id":`, v.ID)
	b.text(`"jsonrpc_id":`, v.JSONRPCID)
	b.text(`"mcp_method":`, v.Method)
	b.text(`"mcp_protocol":`, v.Protocol)
	b.text(`"session":`, v.Session)
	b.text(`"source":`, v.Source)
	b.text(`"trace_id":`, v.TraceID)
	b.close()
}

func (v *Closing) json(b *line) {
	b.open()
	b.number(`"approvals":`, int64(v.Approvals))
	b.number(`"calls":`, int64(v.Calls))
	b.number(`"children":`, int64(v.Children))
	b.number(`"leases":`, int64(v.Leases))
	b.number(`"links":`, int64(v.Links))
	b.raw(`"names":`)
	v.Names.json(b)
	b.number(`"sessions":`, int64(v.Sessions))
	b.number(`"took_ms":`, v.TookMS)
	b.texts(`"unproven":`, v.Unproven)
	b.text(`"why":`, v.Why)
	b.close()
}

func (v *ClosingNames) json(b *line) {
	b.open()
	b.texts(`"approvals":`, v.Approvals)
	b.texts(`"children":`, v.Children)
	b.texts(`"leases":`, v.Leases)
	b.texts(`"links":`, v.Links)
	b.close()
}

func (v *Corr) json(b *line) {
	b.open()
	b.text(`"oauth_client":`, v.OAuthClient)
	b.text(`"oauth_issuer":`, v.OAuthIssuer)
	b.text(`"vault_request_id":`, v.VaultRequestID)
	b.close()
}

func (v *Stop) json(b *line) {
	b.open()
	b.text(`"kind":`, v.Kind)
	b.text(`"name":`, v.Name)
	b.text(`"reason":`, v.Reason)
	b.close()
}

func (v *Decision) json(b *line) {
	b.open()
	b.text(`"effect":`, v.Effect)
	b.text(`"engine":`, v.Engine)
	objects(b, `"need":`, v.Need)
	b.text(`"policy_rev":`, v.PolicyRev)
	b.text(`"reason":`, v.Reason)
	b.text(`"reason_code":`, v.ReasonCode)
	b.texts(`"rules":`, v.Rules)
	b.close()
}

func (v *Gateway) json(b *line) {
	b.open()
	b.text(`"boot":`, v.Boot)
	b.text(`"build":`, v.Build)
	b.text(`"config_hash":`, v.ConfigHash)
	b.text(`"mode":`, v.Mode)
	b.text(`"replica":`, v.Replica)
	b.text(`"version":`, v.Version)
	b.close()
}

func (v *Integrity) json(b *line) {
	b.open()
	b.number(`"idx":`, v.Index)
	b.text(`"log":`, v.Log)
	b.text(`"prev":`, v.Prev)
	b.close()
}

func (v *Operator) json(b *line) {
	b.open()
	b.texts(`"groups":`, v.Groups)
	b.text(`"name":`, v.Name)
	b.text(`"source":`, v.Source)
	b.close()
}

func (v *Outcome) json(b *line) {
	b.open()
	b.text(`"code":`, v.Code)
	b.number(`"latency_us":`, v.LatencyUS)
	b.number(`"redacted":`, int64(v.Redacted))
	b.number(`"result_bytes":`, int64(v.ResultBytes))
	b.text(`"result_digest":`, v.ResultDigest)
	b.text(`"status":`, v.Status)
	b.close()
}

func (v *PolicyRef) json(b *line) {
	b.open()
	b.text(`"file":`, v.File)
	b.text(`"model":`, v.Model)
	b.text(`"revision":`, v.Revision)
	b.number(`"rows":`, int64(v.Rows))
	b.close()
}

func (v *Secret) json(b *line) {
	b.open()
	b.text(`"binding":`, v.Binding)
	b.text(`"class":`, v.Class)
	b.truth(`"confirmed":`, v.Confirmed)
	b.text(`"end_kind":`, v.EndKind)
	b.text(`"engine":`, v.Engine)
	b.text(`"expires":`, v.Expires)
	b.text(`"id":`, v.ID)
	b.text(`"lease_hash":`, v.LeaseHash)
	b.text(`"server":`, v.Server)
	b.number(`"ttl_s":`, v.TTLS)
	b.text(`"version":`, v.Version)
	b.close()
}

func (v *Target) json(b *line) {
	b.open()
	b.text(`"addr":`, v.Addr)
	b.text(`"kind":`, v.Kind)
	b.text(`"object":`, v.Object)
	b.close()
}

func (v *Task) json(b *line) {
	b.open()
	if len(v.Approvers) > 0 {
		b.texts(`"approvers":`, v.Approvers)
	}
	b.texts(`"asserted":`, v.Asserted)
	b.texts(`"chain":`, v.Chain)
	b.text(`"expires":`, v.Expires)
	b.text(`"id":`, v.ID)
	b.truth(`"implicit":`, v.Implicit)
	b.text(`"kind":`, v.Kind)
	if len(v.Labels) > 0 {
		b.texts(`"labels":`, v.Labels)
	}
	b.text(`"on_behalf_of":`, v.OnBehalf)
	b.text(`"owner":`, v.Owner)
	b.text(`"parent":`, v.Parent)
	b.text(`"purpose":`, v.Purpose)
	if v.Reference != "" {
		b.text(`"reference":`, v.Reference)
	}
	b.text(`"scope_hash":`, v.ScopeHash)
	b.text(`"state":`, v.State)
	if len(v.Widened) > 0 {
		b.texts(`"widened":`, v.Widened)
	}
	b.close()
}

func (v *Tool) json(b *line) {
	b.open()
	b.text(`"def_hash":`, v.Definition)
	b.text(`"name":`, v.Name)
	b.text(`"server":`, v.Server)
	b.close()
}

func (v *Workload) json(b *line) {
	b.open()
	b.text(`"authn":`, v.Authn)
	b.text(`"bound":`, v.Bound)
	b.text(`"credential":`, v.Credential)
	b.texts(`"delegation":`, v.Delegation)
	b.text(`"id":`, v.ID)
	b.text(`"on_behalf_of":`, v.OnBehalfOf)
	b.text(`"owner":`, v.Owner)
	b.close()
}
