package metrics

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ask sends one request to a handler.
func ask(h http.Handler, method, target string, header http.Header) *http.Response {
	req := httptest.NewRequest(method, target, nil)
	if header != nil {
		req.Header = header
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	return w.Result()
}

func body(t *testing.T, resp *http.Response) string {
	t.Helper()
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func scrape(t *testing.T, h http.Handler, accept string) string {
	t.Helper()
	return body(t, ask(h, http.MethodGet, "/metrics", http.Header{"Accept": {accept}}))
}

func TestHandler(t *testing.T) {
	h := populated().Handler()
	for _, tc := range []struct {
		method, path string
		status       int
		contentType  string
		holds        string
	}{
		{"GET", "/metrics", 200, "text/plain", `btrexport_reads_lost_total{filesystem="tank"} 0`},
		{"HEAD", "/metrics", 200, "text/plain", ""},
		{"POST", "/metrics", 405, "text/plain; charset=utf-8", "only GET and HEAD are served\n"},
		{"GET", "/-/healthy", 200, "text/plain; charset=utf-8", "healthy\n"},
		{"GET", "/-/ready", 503, "text/plain; charset=utf-8", "starting\n"},
		{"DELETE", "/-/ready", 405, "text/plain; charset=utf-8", "only GET and HEAD are served\n"},
		{"GET", "/", 200, "text/html; charset=utf-8", `<a href="/metrics">`},
		{"GET", "/", 200, "text/html; charset=utf-8", `<a href="/-/healthy">`},
		{"GET", "/", 200, "text/html; charset=utf-8", `<a href="/-/ready">`},
		{"GET", "/", 200, "text/html; charset=utf-8", `version 1.2.3, go9`},
		{"PUT", "/", 405, "text/plain; charset=utf-8", "only GET and HEAD are served\n"},
		{"GET", "/nothing", 404, "text/plain; charset=utf-8", ""},
		{"GET", "/metrics/", 404, "text/plain; charset=utf-8", ""},
		{"GET", "/debug/pprof/", 404, "text/plain; charset=utf-8", ""},
	} {
		resp := ask(h, tc.method, tc.path, nil)
		text := body(t, resp)
		if resp.StatusCode != tc.status || !strings.HasPrefix(resp.Header.Get("Content-Type"), tc.contentType) || !strings.Contains(text, tc.holds) {
			t.Errorf("%s %s: status %d, %s, body %.200q; want %d, %s, holding %q",
				tc.method, tc.path, resp.StatusCode, resp.Header.Get("Content-Type"), text, tc.status, tc.contentType, tc.holds)
		}
		if tc.status == 405 && resp.Header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s %s: Allow is %q", tc.method, tc.path, resp.Header.Get("Allow"))
		}
		if resp.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s %s may be cached", tc.method, tc.path)
		}
	}
}

func TestLandingPageEscapes(t *testing.T) {
	text := body(t, ask(New(Build{Version: "<script>"}).Handler(), "GET", "/", nil))
	if strings.Contains(text, "<script>") || !strings.Contains(text, "&lt;script&gt;") {
		t.Errorf("the version is not escaped: %s", text)
	}
}

func TestReady(t *testing.T) {
	r := New(Build{})
	h := r.Handler()
	for _, tc := range []struct {
		set    func()
		status int
		body   string
	}{
		{func() {}, 503, "starting\n"},
		{func() { r.SetReady(false, "opening tank:\n devid 2\r\nis slow") }, 503, "opening tank: devid 2 is slow\n"},
		{func() { r.SetReady(true, "") }, 200, "ready\n"},
		{func() { r.SetReady(false, "draining") }, 503, "draining\n"},
	} {
		tc.set()
		resp := ask(h, "GET", "/-/ready", nil)
		if got := body(t, resp); resp.StatusCode != tc.status || got != tc.body {
			t.Errorf("%d %q, want %d %q", resp.StatusCode, got, tc.status, tc.body)
		}
	}
}

func TestFormats(t *testing.T) {
	r := populated()
	h := r.Handler()
	open := scrape(t, h, "application/openmetrics-text; version=1.0.0")
	if !strings.HasSuffix(open, "# EOF\n") || !strings.Contains(open, "# TYPE btrexport_reads_lost counter\n") {
		t.Errorf("no OpenMetrics: ends with %q", open[max(0, len(open)-100):])
	}
	for _, line := range []string{"btrexport_reads_lost_total{filesystem=\"tank\"} 0", "btrexport_build_info{goversion=\"go9\",revision=\"c0ffee\",version=\"1.2.3\"} 1"} {
		if !strings.Contains(open, line) {
			t.Errorf("OpenMetrics lacks %s", line)
		}
	}
	proto := ask(h, "GET", "/metrics", http.Header{"Accept": {"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"}})
	if body(t, proto); !strings.HasPrefix(proto.Header.Get("Content-Type"), "application/vnd.google.protobuf") {
		t.Errorf("protobuf scrape answered with %s", proto.Header.Get("Content-Type"))
	}
}

// bound is a Server on an address.
func bound(t *testing.T, network, address string, h http.Handler) *Server {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	return NewServer(l, h, nil)
}

// start serves h on address until the test ends.
func start(t *testing.T, network, address string, h http.Handler) *Server {
	t.Helper()
	s := bound(t, network, address, h)
	done := make(chan error, 1)
	go func() { done <- s.Serve() }()
	t.Cleanup(func() {
		if err := s.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Errorf("Serve: %v, want nil after Shutdown", err)
		}
	})
	return s
}

// client dials one address, whatever the URL says, and keeps no connection.
func client(network, address string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
	}}
}

func TestServeTCP(t *testing.T) {
	s := start(t, "tcp", "127.0.0.1:0", populated().Handler())
	if !strings.HasPrefix(s.URL(), "http://127.0.0.1:") || strings.Contains(s.URL(), ":0/") {
		t.Errorf("URL is %s, want the port that was bound", s.URL())
	}
	resp, err := client("tcp", s.listener.Addr().String()).Get(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	if got := body(t, resp); !strings.Contains(got, "btrexport_build_info") {
		t.Errorf("GET %s: %.100q", s.URL(), got)
	}
}

func TestServeUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.sock")
	s := start(t, "unix", path, populated().Handler())
	if s.URL() != "unix://"+path {
		t.Errorf("URL is %s, want unix://%s", s.URL(), path)
	}
	resp, err := client("unix", path).Get("http://metrics/-/healthy")
	if err != nil {
		t.Fatal(err)
	}
	if got := body(t, resp); got != "healthy\n" {
		t.Errorf("GET over the socket: %q", got)
	}
}

func TestShutdownWithoutServe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.sock")
	s := bound(t, "unix", path, http.NotFoundHandler())
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestShutdownIsBounded(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	s := bound(t, "tcp", "127.0.0.1:0", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(entered)
		<-release
	}))
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	asked := make(chan error, 1)
	go func() {
		_, err := client("tcp", s.listener.Addr().String()).Get(s.URL())
		asked <- err
	}()
	<-entered
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v, want DeadlineExceeded", err)
	}
	if err := <-asked; err == nil {
		t.Error("the stuck request was answered")
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestLargeHeaderIsRefused(t *testing.T) {
	var reached atomic.Int32
	s := start(t, "tcp", "127.0.0.1:0", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
	for _, size := range []int{maxHeader / 2, 4 * maxHeader} {
		req, err := http.NewRequest("GET", s.URL(), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Large", strings.Repeat("x", size))
		resp, err := client("tcp", s.listener.Addr().String()).Do(req)
		if err == nil { // the server may hang up while the header is still being sent
			resp.Body.Close()
		}
	}
	if got := reached.Load(); got != 1 {
		t.Errorf("%d of the two requests reached the handler, want the small one only", got)
	}
}

// TestConnectionsAreBounded opens one connection more than there are slots: it is served once one is closed.
func TestConnectionsAreBounded(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := limit(inner, 2)
	accepted := make(chan net.Conn)
	var closed error
	go func() {
		defer close(accepted)
		for {
			var c net.Conn
			if c, closed = l.Accept(); closed != nil {
				return
			}
			accepted <- c
		}
	}()
	for range 3 {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	first, second := <-accepted, <-accepted
	select {
	case <-accepted:
		t.Fatal("a third connection was accepted beside two")
	case <-time.After(50 * time.Millisecond):
	}
	first.Close()
	first.Close() // the second close must not free a second slot
	third := <-accepted
	if got := len(l.(*limitListener).slots); got != 2 {
		t.Errorf("%d slots are taken, want 2", got)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, open := <-accepted; open || !errors.Is(closed, net.ErrClosed) {
		t.Errorf("Accept after Close: %v, want ErrClosed", closed)
	}
	second.Close()
	third.Close()
}

// TestTimeoutsAreSet guards against a client that holds a connection for ever.
func TestTimeoutsAreSet(t *testing.T) {
	s := NewServer(nil, nil, nil).srv
	for name, d := range map[string]time.Duration{
		"ReadHeaderTimeout": s.ReadHeaderTimeout, "ReadTimeout": s.ReadTimeout, "WriteTimeout": s.WriteTimeout, "IdleTimeout": s.IdleTimeout,
	} {
		if d <= 0 {
			t.Errorf("%s is not set", name)
		}
	}
	if s.WriteTimeout <= scrapeTimeout {
		t.Errorf("WriteTimeout %v cuts a scrape of %v", s.WriteTimeout, scrapeTimeout)
	}
}
