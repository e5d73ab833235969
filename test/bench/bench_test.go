package main

import (
	"bytes"
	"compress/flate"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/btrexport/btrexport/test/bench/load"
	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

func TestMark(t *testing.T) {
	for _, c := range []struct {
		v, must, aim float64
		less         bool
		want         string
	}{
		{1.39, 1.4, 1.8, false, "**missed**"},
		{1.4, 1.4, 1.8, false, "must"},
		{1.8, 1.4, 1.8, false, "aim"},
		{0.71, 0.7, 0.5, true, "**missed**"},
		{0.7, 0.7, 0.5, true, "must"},
		{0.5, 0.7, 0.5, true, "aim"},
		{3, 0, 0, false, ""},
	} {
		if got := mark(c.v, c.must, c.aim, c.less); got != c.want {
			t.Errorf("%v of must %v, aim %v, less %v: got %q, want %q", c.v, c.must, c.aim, c.less, got, c.want)
		}
	}
}

// samplesOf are measurements of a server at rates in MB/s.
func samplesOf(rates ...float64) []sample {
	var list []sample
	for _, r := range rates {
		n := int64(r * 1e6)
		list = append(list, sample{Result: load.Result{Bytes: n, Compared: n, Took: time.Second}})
	}
	return list
}

func TestRatioIsToTheFastestOther(t *testing.T) {
	l := line{samples: map[string][]sample{
		"btrexport":     samplesOf(100, 900, 300),
		"nbdkit":        samplesOf(100, 150, 200),
		"qemu-nbd none": samplesOf(999, 10, 20),
	}}
	medians, rounds := l.ratio(sample.rate)
	if want := (spread{median: 1.5, low: 1, high: 6}); medians != 2 || rounds != want || l.best() != "nbdkit" {
		t.Errorf("got %v, rounds %+v, best %s; want 2, %+v, nbdkit", medians, rounds, l.best(), want)
	}
	if got := spreadOf([]float64{4, 1, 3, 2}).median; got != 2.5 {
		t.Errorf("median of four: got %v, want 2.5", got)
	}
}

func TestShareIsOfTheDevicesThatAreThere(t *testing.T) {
	l := line{scenario: scenario{layout: layout{devices: 4, missing: 1}, rate: 100e6}, samples: map[string][]sample{"btrexport": samplesOf(270)}}
	if got := l.share(); got != 0.9 {
		t.Errorf("got %v, want 0.9", got)
	}
}

// The expected bytes must not depend on the number of cores, and no block may equal another.
func TestContent(t *testing.T) {
	for _, c := range []content{noise, text} {
		l := &library{dir: t.TempDir(), size: 1 << 20, seed: 42, made: make(map[content]*book)}
		b, err := l.get(c)
		if err != nil {
			t.Fatal(err)
		}
		write := noiseBlock(l.seed)
		if c == text {
			write = textBlock(l.seed)
		}
		seen := make(map[string]bool)
		for i := 0; i < len(b.bytes); i += kernelfs.BlockSize {
			var want [kernelfs.BlockSize]byte
			write(uint64(i/kernelfs.BlockSize), want[:])
			got := string(b.bytes[i : i+kernelfs.BlockSize])
			if got != string(want[:]) || seen[got] {
				t.Fatalf("%s: block at %d: not what its number gives, or there already", c, i)
			}
			seen[got] = true
		}
		var z bytes.Buffer
		w, _ := flate.NewWriter(&z, 3)
		_, _ = w.Write(b.bytes)
		_ = w.Close()
		if ratio := float64(len(b.bytes)) / float64(z.Len()); c == noise && ratio > 1.2 || c == text && (ratio < 2 || ratio > 4) {
			t.Errorf("%s shrinks by %.2f", c, ratio)
		}
		l.close()
	}
}

// What is written first must be wrong in every block that is written again.
func TestSpoil(t *testing.T) {
	want := make([]byte, 1<<20)
	first, blocks := spoil(want, 4, 7)
	wrong := make(map[int]bool)
	for i := range want {
		if first[i] != want[i] {
			wrong[i/kernelfs.BlockSize] = true
		}
	}
	if n := len(blocks); n < 40 || n > 90 || len(wrong) != n {
		t.Errorf("got %d blocks, %d of them wrong; want the same, a quarter of 256", n, len(wrong))
	}
	for _, b := range blocks {
		if !wrong[b] {
			t.Errorf("block %d is written again and was right", b)
		}
	}
}

// -scenario takes expressions; every row must be there to be chosen, by a name of its own.
func TestRowsHaveNamesOfTheirOwn(t *testing.T) {
	seen := make(map[string]bool)
	for _, s := range chosen(regexp.MustCompile("")) {
		for _, r := range s.rows {
			name := s.name + ": " + r.name
			if seen[name] || strings.Contains(name, "|") {
				t.Errorf("%s: twice, or no name for a table", name)
			}
			seen[name] = true
			if (r.must == 0) != (r.aim == 0) || r.must > r.aim || r.cpuMust < r.cpuAim {
				t.Errorf("%s: must %v, aim %v, CPU %v, %v", name, r.must, r.aim, r.cpuMust, r.cpuAim)
			}
		}
	}
	if got := chosen(regexp.MustCompile("^raid1-2: ")); len(got) != 1 || len(got[0].rows) != 1 {
		t.Errorf("raid1-2: got %d scenarios, want one with one row", len(got))
	}
}
