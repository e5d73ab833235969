package metrics

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// scraped are the labels that Prometheus adds.
var scraped = []string{"job", "instance"}

var (
	metricName = regexp.MustCompile(`\b((?:btrexport|go|process|promhttp)_[a-z0-9_]+)(\{[^}]*\})?`)
	matcher    = regexp.MustCompile(`([a-z_]+)\s*(?:=~|!~|!=|=)`)
	grouping   = regexp.MustCompile(`\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)`)
	recorded   = regexp.MustCompile(`[a-z_]+:[a-z_0-9]+:[a-z_0-9]+`)
)

// labelsOf gives the labels of a metric, or of a histogram's series; false: there is no such thing.
func labelsOf(families map[string]family, name string) ([]string, bool) {
	f, ok := families[name]
	var extra []string
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		if base, is := strings.CutSuffix(name, suffix); is && !ok {
			if f, ok = families[base]; ok && f.kind != "histogram" && f.kind != "summary" {
				return nil, false
			}
			if suffix == "_bucket" {
				extra = []string{"le"}
			}
		}
	}
	if !ok {
		return nil, false
	}
	for _, s := range f.samples {
		for _, l := range s.labels {
			label, _, _ := strings.Cut(l, "=")
			extra = append(extra, label)
		}
	}
	return append(extra, scraped...), true
}

// checkPromQL holds the names in an expression against the registry: what is wrong, and the metrics and labels that it has.
func checkPromQL(families map[string]family, expr string) (wrong, metrics, labels []string) {
	labels = slices.Clone(scraped)
	expr = recorded.ReplaceAllStringFunc(expr, func(string) string { labels = append(labels, "filesystem", "devid"); return "1" })
	for _, m := range metricName.FindAllStringSubmatch(expr, -1) {
		has, ok := labelsOf(families, m[1])
		if !ok {
			wrong = append(wrong, m[1]+" is no metric")
			continue
		}
		metrics, labels = append(metrics, m[1]), append(labels, has...)
		for _, l := range matcher.FindAllStringSubmatch(m[2], -1) {
			if !slices.Contains(has, l[1]) {
				wrong = append(wrong, fmt.Sprintf("%s has no label %s", m[1], l[1]))
			}
		}
	}
	for _, g := range grouping.FindAllStringSubmatch(expr, -1) {
		for l := range strings.FieldsFuncSeq(g[1], func(r rune) bool { return r == ',' || r == ' ' }) {
			if !slices.Contains(labels, l) {
				wrong = append(wrong, "nothing has the label "+l)
			}
		}
	}
	return wrong, metrics, labels
}

func TestCheckPromQL(t *testing.T) {
	families := gather(t, populated())
	for expr, want := range map[string]int{
		`sum by (filesystem) (rate(btrexport_reads_lost_total{job="x",filesystem=~"a"}[5m]))`:                    0,
		`histogram_quantile(0.9, sum by (le, export) (rate(btrexport_nbd_request_duration_seconds_bucket[5m])))`: 0,
		`btrexport_device_up * on (filesystem, devid) group_left (path) btrexport_device_info`:                   0,
		`rate(btrexport_reads_lost[5m])`:                  1,
		`btrexport_reads_lost_total_bucket`:               1,
		`btrexport_reads_lost_total{devid="1"}`:           1,
		`sum by (devid) (btrexport_reads_lost_total)`:     1,
		`btrexport_device_up * on (export) go_goroutines`: 1,
	} {
		if wrong, _, _ := checkPromQL(families, expr); len(wrong) != want {
			t.Errorf("%s: %q, want %d", expr, wrong, want)
		}
	}
}

const rulesFile = "../configs/prometheus/btrexport.rules.yml"

// TestRules: the rules name what exists, and each alert has its texts, a runbook page, a unit test and a row on the pages.
func TestRules(t *testing.T) {
	families := gather(t, populated())
	rules, tests := read(t, rulesFile), read(t, "../configs/prometheus/btrexport.rules.test.yml")
	for _, what := range []string{rules, tests} {
		for _, m := range metricName.FindAllStringSubmatch(recorded.ReplaceAllString(what, ""), -1) {
			if wrong, _, _ := checkPromQL(families, m[0]); len(wrong) > 0 {
				t.Error(wrong)
			}
		}
	}
	list := strings.Split(rules, "- alert: ")[1:]
	if len(list) < 8 {
		t.Fatalf("%d alerts", len(list))
	}
	pages := read(t, page) + read(t, "../docs/runbooks/README.md")
	labelName := regexp.MustCompile(`\$labels\.([a-z_]+)`)
	for _, rule := range list {
		name, body, _ := strings.Cut(rule, "\n")
		for _, part := range []string{"expr: ", "severity: ", "summary: ", "description: ", "runbook_url: https://github.com/btrexport/btrexport/blob/main/docs/runbooks/" + name + ".md\n"} {
			if strings.Count(body, part) != 1 {
				t.Errorf("%s: has not one %q", name, part)
			}
		}
		expr, rest, _ := strings.Cut(body, "labels:\n")
		wrong, _, labels := checkPromQL(families, expr)
		if len(wrong) > 0 {
			t.Errorf("%s: %v", name, wrong)
		}
		for _, l := range labelName.FindAllStringSubmatch(rest, -1) {
			if !slices.Contains(labels, l[1]) {
				t.Errorf("%s: a text names the label %s, which the expression has not", name, l[1])
			}
		}
		if text := read(t, "../docs/runbooks/"+name+".md"); !strings.HasPrefix(text, "# "+name+"\n") {
			t.Errorf("docs/runbooks/%s.md has another title", name)
		}
		if !strings.Contains(tests, "- name: "+name+" fires") || !strings.Contains(tests, "- name: "+name+" is quiet") {
			t.Errorf("%s has not both unit tests", name)
		}
		if strings.Count(pages, name+".md)") != 2 {
			t.Errorf("%s is not once in docs/monitoring.md and once in docs/runbooks/README.md", name)
		}
	}
	files, err := filepath.Glob("../docs/runbooks/Btrexport*.md")
	if err != nil || len(files) != len(list) {
		t.Errorf("%d pages of runbooks, %d alerts, %v", len(files), len(list), err)
	}
}

// packageName is a file of a release.
var packageName = regexp.MustCompile(`btrexport_(VERSION|[0-9])\S*`)

// TestPagesNameMetrics: every metric and label in an expression of a page exists.
func TestPagesNameMetrics(t *testing.T) {
	families := gather(t, populated())
	files, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	books, err := filepath.Glob("../docs/runbooks/*.md")
	if err != nil {
		t.Fatal(err)
	}
	code := regexp.MustCompile("(?s)`[^`]+`")
	for _, file := range slices.Concat(files, books, []string{"../README.md"}) {
		for _, c := range code.FindAllString(read(t, file), -1) {
			c = packageName.ReplaceAllString(c, "")
			if strings.Contains(c, "{hits") {
				continue
			}
			if wrong, _, _ := checkPromQL(families, c); len(wrong) > 0 {
				t.Errorf("%s: %s: %v", file, c, wrong)
			}
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
