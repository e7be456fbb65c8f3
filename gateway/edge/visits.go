package edge

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	strict "github.com/go-json-experiment/json"
	"github.com/mark3labs/mcp-go/mcp"

	"toolbroker/gateway"
)

const (
	maxVisits   = 64     // of one session, whose ends it is told of
	maxVisitors = 10_000 // on this replica
)

// visits are the elicitations by URL that servers put to legacy sessions through this
// replica, by their ids as the sessions read them. A server's word that one is
// complete is passed on for these only, once each, so that no id gets to an agent
// that it was not shown. The zero value is ready.
type visits struct {
	mu sync.Mutex
	m  map[string]map[string]int // by session and id: how often it was sent
}

// A visit is such an elicitation, as far as it matters here.
type visit struct {
	Mode string `json:"mode"`
	ID   string `json:"elicitationId"`
}

// sent remembers an elicitation that is about to be put to a session.
func (v *visits) sent(session string, one visit) {
	if session == "" || one.Mode != "url" || one.ID == "" || len(one.ID) > maxIDBytes {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.m == nil {
		v.m = map[string]map[string]int{}
	}
	if v.m[session] == nil {
		dropOne(v.m, maxVisitors)
		v.m[session] = map[string]int{}
	}
	dropOne(v.m[session], maxVisits)
	v.m[session][one.ID]++
}

// dropOne makes room for one more.
func dropOne[V any](m map[string]V, most int) {
	if len(m) < most {
		return
	}
	for k := range m {
		delete(m, k)
		return
	}
}

// take reports whether a session was sent to a page, and forgets that once.
func (v *visits) take(session, id string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	all := v.m[session]
	if all[id] == 0 {
		return false
	}
	if all[id]--; all[id] == 0 {
		delete(all, id)
	}
	if len(all) == 0 {
		delete(v.m, session)
	}
	return true
}

func (v *visits) end(session string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.m, session)
}

// sends remembers the pages of an error of a server's that a legacy session gets.
func (e *Edge) sends(r request, fault []byte) {
	var in struct {
		Code int `json:"code"`
		Data struct {
			Elicitations []json.RawMessage `json:"elicitations"`
		} `json:"data"`
	}
	if r.modern || r.cred.Session == "" || strict.Unmarshal(fault, &in) != nil || in.Code != mcp.URL_ELICITATION_REQUIRED {
		return
	}
	for _, raw := range in.Data.Elicitations {
		var one visit
		if strict.Unmarshal(raw, &one) == nil {
			e.visits.sent(r.cred.Session, one)
		}
	}
}

// hears reports whether what a server notifies during a call may go out on the
// call's stream. That somebody is done with a page goes there once, where the stream
// can carry it, and else to the session's own.
func (e *Edge) hears(r request, method string, params json.RawMessage, carries bool) bool {
	if method != elicitationComplete {
		return carries
	}
	var in visit
	if strict.Unmarshal(params, &in) != nil || !r.can.url {
		return false
	}
	if !carries {
		e.Completed(r.cred.Session, in.ID)
		return false
	}
	return e.visits.take(r.cred.Session, in.ID)
}

// Completed says that a server calls an elicitation complete. The session that it was
// put to, by this replica, is told where its stream is; whoever was not is told
// nothing. It does not block.
func (e *Edge) Completed(session, elicitation string) {
	if !e.visits.take(session, elicitation) {
		return
	}
	if e.waits.Add(1) > maxWaits {
		e.waits.Add(-1)
		return
	}
	go func() {
		defer e.waits.Add(-1)
		ctx, cancel := context.WithTimeout(e.calls, 2*mailTries*recheck)
		defer cancel()
		if err := e.mail(ctx, session, elicitation); err != nil && !isNotFound(err) {
			e.Logger.Warn("a client was not told that an elicitation is complete", "err", err)
		}
	}()
}

// mail brings word to a session's stream, on whatever replica it is, that an
// elicitation is complete. The stream may be between two connections.
func (e *Edge) mail(ctx context.Context, session, elicitation string) error {
	pause := time.NewTicker(recheck)
	defer pause.Stop()
	for try := 1; ; try++ {
		err := e.Sessions.Answer(ctx, session, mailbox, gateway.Result{Raw: []byte(`{"elicitationId":` + quote(elicitation) + `}`)})
		if !isNotFound(err) || try == mailTries {
			return err
		}
		select {
		case <-pause.C:
		case <-ctx.Done():
			return err
		}
	}
}
