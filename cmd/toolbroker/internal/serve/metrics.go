package serve

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"toolbroker/gateway"
)

// A meter counts what is recorded. Its labels are closed sets of ours: event
// types, refusal codes, outcomes; never what a caller chose.
type meter struct {
	registry *prometheus.Registry
	events   *prometheus.CounterVec
	refusals *prometheus.CounterVec
	outcomes *prometheus.HistogramVec
	failed   prometheus.Counter
	warnings prometheus.Gauge
}

func newMeter(mode string, ready func() error, refused func() bool) *meter {
	m := &meter{
		registry: prometheus.NewRegistry(),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "toolbroker_events_total", Help: "Facts recorded, by event type."}, []string{"type"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "toolbroker_refusals_total", Help: "Calls and starts refused, by refusal code."}, []string{"code"}),
		outcomes: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "toolbroker_downstream_seconds", Help: "How long servers took, by how the call ended.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}}, []string{"status"}),
		failed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "toolbroker_record_failures_total", Help: "Records that could not be written; each stopped what it was about."}),
	}
	m.warnings = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "toolbroker_policy_warnings", Help: "Warnings about the policy in force, as `toolbroker policy check` says them."})
	stale := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "toolbroker_policy_refused", Help: "1 while the policy file is refused and an older one is in force.",
	}, func() float64 {
		if refused() {
			return 1
		}
		return 0
	})
	up := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "toolbroker_ready", Help: "1 when it can serve, as /readyz says.", ConstLabels: prometheus.Labels{"mode": mode},
	}, func() float64 {
		if ready() != nil {
			return 0
		}
		return 1
	})
	m.registry.MustRegister(m.events, m.refusals, m.outcomes, m.failed, m.warnings, stale, up,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *meter) count(facts []gateway.Fact, err error) error {
	if err != nil {
		m.failed.Inc()
		return err
	}
	for _, f := range facts {
		m.events.WithLabelValues(string(f.Type)).Inc()
		if f.Code != "" {
			m.refusals.WithLabelValues(string(f.Code)).Inc()
		}
		if f.Outcome != nil && f.Outcome.Latency > 0 {
			m.outcomes.WithLabelValues(f.Outcome.Status).Observe(f.Outcome.Latency.Seconds())
		}
	}
	return nil
}

// A metered recorder is the recorder, counted.
type metered struct {
	gateway.Recorder
	meter *meter
}

func (r metered) Record(ctx context.Context, f ...gateway.Fact) error {
	return r.meter.count(f, r.Recorder.Record(ctx, f...))
}

func (r metered) Durable(ctx context.Context, f ...gateway.Fact) error {
	return r.meter.count(f, r.Recorder.Durable(ctx, f...))
}

// Fault says why nothing can be recorded now, or nil.
func (r metered) Fault() error {
	if f, ok := r.Recorder.(interface{ Fault() error }); ok {
		return f.Fault()
	}
	return nil
}

// management is the handler for probes and metrics, and for nothing else.
func (h *House) management() http.Handler {
	mux := http.NewServeMux()
	say := func(w http.ResponseWriter, status int, body any) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(body) // the prober went away
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		say(w, http.StatusOK, map[string]string{"status": "alive"})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		status, body := http.StatusOK, map[string]string{"status": "ready"}
		if err := h.Ready(r.Context()); err != nil {
			status, body = http.StatusServiceUnavailable, map[string]string{"status": "not ready", "because": err.Error()}
		}
		if f := h.policy.Refused(); f != nil {
			body["policy"] = "the file is refused, and " + h.policy.Revision() + " is in force: " + f.String()
		}
		say(w, status, body)
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(h.meter.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	return mux
}
