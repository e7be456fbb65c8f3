package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	strict "github.com/go-json-experiment/json"
)

// urlElicitationRequired is the error by which a server of 2025-11-25 says that pages
// have to be opened before a call is made again.
const urlElicitationRequired = -32042

// pageWait is how long an agent that was at a page already waits before it is sent
// there again: whoever opened it may not be done, and clients come back at once.
const pageWait = 5 * time.Second

// sendToPages puts that error in the way of an agent of 2026-07-28, which knows no
// such one: as input that the call needs, under a state of ours. Each page has been
// decided. When the agent says that they are open, the same call is made again.
func (g *Gateway) sendToPages(ctx context.Context, c *life, caps json.RawMessage, r Result) (Result, error) {
	var body struct {
		Code int64 `json:"code"`
		Data struct {
			Elicitations []json.RawMessage `json:"elicitations"`
		} `json:"data"`
	}
	if c.Protocol < modern || c.Method == MethodComplete || strict.Unmarshal(r.Error, &body) != nil || body.Code != urlElicitationRequired || !opensPages(caps) {
		return r, nil
	}
	s := state{Pages: c.Args.state.Pages + 1}
	switch {
	case s.Pages > maxSent:
		return Result{}, refuse(Downstream, errors.New("the server wants pages to be opened without end")).
			say("the tool's server still wants a page to be opened; make the call again when whoever opened it is done there")
	case s.Pages > 1:
		t := time.NewTimer(min(g.Hold, pageWait))
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return Result{}, ctx.Err()
		}
	}
	asked := map[string]want{}
	for i, page := range body.Data.Elicitations {
		var params map[string]json.RawMessage
		if err := strict.Unmarshal(page, &params); err != nil {
			return Result{}, fmt.Errorf("%w: a page that cannot be read", ErrBadAnswer)
		}
		delete(params, "elicitationId") // which this revision has not: nobody says that it is complete
		out, err := json.Marshal(params)
		if err != nil {
			return Result{}, fmt.Errorf("%w: a page that cannot be read", ErrBadAnswer)
		}
		key := "page-" + strconv.Itoa(i+1)
		asked[key], s.Asked = want{Method: MethodElicit, Params: out}, append(s.Asked, key)
	}
	sealed, err := g.seal(c, s)
	if err != nil {
		return Result{}, err
	}
	raw, err := json.Marshal(map[string]any{"resultType": ResultInput, "inputRequests": asked, "requestState": sealed})
	return Result{Type: ResultInput, Raw: raw}, err
}

// opensPages reports whether an agent's side can be sent to pages.
func opensPages(caps json.RawMessage) bool {
	var can struct {
		Elicitation struct {
			URL json.RawMessage `json:"url"`
		} `json:"elicitation"`
	}
	return json.Unmarshal(caps, &can) == nil && can.Elicitation.URL != nil
}

// opened takes what an agent answers about pages that it was sent to. None of it goes
// to the server, which knows by itself what was done there.
func (a *arguments) opened(answers map[string]json.RawMessage) error {
	for _, key := range a.state.Asked {
		var in struct {
			Action string `json:"action"`
		}
		if strict.Unmarshal(answers[key], &in) != nil || in.Action != "accept" {
			return refuse(Downstream, errors.New("a page that the server needs was not opened")).
				say("the tool's server needs a page to be opened first, and it was not; nothing was done")
		}
	}
	a.state.Asked = nil // the way goes on, perhaps by another page
	return nil
}
