package metrics

import (
	"html/template"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	scrapeTimeout  = 10 * time.Second
	scrapesAtOnce  = 8 // more are answered 503
	contentPlain   = "text/plain; charset=utf-8"
	landingContent = `<!DOCTYPE html>
<html lang="en"><head><title>btrexport</title></head><body>
<h1>btrexport</h1>
<p>version {{.Version}}, {{.GoVersion}}</p>
<ul>
<li><a href="/metrics">/metrics</a> Prometheus metrics</li>
<li><a href="/-/healthy">/-/healthy</a> the process is alive</li>
<li><a href="/-/ready">/-/ready</a> it serves reads, or why it does not</li>
</ul>
</body></html>
`
)

// readiness is why the server does not serve.
type readiness struct{ reason string }

// SetReady says whether every filesystem is open and every listener accepts, and if not, why, in one line
// ("starting" until it is first called; "draining" is custom at the end).
func (r *Registry) SetReady(ready bool, reason string) {
	if ready {
		r.ready.Store(nil)
		return
	}
	r.ready.Store(&readiness{reason: strings.Join(strings.Fields(reason), " ")})
}

// Handler serves /metrics, /-/healthy (200 while the process lives), /-/ready (200, or 503 and the reason) and
// a page on / that links them. Everything else is 404, every method but GET and HEAD 405. An error of one
// collector leaves the other metrics on the page and is counted in promhttp_metric_handler_errors_total.
func (r *Registry) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(r.reg, promhttp.HandlerOpts{
		Registry:            r.reg,
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: scrapesAtOnce,
		Timeout:             scrapeTimeout,
		EnableOpenMetrics:   true,
	}))
	mux.HandleFunc("/-/healthy", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "healthy") })
	mux.HandleFunc("/-/ready", func(w http.ResponseWriter, _ *http.Request) {
		if not := r.ready.Load(); not != nil {
			answer(w, http.StatusServiceUnavailable, not.reason)
			return
		}
		answer(w, http.StatusOK, "ready")
	})
	mux.Handle("/{$}", landing(r.build))
	return readOnly(mux)
}

func answer(w http.ResponseWriter, status int, line string) {
	w.Header().Set("Content-Type", contentPlain)
	w.WriteHeader(status)
	io.WriteString(w, line+"\n") // the client has gone if this fails, and nobody is left to be told
}

func landing(b Build) http.Handler {
	page := template.Must(template.New("landing").Parse(landingContent))
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'")
		page.Execute(w, b) // as in answer
	})
}

// readOnly refuses methods that could change something and keeps answers out of caches.
func readOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if req.Method != http.MethodGet && req.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			answer(w, http.StatusMethodNotAllowed, "only GET and HEAD are served")
			return
		}
		next.ServeHTTP(w, req)
	})
}
