package servers

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"

	"toolbroker/gateway"
)

// The results that tools give: one long text, one with many escapes, the same in
// other writing than ours, and data.
var results = map[string]string{
	"text":   `{"content":[{"type":"text","text":"` + strings.Repeat("The quick brown fox jumps over the lazy dog. ", 64<<10/45) + `"}]}`,
	"lines":  `{"content":[{"type":"text","text":"` + strings.Repeat(`for _, c := range \"cases\" {\n\t`, 64<<10/33) + `"}],"isError":false}`,
	"tongue": `{"content":[{"type":"text","text":"` + strings.Repeat("Falsches Üben von Xylophonmusik quält jeden Zwerg. 日本 ", 64<<10/60) + `"}]}`,
	"data":   `{"content":[],"structuredContent":{"rows":[` + strings.Repeat(`{"id":12345,"name":"a name","open":true,"labels":["a","b"],"owner":{"login":"x","score":1.5}},`, 64<<10/94) + `null]}}`,
	"links":  `{"content":[` + strings.Repeat(`{"type":"resource_link","uri":"file:///some/where/a.txt","name":"a.txt"},`, 64<<10/73) + `{"type":"text","text":""}]}`,
}

// What it costs to read a response: the bytes are there, and go to the agent.
func BenchmarkResult64K(b *testing.B) {
	srv := &server{space: "x+"}
	for _, name := range []string{"text", "lines", "tongue", "data", "links"} {
		frame := []byte(`{"jsonrpc":"2.0","id":7,"result":` + results[name] + `}`)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(frame)))
			for b.Loop() {
				m, err := answerTo(7, frame)
				if err == nil {
					_, err = srv.answer(gateway.Forward{}, legacyEra, m)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A whole call over a loopback connection. The fixture costs next to nothing, and
// allocates nothing per call.
func BenchmarkCallEcho(b *testing.B) {
	benchmarkCall(b, `{"content":[{"type":"text","text":"hello"}]}`)
}
func BenchmarkCall64K(b *testing.B) { benchmarkCall(b, results["text"]) }

func benchmarkCall(b *testing.B, result string) {
	for _, modern := range []bool{false, true} {
		for _, stream := range []bool{false, true} {
			b.Run(fmt.Sprintf("modern=%t/stream=%t", modern, stream), func(b *testing.B) {
				s, _ := start(b, Config{Servers: []Server{{Name: "x", URL: canned(b, modern, stream, result)}}})
				tool, _ := s.Resolve("a", gateway.SortTool, "x__act")
				f := gateway.Forward{CallID: "call-1", Tool: tool, Args: json.RawMessage(`{"text":"hello"}`), Session: "m1",
					Principal: gateway.Principal{ID: "p", Tenant: "a"}, Task: gateway.Task{ID: "t1", Tenant: "a"}}
				b.ReportAllocs()
				for b.Loop() {
					if r, err := s.Forward(b.Context(), f, nil); err != nil || len(r.Raw) != len(result) {
						b.Fatal(err, string(r.Raw))
					}
				}
			})
		}
	}
}

// canned is a server that has its answers ready.
func canned(b *testing.B, modern, stream bool, result string) (url string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); serveCanned(c, modern, stream, result) }()
		}
	}()
	return "http://" + l.Addr().String()
}

func serveCanned(c net.Conn, modern, stream bool, result string) {
	answers := map[string]string{"tools/list": `{"tools":` + actTool + `}`, "tools/call": result,
		"server/discover": `{"supportedVersions":["2026-07-28"],"capabilities":{"tools":{}}}`,
		"initialize":      `{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"fake","version":"1"}}`}
	delete(answers, map[bool]string{true: "initialize", false: "server/discover"}[modern])
	in := bufio.NewReader(c)
	var body, out, frame []byte
	for {
		n := 0
		line, err := in.ReadSlice('\n')
		post := bytes.HasPrefix(line, []byte("POST"))
		for ; len(line) > 2; line, err = in.ReadSlice('\n') {
			if v, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
				n, _ = strconv.Atoi(string(bytes.TrimSpace(v)))
			}
		}
		if err != nil {
			return
		}
		body = append(body[:0], make([]byte, n)...)
		if _, err := io.ReadFull(in, body); err != nil {
			return
		}
		_, id, _ := bytes.Cut(body, []byte(`"id":`))
		id, rest, _ := bytes.Cut(id, []byte(","))
		_, rest, _ = bytes.Cut(rest, []byte(`"method":"`))
		method, _, _ := bytes.Cut(rest, []byte(`"`))
		if post && len(id) == 0 {
			out = append(out[:0], "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"...)
		} else if answer, ok := answers[string(method)]; ok {
			frame = append(append(append(frame[:0], `{"jsonrpc":"2.0","id":`...), id...), `,"result":`...)
			frame = append(append(frame, answer...), '}')
			if stream {
				out = append(out[:0], "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"...)
				out = append(strconv.AppendInt(out, int64(len(frame)+23), 16), "\r\nevent: message\ndata: "...)
				out = append(append(out, frame...), "\n\n\r\n0\r\n\r\n"...)
			} else {
				out = append(out[:0], "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "...)
				out = append(append(strconv.AppendInt(out, int64(len(frame)), 10), "\r\n\r\n"...), frame...)
			}
		} else {
			out = append(out[:0], "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"...)
		}
		if _, err := c.Write(out); err != nil {
			return
		}
	}
}
