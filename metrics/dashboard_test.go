package metrics

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// notShown are the metrics that no panel has, and why.
var notShown = map[string]string{}

type grafanaSource struct{ Type, UID string }

type grafanaPanel struct {
	Type, Title, Description string
	Datasource               grafanaSource
	Targets                  []struct {
		Expr, LegendFormat string
		Datasource         grafanaSource
	}
	FieldConfig struct{ Defaults struct{ Unit string } }
	GridPos     struct{ X, Y, W, H int }
}

type grafanaDashboard struct {
	UID, Title, Refresh string
	Editable            *bool
	SchemaVersion       int
	Templating          struct {
		List []struct {
			Name, Label, Type, AllValue, Definition string
			Query                                   any
			Datasource                              grafanaSource
			Multi, IncludeAll                       bool
			Refresh                                 int
		}
	}
	Panels []grafanaPanel
}

// loadDashboards reads all of them, by uid.
func loadDashboards(t *testing.T) map[string]grafanaDashboard {
	t.Helper()
	files, err := filepath.Glob("../configs/grafana/dashboards/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	all := make(map[string]grafanaDashboard)
	for _, file := range files {
		var d grafanaDashboard
		if err := json.Unmarshal([]byte(read(t, file)), &d); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if d.UID+".json" != filepath.Base(file) {
			t.Errorf("%s has the uid %q", file, d.UID)
		}
		all[d.UID] = d
	}
	return all
}

// substitute puts values in the place of Grafana's variables.
var substitute = strings.NewReplacer("$__rate_interval", "1m", "$__range", "1h", "$job", ".+", "$instance", ".+", "$filesystem", ".+")

var (
	ratio   = regexp.MustCompile(`\b(rate|irate|increase)\(([^\[]*)\[([^\]]*)\]`)
	totals  = regexp.MustCompile(`\b[a-z_]+_(?:total|bucket)\b`)
	braces  = regexp.MustCompile(`\b(?:btrexport|go|process)_[a-z0-9_]+(\{[^}]*\})?`)
	legends = regexp.MustCompile(`\{\{([a-z_]+)\}\}`)
)

// units are those of Grafana that the panels use.
var units = []string{"short", "Bps", "bytes", "s", "ops", "reqps", "iops", "percentunit"}

// TestDashboards holds the dashboards against the rules of dashboard-linter, and their names against the registry.
func TestDashboards(t *testing.T) {
	families := gather(t, populated())
	shown := make(map[string]bool)
	for uid, d := range loadDashboards(t) {
		if d.Editable == nil || *d.Editable || d.SchemaVersion < 39 || d.SchemaVersion > 41 || d.Refresh != "30s" || d.Title == "" {
			t.Errorf("%s: editable %v, schema %d, refresh %q, title %q", uid, d.Editable, d.SchemaVersion, d.Refresh, d.Title)
		}
		checkVariables(t, uid, &d, families)
		for _, p := range d.Panels {
			if p.Type != "row" {
				checkPanel(t, uid+": "+p.Title, &p, families, shown)
			}
		}
		for i := range d.Panels {
			for _, o := range d.Panels[:i] {
				g, h := d.Panels[i].GridPos, o.GridPos
				if g.X < h.X+h.W && h.X < g.X+g.W && g.Y < h.Y+h.H && h.Y < g.Y+g.H || g.X+g.W > 24 {
					t.Errorf("%s: %q lies on %q or off the page", uid, d.Panels[i].Title, o.Title)
				}
			}
		}
	}
	for name := range families {
		if strings.HasPrefix(name, "btrexport_") && shown[name] == (notShown[name] != "") {
			t.Errorf("%s is shown: %v; exception: %q", name, shown[name], notShown[name])
		}
	}
}

func checkVariables(t *testing.T, uid string, d *grafanaDashboard, families map[string]family) {
	t.Helper()
	var names []string
	for _, v := range d.Templating.List {
		names = append(names, v.Name)
		if v.Label == "" {
			t.Errorf("%s: variable %s has no label", uid, v.Name)
		}
		if v.Name == "datasource" {
			if v.Type != "datasource" || v.Query != "prometheus" || v.Label != "Data source" {
				t.Errorf("%s: %+v", uid, v)
			}
			continue
		}
		if v.Type != "query" || !v.Multi || !v.IncludeAll || v.AllValue != ".+" || v.Refresh != 2 || v.Datasource.UID != "${datasource}" {
			t.Errorf("%s: variable %s: %+v", uid, v.Name, v)
		}
		if wrong, _, labels := checkPromQL(families, v.Definition); len(wrong) > 0 || !slices.Contains(labels, v.Name) {
			t.Errorf("%s: variable %s: %v", uid, v.Name, wrong)
		}
	}
	if want := []string{"datasource", "job", "instance", "filesystem"}; !slices.Equal(names, want) {
		t.Errorf("%s: variables %v, want %v", uid, names, want)
	}
}

func checkPanel(t *testing.T, name string, p *grafanaPanel, families map[string]family, shown map[string]bool) {
	t.Helper()
	if p.Title == "" || p.Description == "" || !slices.Contains(units, p.FieldConfig.Defaults.Unit) || p.Datasource.UID != "${datasource}" || len(p.Targets) == 0 {
		t.Errorf("%s: description %q, unit %q, source %q, %d targets", name, p.Description, p.FieldConfig.Defaults.Unit, p.Datasource.UID, len(p.Targets))
	}
	for _, target := range p.Targets {
		wrong, metrics, labels := checkPromQL(families, target.Expr)
		if len(wrong) > 0 || len(metrics) == 0 || target.Datasource.UID != "${datasource}" {
			t.Errorf("%s: %s: %v", name, target.Expr, wrong)
		}
		for _, l := range legends.FindAllStringSubmatch(target.LegendFormat, -1) {
			if !slices.Contains(labels, l[1]) {
				t.Errorf("%s: %s: the legend names %s, which is no label of it", name, target.Expr, l[1])
			}
		}
		for _, m := range metrics {
			shown[strings.TrimSuffix(m, "_bucket")] = true
		}
		checkTarget(t, name, target.Expr, families)
	}
}

// checkTarget: every metric is narrowed to job and instance, and to the filesystem if it has one; every counter is
// under rate or increase, over Grafana's own interval.
func checkTarget(t *testing.T, name, expr string, families map[string]family) {
	t.Helper()
	for _, m := range braces.FindAllStringSubmatch(expr, -1) {
		metric, _, _ := strings.Cut(m[0], "{")
		has, _ := labelsOf(families, metric)
		want := []string{`job=~"$job"`, `instance=~"$instance"`}
		if slices.Contains(has, "filesystem") {
			want = append(want, `filesystem=~"$filesystem"`)
		}
		for _, w := range want {
			if !strings.Contains(m[1], w) {
				t.Errorf("%s: %s lacks %s", name, m[0], w)
			}
		}
	}
	under := 0
	for _, r := range ratio.FindAllStringSubmatch(expr, -1) {
		under += len(totals.FindAllString(r[2], -1))
		if r[3] != "$__rate_interval" && (r[1] != "increase" || r[3] != "$__range") {
			t.Errorf("%s: %s over %s", name, r[1], r[3])
		}
	}
	if all := len(totals.FindAllString(expr, -1)); all != under {
		t.Errorf("%s: of %d counters %d are under rate or increase: %s", name, all, under, expr)
	}
}

// TestFirstRow: what tells of lost data is at the top of the overview, and all of it is coloured.
func TestFirstRow(t *testing.T) {
	d := loadDashboards(t)["btrexport-overview"]
	want := map[string]bool{"btrexport_reads_lost_total": true, "btrexport_reads_repaired_total": true, "btrexport_checksum_failures_total": true, "btrexport_filesystem_degraded": true}
	for _, p := range d.Panels {
		if p.GridPos.Y > 4 {
			break
		}
		for _, target := range p.Targets {
			maps.DeleteFunc(want, func(name string, _ bool) bool { return p.Type == "stat" && strings.Contains(target.Expr, name+"{") })
		}
	}
	if d.Panels[0].Title != "Is data being lost?" || len(want) > 0 {
		t.Errorf("the first row is %q and lacks %v", d.Panels[0].Title, want)
	}
}

// TestExpressions has promtool read every expression.
func TestExpressions(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is not installed")
	}
	var b strings.Builder
	b.WriteString("groups:\n- name: all\n  rules:\n")
	for _, d := range loadDashboards(t) {
		for _, p := range d.Panels {
			for _, target := range p.Targets {
				quoted, err := json.Marshal(substitute.Replace(target.Expr))
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(&b, "  - record: panel:expression:at%d\n    expr: %s\n", b.Len(), quoted)
			}
		}
	}
	rules := filepath.Join(t.TempDir(), "rules.yml")
	if err := os.WriteFile(rules, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(promtool, "check", "rules", "--lint=none", rules).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for _, args := range [][]string{{"check", "rules", rulesFile}, {"check", "config", "../configs/prometheus/prometheus.yml"},
		{"test", "rules", "../configs/prometheus/btrexport.rules.test.yml"}} {
		if out, err := exec.Command(promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
}
