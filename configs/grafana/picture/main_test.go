package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestPicture draws the overview from made-up answers: one line from 0 to 30, of a label that must be escaped.
func TestPicture(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	asked := 0
	fake := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		if expr := r.FormValue("query"); strings.Contains(expr, "$") {
			t.Errorf("a variable is left in %s", expr)
		}
		var values []string
		for i := range 61 {
			values = append(values, fmt.Sprintf(`[%d,"%d"]`, now.Unix()-60+int64(i), i/2))
		}
		fmt.Fprintf(w, `{"status":"success","data":{"result":[{"metric":{"export":"a<b"},"values":[%s]}]}}`, strings.Join(values, ","))
	}))
	defer fake.Close()
	out := filepath.Join(t.TempDir(), "o.svg")
	p := picture{source: fake.URL, last: time.Minute, interval: time.Minute, rows: 3, now: now}
	if err := p.run("../dashboards/btrexport-overview.json", out); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	for d := xml.NewDecoder(strings.NewReader(string(b))); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"Is data being lost?", "Blocks lost", ">30<", "Throughput", "a&lt;b p99", "40 B/s", "What devices do"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("the picture lacks %q", want)
		}
	}
	if strings.Contains(string(b), "Evictions") || strings.Contains(string(b), "NaN") || asked == 0 {
		t.Errorf("a row too many, or NaN; %d queries", asked)
	}
}

func TestFormat(t *testing.T) {
	for _, tc := range []struct {
		unit string
		v    float64
		want string
	}{
		{"s", 0, "0"}, {"s", 0.00025, "250 µs"}, {"s", 0.5, "500 ms"}, {"s", 2, "2 s"}, {"Bps", 1.5e6, "1.5 MB/s"}, {"bytes", 999, "999 B"},
		{"percentunit", 0.25, "25%"}, {"short", 12, "12"}, {"short", 12345, "12.35K"}, {"ops", 0.5, "0.5 /s"},
	} {
		if got := format(tc.unit, tc.v); got != tc.want {
			t.Errorf("%v in %s: got %q, want %q", tc.v, tc.unit, got, tc.want)
		}
	}
	for v, want := range map[float64]float64{0: 1, 1: 1, 1.5: 2, 3: 4, 5: 10, 420: 1000} {
		if got := ceiling(v); got != want {
			t.Errorf("ceiling of %v: got %v, want %v", v, got, want)
		}
	}
}
