package edge

import (
	"bytes"
	"io"
	"net/http"
	"sync"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/mark3labs/mcp-go/mcp"
)

// maxBatch is how many messages can come at once, in the one revision that has
// batches.
const maxBatch = 32

func isBatch(raw []byte) bool {
	first := bytes.TrimLeft(raw, " \t\r\n")
	return len(first) > 0 && first[0] == '['
}

// splitBatch reads the messages of a batch, each as the bytes it is. What they say
// is read one by one, like that of any message.
func splitBatch(raw []byte) (all []jsontext.Value, err error) {
	if why := tooMuch(raw); why != "" {
		return nil, badMessage(mcp.INVALID_REQUEST, "the message "+why)
	}
	dec := borrow(raw)
	defer giveBack(dec)
	if _, err := dec.ReadToken(); err != nil {
		return nil, asFault(err)
	}
	for dec.PeekKind() != ']' {
		v, err := dec.ReadValue()
		if err != nil {
			return nil, asFault(err)
		}
		if len(all) == maxBatch {
			return nil, badMessage(mcp.INVALID_REQUEST, "too many messages at once: send 32 at most")
		}
		end := int(dec.InputOffset())
		all = append(all, raw[end-len(v):end:end])
	}
	if _, err := dec.ReadToken(); err != nil {
		return nil, asFault(err)
	}
	if _, err := dec.ReadToken(); err != io.EOF {
		return nil, badMessage(mcp.PARSE_ERROR, "there is more after the message")
	}
	if len(all) == 0 {
		return nil, badMessage(mcp.INVALID_REQUEST, "a batch has a message in it")
	}
	for _, one := range all {
		if isBatch(one) {
			return nil, noBatch
		} else if m, err := decode(one); err == nil && m.method == "initialize" {
			return nil, badMessage(mcp.INVALID_REQUEST, "initialize comes alone")
		}
	}
	return all, nil
}

var noBatch = &fault{code: mcp.INVALID_REQUEST, message: "batches are not supported: send one message at a time"}

// batch takes in several messages at once, as clients of 2025-03-26 may send them:
// each as if it had come alone, with answers that are not streamed.
func (e *Edge) batch(w http.ResponseWriter, hr *http.Request, r request, body []byte) {
	all, err := []jsontext.Value(nil), error(noBatch)
	if r.protocol == mcp.ProtocolVersion20250326 {
		all, err = splitBatch(body)
	}
	if err != nil {
		e.Gateway.Malformed(hr.Context(), r.cred)
		f := faultOf(err)
		_ = writeJSON(w, f.http(), f.bytes(nil))
		return
	}
	parts := make([]part, len(all))
	var done sync.WaitGroup
	for i, one := range all {
		done.Go(func() {
			alone := hr.Clone(hr.Context())
			alone.Body, alone.ContentLength = io.NopCloser(bytes.NewReader(one)), int64(len(one))
			alone.Header.Set("Accept", "application/json")
			parts[i].header = http.Header{}
			defer parts[i].recovered(e, hr)
			e.post(&parts[i], alone, r)
		})
	}
	done.Wait()
	status, out := joined(parts)
	if out == nil {
		w.WriteHeader(status)
		return
	}
	for name, values := range parts[0].header { // what says who one would have to be
		if status != http.StatusOK && (name == "Www-Authenticate" || name == "Retry-After") {
			w.Header()[name] = values
		}
	}
	_ = writeJSON(w, status, out)
}

// joined puts the answers of a batch together. Where all of them say that the
// caller or its session is not good, so does the whole.
func joined(parts []part) (status int, out []byte) {
	status = parts[0].status
	for _, p := range parts {
		if p.status != status {
			status = http.StatusOK
		}
		if p.body.Len() == 0 {
			continue // a notification, or an answer
		}
		if out == nil {
			out = []byte{'['}
		} else {
			out = append(out, ',')
		}
		out = append(out, p.body.Bytes()...)
	}
	if out == nil {
		return http.StatusAccepted, nil
	}
	return status, append(out, ']')
}

// A part is the answer to one message of a batch, before it leaves.
type part struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (p *part) Header() http.Header         { return p.header }
func (p *part) Write(b []byte) (int, error) { return p.body.Write(b) }
func (p *part) WriteHeader(status int) {
	if p.status == 0 {
		p.status = status
	}
}

// recovered answers for a message that blew up: the others did not.
func (p *part) recovered(e *Edge, hr *http.Request) {
	if v := recover(); v != nil {
		e.Logger.Error("panic while serving a message of a batch", "panic", v, "source", hr.RemoteAddr)
		p.status = http.StatusOK
		p.body.Reset()
		p.body.Write((&fault{code: mcp.INTERNAL_ERROR, message: "internal"}).bytes(nil))
	}
}

var _ http.ResponseWriter = (*part)(nil)
