//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// prometheus is a running one that scrapes a server of ours twice a second.
type prometheus struct{ url string }

// startPrometheus starts it with a file of rules; the test's end kills it.
func startPrometheus(ctx context.Context, t *testing.T, target, rules string) *prometheus {
	t.Helper()
	rules, err := filepath.Abs(rules)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := fmt.Sprintf("global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}\nrule_files: [%q]\n"+
		"scrape_configs: [{job_name: btrexport, static_configs: [{targets: [%q]}]}]\n", rules, target)
	if err := os.WriteFile(dir+"/prometheus.yml", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &prometheus{url: "http://" + freeAddress(t)}
	cmd := exec.Command("prometheus", "--config.file="+dir+"/prometheus.yml", "--storage.tsdb.path="+dir+"/data",
		"--web.listen-address="+strings.TrimPrefix(p.url, "http://"), "--log.level=warn")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		if t.Failed() {
			t.Logf("prometheus: %s", log.Bytes())
		}
	})
	eventually(ctx, t, "Prometheus to be ready", func() string {
		_, err := p.get(ctx, "/-/ready", nil)
		return fmt.Sprint(err)
	}, "<nil>")
	return p
}

// metricsAddress is where a server that was told to listen on any TCP port serves its metrics.
func (s *server) metricsAddress(t *testing.T) string {
	t.Helper()
	m := regexp.MustCompile(`addr=http://(\S+)/metrics`).FindStringSubmatch(s.logged())
	if m == nil {
		t.Fatalf("no address of the metrics:\n%s", s.logged())
	}
	return m[1]
}

// freeAddress gives one of loopback that nobody listened on a moment ago.
func freeAddress(t *testing.T) string {
	t.Helper()
	l := listen(t)
	defer l.Close()
	return l.Addr().String()
}

// eventually waits until now gives want.
func eventually(ctx context.Context, t *testing.T, what string, now func() string, want string) {
	t.Helper()
	got := ""
	for end := time.Now().Add(time.Minute); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(100 * time.Millisecond) {
		if got = now(); got == want {
			return
		}
	}
	t.Fatalf("waited in vain for %s: got %s, want %s", what, got, want)
}

func (p *prometheus) get(ctx context.Context, path string, answer any) ([]byte, error) {
	return fetch(ctx, p.url+path, answer)
}

func fetch(ctx context.Context, address string, answer any) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", address, resp.Status, b)
	}
	if err == nil && answer != nil {
		err = json.Unmarshal(b, answer)
	}
	return b, err
}

// values are the numbers that an expression has now.
func (p *prometheus) values(ctx context.Context, expr string) ([]float64, error) {
	var answer struct {
		Data struct {
			Result []struct{ Value [2]any }
		}
	}
	if _, err := p.get(ctx, "/api/v1/query?query="+url.QueryEscape(expr), &answer); err != nil {
		return nil, err
	}
	var list []float64
	for _, r := range answer.Data.Result {
		text, _ := r.Value[1].(string)
		if v, err := strconv.ParseFloat(text, 64); err == nil && !math.IsNaN(v) {
			list = append(list, v)
		}
	}
	return list, nil
}

// alerts lists what fires, and of what waits to fire the one that is named, as "NAME STATE", sorted, each once. A busy
// machine is reason enough for others to wait: a scrape that was late, a slow read.
func (p *prometheus) alerts(ctx context.Context, waiting string) string {
	var answer struct {
		Data struct {
			Alerts []struct {
				Labels map[string]string
				State  string
			}
		}
	}
	if _, err := p.get(ctx, "/api/v1/alerts", &answer); err != nil {
		return err.Error()
	}
	var list []string
	for _, a := range answer.Data.Alerts {
		if name := strings.TrimPrefix(a.Labels["alertname"], "Btrexport"); a.State == "firing" || name == waiting {
			list = append(list, name+" "+a.State)
		}
	}
	slices.Sort(list)
	return strings.Join(slices.Compact(list), ", ")
}

// variables puts values in the place of Grafana's.
var variables = strings.NewReplacer("$__rate_interval", "30s", "$__range", "5m", "$job", ".+", "$instance", ".+", "$filesystem", ".+")

// panels are the expressions of all dashboards, by dashboard and title.
func panels(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("../../configs/grafana/dashboards/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	all := make(map[string]string)
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var d struct {
			UID    string
			Panels []struct {
				Title   string
				Targets []struct{ RefID, Expr string }
			}
		}
		if err := json.Unmarshal(b, &d); err != nil {
			t.Fatal(err)
		}
		for _, p := range d.Panels {
			for _, target := range p.Targets {
				all[d.UID+": "+p.Title+" "+target.RefID] = variables.Replace(target.Expr)
			}
		}
	}
	return all
}

// TestPrometheus has a real one scrape a server that is read while copies are ruined: every panel of the dashboards has
// data, and those alerts fire that should. BTREXPORT_PICTURE=FILE draws the overview after two minutes of it.
func TestPrometheus(t *testing.T) {
	need(t, "prometheus", "promtool")
	ctx := bounded(t)
	binary, dir := program(t, plainBinary), t.TempDir()
	must(ctx, t, binary, "sample", dir)
	devices := []string{"-d", dir + "/disk0.img", "-d", dir + "/disk1.img"}
	names := []string{"vm1", "zstd", "lzo", "zlib", "plain"}
	args := append(slices.Clone(devices), patient, "--metrics", "127.0.0.1:0")
	for _, name := range names {
		args = append(args, "-e", name+"=/@images/"+name+".raw")
	}
	s := serve(t, args...)
	address := s.metricsAddress(t)
	page, err := fetch(ctx, "http://"+address+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	lint := exec.CommandContext(ctx, "promtool", "check", "metrics")
	lint.Stdin = bytes.NewReader(page)
	if out, err := lint.CombinedOutput(); err != nil {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}

	p := startPrometheus(ctx, t, address, rulesFile)
	zero := func(metric string) func() string {
		return func() string {
			v, err := p.values(ctx, "count(count_over_time("+metric+"[1m]) >= 2)")
			return fmt.Sprint(len(v) > 0, err)
		}
	}
	eventually(ctx, t, "scrapes before the first failure", zero("btrexport_reads_lost_total"), "true <nil>")
	begin := time.Now()
	stop := readOn(ctx, t, s, names)
	defer stop()
	eventually(ctx, t, "no alert under load", func() string { return p.alerts(ctx, "Repairing") }, "")

	if os.Getenv("BTREXPORT_PICTURE") != "" {
		time.Sleep(40 * time.Second) // of a server that is well
	}
	must(ctx, t, binary, "sample", dir, "--damage")
	eventually(ctx, t, "the alerts of bad copies", func() string { return p.alerts(ctx, "Repairing") }, "ChecksumFailures firing, Repairing pending")
	ruinFirst(ctx, t, "/@images/plain.raw", devices, dir+"/disk0.img", dir+"/disk1.img")
	eventually(ctx, t, "the alerts of lost data", func() string { return p.alerts(ctx, "Repairing") }, "ChecksumFailures firing, ReadsLost firing, Repairing pending")

	var without []string
	eventually(ctx, t, "data for every panel", func() string {
		without = nil
		for name, expr := range panels(t) {
			if v, err := p.values(ctx, expr); err != nil || len(v) == 0 {
				without = append(without, fmt.Sprintf("%s: %s: %v", name, expr, err))
			}
		}
		slices.Sort(without)
		return strings.Join(without, "\n")
	}, "")
	if out := os.Getenv("BTREXPORT_PICTURE"); out != "" {
		time.Sleep(time.Until(begin.Add(2 * time.Minute)))
		must(ctx, t, "go", "run", "../../configs/grafana/picture", "-dashboard", "../../configs/grafana/dashboards/btrexport-overview.json",
			"-prometheus", p.url, "-last", "2m", "-interval", "10s", "-o", out)
	}
	stop()
	s.end(t)
	eventually(ctx, t, "the alert of a server that is down", func() string { return p.alerts(ctx, "Down") },
		"ChecksumFailures firing, Down pending, ReadsLost firing")
}

// readOn reads exports from end to end again and again, whatever is lost, until the function that it returns is called.
func readOn(ctx context.Context, t *testing.T, s *server, names []string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	var readers sync.WaitGroup
	for _, name := range names {
		c := s.dial(ctx, t, name)
		readers.Go(func() {
			buf := make([]byte, 16<<10)
			for off := int64(0); ctx.Err() == nil; off += int64(len(buf)) {
				if off+int64(len(buf)) > int64(c.Info().Size) {
					off = 0
				}
				_, _ = c.ReadAt(buf, off) // what is lost is what the alerts are to tell
				time.Sleep(time.Millisecond)
			}
		})
	}
	return sync.OnceFunc(func() {
		cancel()
		readers.Wait()
	})
}

// ruinFirst overwrites the copies of a file's first block that lie on these images.
func ruinFirst(ctx context.Context, t *testing.T, path string, devices []string, images ...string) {
	t.Helper()
	args := append(append([]string{"map", "--json"}, devices...), path)
	first, _, _ := strings.Cut(must(ctx, t, program(t, plainBinary), args...), "\n")
	var extent struct {
		Copies []struct {
			Device   string
			Physical int64
		}
	}
	if err := json.Unmarshal([]byte(first), &extent); err != nil || len(extent.Copies) != 2 {
		t.Fatalf("%v: %s", err, first)
	}
	for _, c := range extent.Copies {
		if !slices.Contains(images, c.Device) {
			continue
		}
		f, err := os.OpenFile(c.Device, os.O_WRONLY|os.O_SYNC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(bytes.Repeat([]byte{0x5a}, 4096), c.Physical); err != nil {
			t.Error(err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}
