package metrics

import (
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// promised is the table that users hold us to: name, type, labels.
const promised = `
| btrexport_device_reads_total | counter | filesystem, devid |
| btrexport_device_submissions_total | counter | filesystem, devid |
| btrexport_device_read_bytes_total | counter | filesystem, devid |
| btrexport_device_read_errors_total | counter | filesystem, devid |
| btrexport_device_read_duration_seconds | histogram | filesystem, devid |
| btrexport_device_queue_depth | gauge | filesystem, devid |
| btrexport_checksum_failures_total | counter | filesystem, devid, kind |
| btrexport_read_retries_total | counter | filesystem, devid, reason |
| btrexport_reads_repaired_total | counter | filesystem, source |
| btrexport_reads_lost_total | counter | filesystem |
| btrexport_reads_unverified_total | counter | filesystem |
| btrexport_nbd_requests_total | counter | export, command, result |
| btrexport_nbd_request_duration_seconds | histogram | export, command |
| btrexport_nbd_read_bytes_total | counter | export |
| btrexport_nbd_readahead_bytes_total | counter | export |
| btrexport_nbd_readahead_used_bytes_total | counter | export |
| btrexport_nbd_connections | gauge | listener |
| btrexport_nbd_connections_refused_total | counter | listener, reason |
| btrexport_nbd_handshakes_total | counter | result |
| btrexport_nbd_inflight_requests | gauge | export |
| btrexport_cache_hits_total | counter | filesystem, kind |
| btrexport_cache_misses_total | counter | filesystem, kind |
| btrexport_cache_evictions_total | counter | filesystem, kind |
| btrexport_cache_bytes | gauge | filesystem, kind |
| btrexport_decompress_seconds_total | counter | filesystem, algorithm |
| btrexport_filesystem_info | gauge | filesystem, uuid, label, data_profile, metadata_profile |
| btrexport_filesystem_degraded | gauge | filesystem |
| btrexport_device_info | gauge | filesystem, devid, path, model |
| btrexport_device_up | gauge | filesystem, devid |
| btrexport_device_recorded_errors | gauge | filesystem, devid, kind |
| btrexport_panics_total | counter |  |
| btrexport_build_info | gauge | version, goversion, revision |
| btrexport_config_last_reload_successful | gauge |  |
| btrexport_config_last_reload_success_timestamp_seconds | gauge |  |
`

// populated has one of each handle and nothing counted.
func populated() *Registry {
	r := New(Build{Version: "1.2.3", GoVersion: "go9", Revision: "c0ffee"})
	r.Filesystem("tank").Device(1)
	r.Watch("tank", func() State { return tank })
	r.Export("vm1")
	r.Listener("unix:///s")
	return r
}

// tank is a filesystem that was just opened.
var tank = State{UUID: "03086119", Label: "", DataProfile: "raid1", MetadataProfile: "raid1",
	Devices:    []DeviceState{{DevID: 1, Path: "/dev/sdb", Model: "ST4000", Up: true, Errors: make([]uint64, 5)}},
	Caches:     []CacheState{{Kind: "tree"}, {Kind: "extent"}},
	Decompress: []DecompressState{{Algorithm: "zlib"}, {Algorithm: "lzo"}, {Algorithm: "zstd"}}}

// family is a metric as it is gathered.
type family struct {
	kind, help string
	samples    []sample
}

type sample struct {
	labels []string // NAME=VALUE, sorted by name
	value  float64  // a histogram's is its count
	bounds []float64
	native bool
	schema int32
}

func gather(t *testing.T, r *Registry) map[string]family {
	t.Helper()
	gathered, err := r.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	families := make(map[string]family, len(gathered))
	for _, g := range gathered {
		f := family{kind: strings.ToLower(g.GetType().String()), help: g.GetHelp()}
		for _, m := range g.Metric {
			h := m.GetHistogram()
			s := sample{
				value:  m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(h.GetSampleCount()),
				native: h != nil && h.Schema != nil, schema: h.GetSchema(),
			}
			for _, l := range m.Label {
				s.labels = append(s.labels, l.GetName()+"="+l.GetValue())
			}
			for _, b := range h.GetBucket() {
				s.bounds = append(s.bounds, b.GetUpperBound())
			}
			f.samples = append(f.samples, s)
		}
		families[g.GetName()] = f
	}
	return families
}

// series gives the value of every series of ours.
func series(t *testing.T, r *Registry) map[string]float64 {
	t.Helper()
	all := make(map[string]float64)
	for name, f := range gather(t, r) {
		ours, ok := strings.CutPrefix(name, "btrexport_")
		if !ok {
			continue
		}
		for _, s := range f.samples {
			all[ours+"{"+strings.Join(s.labels, ",")+"}"] = s.value
		}
	}
	return all
}

func TestPromisedNamesTypesAndLabels(t *testing.T) {
	families := gather(t, populated())
	want := map[string]string{}
	for line := range strings.SplitSeq(strings.TrimSpace(promised), "\n") {
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i, c := range cells {
			cells[i] = strings.TrimSpace(c)
		}
		labels := strings.Split(cells[2], ", ")
		slices.Sort(labels)
		want[cells[0]] = cells[1] + " " + strings.Join(labels, ",")
	}
	got := map[string]string{}
	for name, f := range families {
		if !strings.HasPrefix(name, "btrexport_") {
			continue
		}
		if len(f.help) < 10 {
			t.Errorf("%s: help is %q", name, f.help)
		}
		for _, s := range f.samples {
			var labels []string
			for _, l := range s.labels {
				label, _, _ := strings.Cut(l, "=")
				labels = append(labels, label)
			}
			got[name] = f.kind + " " + strings.Join(labels, ",")
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-promised +served):\n%s", d)
	}
	for _, other := range []string{"go_goroutines", "process_start_time_seconds", "process_open_fds"} {
		if _, served := families[other]; !served {
			t.Errorf("%s is not served", other)
		}
	}
}

func TestLint(t *testing.T) {
	problems, err := testutil.GatherAndLint(populated().reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestPromtool(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is not installed")
	}
	check := exec.Command(promtool, "check", "metrics")
	check.Stdin = strings.NewReader(scrape(t, populated().Handler(), ""))
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestSeriesAreBornAtZero lists every label combination of a fresh registry.
func TestSeriesAreBornAtZero(t *testing.T) {
	const dev = "devid=1,filesystem=tank"
	want := map[string]float64{
		"build_info{goversion=go9,revision=c0ffee,version=1.2.3}": 1,
		"panics_total{}":                       0,
		"nbd_inflight_requests{export=vm1}":    0,
		"filesystem_degraded{filesystem=tank}": 0,
		"filesystem_info{data_profile=raid1,filesystem=tank,label=,metadata_profile=raid1,uuid=03086119}": 1,
		"device_info{" + dev + ",model=ST4000,path=/dev/sdb}":                                             1,
		"device_up{" + dev + "}":                                1,
		"config_last_reload_successful{}":                       0,
		"config_last_reload_success_timestamp_seconds{}":        0,
		"device_reads_total{" + dev + "}":                       0,
		"device_submissions_total{" + dev + "}":                 0,
		"device_read_bytes_total{" + dev + "}":                  0,
		"device_read_errors_total{" + dev + "}":                 0,
		"device_read_duration_seconds{" + dev + "}":             0,
		"device_queue_depth{" + dev + "}":                       0,
		"checksum_failures_total{" + dev + ",kind=data}":        0,
		"checksum_failures_total{" + dev + ",kind=metadata}":    0,
		"read_retries_total{" + dev + ",reason=io}":             0,
		"read_retries_total{" + dev + ",reason=checksum}":       0,
		"read_retries_total{" + dev + ",reason=slow}":           0,
		"reads_repaired_total{filesystem=tank,source=mirror}":   0,
		"reads_repaired_total{filesystem=tank,source=parity}":   0,
		"reads_lost_total{filesystem=tank}":                     0,
		"reads_unverified_total{filesystem=tank}":               0,
		"nbd_read_bytes_total{export=vm1}":                      0,
		"nbd_request_duration_seconds{command=read,export=vm1}": 0,
		"nbd_readahead_bytes_total{export=vm1}":                 0,
		"nbd_readahead_used_bytes_total{export=vm1}":            0,
		"nbd_connections{listener=unix:///s}":                   0,

		"nbd_connections_refused_total{listener=unix:///s,reason=connections}": 0,
		"nbd_connections_refused_total{listener=unix:///s,reason=address}":     0,
		"nbd_connections_refused_total{listener=unix:///s,reason=handshakes}":  0,
		"nbd_connections_refused_total{listener=unix:///s,reason=timeout}":     0,
	}
	for _, kind := range []string{"write", "read", "flush", "corruption", "generation"} {
		want["device_recorded_errors{"+dev+",kind="+kind+"}"] = 0
	}
	for _, kind := range []string{"tree", "extent"} {
		for _, name := range []string{"hits_total", "misses_total", "evictions_total", "bytes"} {
			want["cache_"+name+"{filesystem=tank,kind="+kind+"}"] = 0
		}
	}
	for _, algorithm := range []string{"zlib", "lzo", "zstd"} {
		want["decompress_seconds_total{algorithm="+algorithm+",filesystem=tank}"] = 0
	}
	for _, result := range []string{"ok", "aborted", "lost", "refused", "timeout", "error"} {
		want["nbd_handshakes_total{result="+result+"}"] = 0
	}
	for _, command := range []string{"read", "write", "disc", "flush", "trim", "cache", "write_zeroes", "block_status", "other"} {
		for _, result := range []string{"ok", "error"} {
			want["nbd_requests_total{command="+command+",export=vm1,result="+result+"}"] = 0
		}
	}
	if d := cmp.Diff(want, series(t, populated())); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// TestCounting calls each method once and looks for exactly what moved.
func TestCounting(t *testing.T) {
	boom := errors.New("boom")
	for _, tc := range []struct {
		name string
		call func(*Filesystem, *Export, *Listener)
		want map[string]float64
	}{
		{"read", func(f *Filesystem, _ *Export, _ *Listener) { f.Device(1).ReadDone(4096, time.Millisecond, nil) },
			map[string]float64{"device_reads_total{D}": 1, "device_read_bytes_total{D}": 4096, "device_read_duration_seconds{D}": 1}},
		{"read failed", func(f *Filesystem, _ *Export, _ *Listener) { f.Device(1).ReadDone(0, time.Millisecond, boom) },
			map[string]float64{"device_reads_total{D}": 1, "device_read_errors_total{D}": 1, "device_read_duration_seconds{D}": 1}},
		{"read with a negative count", func(f *Filesystem, _ *Export, _ *Listener) { f.Device(1).ReadDone(-1, 0, boom) },
			map[string]float64{"device_reads_total{D}": 1, "device_read_errors_total{D}": 1, "device_read_duration_seconds{D}": 1}},
		{"submitted", func(f *Filesystem, _ *Export, _ *Listener) { f.Device(1).Submitted(32) },
			map[string]float64{"device_submissions_total{D}": 1}},
		{"in flight", func(f *Filesystem, _ *Export, _ *Listener) { f.Device(1).InFlight(3); f.Device(1).InFlight(-1) },
			map[string]float64{"device_queue_depth{D}": 2}},
		{"data checksum", func(f *Filesystem, _ *Export, _ *Listener) { f.ChecksumFailed(1, false) },
			map[string]float64{"checksum_failures_total{D,kind=data}": 1}},
		{"metadata checksum", func(f *Filesystem, _ *Export, _ *Listener) { f.ChecksumFailed(1, true) },
			map[string]float64{"checksum_failures_total{D,kind=metadata}": 1}},
		{"retry after checksum", func(f *Filesystem, _ *Export, _ *Listener) { f.Retried(1, "checksum") },
			map[string]float64{"read_retries_total{D,reason=checksum}": 1}},
		{"retry after error", func(f *Filesystem, _ *Export, _ *Listener) { f.Retried(1, "io"); f.Retried(1, "else") },
			map[string]float64{"read_retries_total{D,reason=io}": 2}},
		{"retry after waiting", func(f *Filesystem, _ *Export, _ *Listener) { f.Retried(1, "slow") },
			map[string]float64{"read_retries_total{D,reason=slow}": 1}},
		{"repaired from a mirror", func(f *Filesystem, _ *Export, _ *Listener) { f.Repaired("mirror"); f.Repaired("else") },
			map[string]float64{"reads_repaired_total{filesystem=tank,source=mirror}": 2}},
		{"repaired from parity", func(f *Filesystem, _ *Export, _ *Listener) { f.Repaired("parity") },
			map[string]float64{"reads_repaired_total{filesystem=tank,source=parity}": 1}},
		{"lost", func(f *Filesystem, _ *Export, _ *Listener) { f.Lost(3); f.Lost(0); f.Lost(-1) },
			map[string]float64{"reads_lost_total{filesystem=tank}": 3}},
		{"unverified", func(f *Filesystem, _ *Export, _ *Listener) { f.Unverified(3); f.Unverified(0) },
			map[string]float64{"reads_unverified_total{filesystem=tank}": 3}},
		{"request read", func(_ *Filesystem, e *Export, _ *Listener) { e.RequestDone("read", true, 512, time.Second) },
			map[string]float64{"nbd_requests_total{command=read,E,result=ok}": 1, "nbd_request_duration_seconds{command=read,E}": 1, "nbd_read_bytes_total{E}": 512}},
		{"request read failed", func(_ *Filesystem, e *Export, _ *Listener) { e.RequestDone("read", false, 512, time.Second) },
			map[string]float64{"nbd_requests_total{command=read,E,result=error}": 1, "nbd_request_duration_seconds{command=read,E}": 1}},
		{"request cache", func(_ *Filesystem, e *Export, _ *Listener) { e.RequestDone("cache", true, 512, time.Second) },
			map[string]float64{"nbd_requests_total{command=cache,E,result=ok}": 1, "nbd_request_duration_seconds{command=cache,E}": 1}},
		{"request unknown", func(_ *Filesystem, e *Export, _ *Listener) { e.RequestDone("77", false, 0, time.Second) },
			map[string]float64{"nbd_requests_total{command=other,E,result=error}": 1, "nbd_request_duration_seconds{command=other,E}": 1}},
		{"read ahead", func(_ *Filesystem, e *Export, _ *Listener) { e.ReadAhead(4096, 512); e.ReadAhead(0, -1) },
			map[string]float64{"nbd_readahead_bytes_total{E}": 4096, "nbd_readahead_used_bytes_total{E}": 512}},
		{"connections", func(_ *Filesystem, _ *Export, l *Listener) { l.Connections(2); l.Connections(-1) },
			map[string]float64{"nbd_connections{listener=unix:///s}": 1}},
		{"refused", func(_ *Filesystem, _ *Export, l *Listener) {
			l.Refused("address")
			l.Refused("timeout")
			l.Refused("else")
		},
			map[string]float64{"nbd_connections_refused_total{listener=unix:///s,reason=address}": 1,
				"nbd_connections_refused_total{listener=unix:///s,reason=timeout}":     1,
				"nbd_connections_refused_total{listener=unix:///s,reason=connections}": 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := populated()
			tc.call(r.Filesystem("tank"), r.Export("vm1"), r.Listener("unix:///s"))
			want := series(t, populated())
			for name, v := range tc.want {
				name = strings.NewReplacer("{D", "{devid=1,filesystem=tank", "E", "export=vm1").Replace(name)
				if _, known := want[name]; !known && !strings.Contains(name, "duration") { // made at their first use
					t.Fatalf("the case names %s, which is no series", name)
				}
				want[name] = v
			}
			if d := cmp.Diff(want, series(t, r)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestRemove(t *testing.T) {
	r := populated()
	before := series(t, r)
	old := r.Export("vm2")
	r.Filesystem("pool").Device(2)
	r.Watch("pool", func() State { return tank })
	r.RemoveExport("vm2")
	r.RemoveFilesystem("pool")
	old.RequestDone("read", true, 1, time.Second)
	old.RequestDone("cache", true, 0, time.Second) // for the first time
	if d := cmp.Diff(before, series(t, r)); d != "" {
		t.Errorf("after adding and removing others (-want +got):\n%s", d)
	}
	r.RemoveExport("vm1")
	r.RemoveFilesystem("tank")
	r.RemoveListener("unix:///s")
	want := []string{"build_info{goversion=go9,revision=c0ffee,version=1.2.3}", "config_last_reload_success_timestamp_seconds{}", "config_last_reload_successful{}",
		"nbd_handshakes_total{result=aborted}", "nbd_handshakes_total{result=error}", "nbd_handshakes_total{result=lost}", "nbd_handshakes_total{result=ok}",
		"nbd_handshakes_total{result=refused}", "nbd_handshakes_total{result=timeout}", "panics_total{}"}
	if got := slices.Sorted(maps.Keys(series(t, r))); !slices.Equal(got, want) {
		t.Errorf("after removing all: %v, want %v", got, want)
	}
}

func TestBuckets(t *testing.T) {
	r := populated()
	r.Filesystem("tank").Device(1).ReadDone(1, 3*time.Second, nil)
	for _, name := range []string{"btrexport_device_read_duration_seconds", "btrexport_nbd_request_duration_seconds"} {
		s := gather(t, r)[name].samples[0]
		if bounds := s.bounds; len(bounds) != 17 || bounds[0] != 50e-6 || bounds[1] != 100e-6 || bounds[15] != 50e-6*(1<<15) || bounds[16] != 10 {
			t.Errorf("%s: buckets %v", name, bounds)
		}
		if !s.native || s.schema != 3 { // 2^(2^-3) = 1.09 is the widest growth that 1.1 allows
			t.Errorf("%s: native %v, schema %d, want 3", name, s.native, s.schema)
		}
	}
}

// TestDevicesAreBounded forges a filesystem that names a devid per call.
func TestDevicesAreBounded(t *testing.T) {
	r := New(Build{})
	f := r.Filesystem("forged")
	for devid := range uint64(maxDevices + 50) {
		f.ChecksumFailed(devid, true)
	}
	if got := testutil.CollectAndCount(r.deviceReads); got != maxDevices+1 {
		t.Errorf("%d devices have series, want %d and one for the others", got, maxDevices)
	}
	if got := testutil.ToFloat64(r.checksumFailures.WithLabelValues("forged", "other", "metadata")); got != 50 {
		t.Errorf("the others count %v failures, want 50", got)
	}
	if first, again := f.Device(7), f.Device(7); first != again {
		t.Error("two calls give two handles of a device")
	}
}

func TestHotMethodsDoNotAllocate(t *testing.T) {
	r := populated()
	f, e, l := r.Filesystem("tank"), r.Export("vm1"), r.Listener("unix:///s")
	d := f.Device(1)
	boom := errors.New("boom")
	for name, call := range map[string]func(){
		"ReadDone":       func() { d.ReadDone(4096, 70*time.Microsecond, nil) },
		"ReadDone error": func() { d.ReadDone(0, 70*time.Microsecond, boom) },
		"Submitted":      func() { d.Submitted(32) },
		"InFlight":       func() { d.InFlight(1) },
		"Device":         func() { f.Device(1) },
		"ChecksumFailed": func() { f.ChecksumFailed(1, false) },
		"Retried":        func() { f.Retried(1, "io") },
		"Repaired":       func() { f.Repaired("mirror") },
		"Lost":           func() { f.Lost(1) },
		"ReadAhead":      func() { e.ReadAhead(4096, 4096) },
		"RequestDone":    func() { e.RequestDone("read", true, 4096, 70*time.Microsecond) },
		"other request":  func() { e.RequestDone("77", false, 0, 70*time.Microsecond) },
		"Connections":    func() { l.Connections(1) },
	} {
		call() // the native histogram makes a bucket when it is first hit
		if got := testing.AllocsPerRun(200, call); got != 0 {
			t.Errorf("%s: %v allocations, want 0", name, got)
		}
	}
}

// TestConcurrentUse counts, adds, removes and scrapes at the same time; the sums must be exact.
func TestConcurrentUse(t *testing.T) {
	const workers, rounds = 8, 300
	r := New(Build{})
	f := r.Filesystem("tank")
	h := r.Handler()
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			e, extra := r.Export("vm1"), fmt.Sprintf("extra%d", w)
			for i := range rounds {
				f.Device(uint64(i%5)).ReadDone(1, time.Microsecond, nil)
				f.Retried(uint64(i%7), "io")
				f.Lost(1)
				e.RequestDone("read", true, 2, time.Microsecond)
				if i%100 == 0 {
					r.Export(extra).RequestDone("flush", true, 0, 0)
					scrape(t, h, "")
					r.RemoveExport(extra)
					r.SetReady(i%200 == 0, "changing")
				}
			}
		})
	}
	wg.Wait()
	all := series(t, r)
	sum := func(prefix string) (total float64) {
		for name, v := range all {
			if strings.HasPrefix(name, prefix) {
				total += v
			}
		}
		return total
	}
	for prefix, want := range map[string]float64{
		"device_reads_total": workers * rounds, "device_read_bytes_total": workers * rounds, "read_retries_total": workers * rounds,
		"reads_lost_total": workers * rounds, "nbd_read_bytes_total": 2 * workers * rounds, "nbd_requests_total": workers * rounds,
	} {
		if got := sum(prefix); got != want {
			t.Errorf("%s sums to %v, want %v", prefix, got, want)
		}
	}
}

// TestHandlesSatisfyTheirConsumers spells the interfaces that devio, fsread and export declare.
func TestHandlesSatisfyTheirConsumers(t *testing.T) {
	r := New(Build{})
	var _ interface {
		ReadDone(bytes int, took time.Duration, err error)
		InFlight(delta int)
	} = r.Filesystem("f").Device(1)
	var _ interface {
		ChecksumFailed(devid uint64, metadata bool)
		Retried(devid uint64, reason string)
		Repaired(source string)
		Lost(blocks int)
	} = r.Filesystem("f")
	var _ interface {
		RequestDone(command string, ok bool, bytes int, took time.Duration)
	} = r.Export("e")
	var _ interface {
		Connections(delta int)
		Refused(reason string)
	} = r.Listener("l")
}

func BenchmarkRequestDone(b *testing.B) {
	e := New(Build{}).Export("vm1")
	b.ReportAllocs()
	for b.Loop() {
		e.RequestDone("read", true, 4096, 70*time.Microsecond)
	}
}

func BenchmarkReadDone(b *testing.B) {
	d := New(Build{}).Filesystem("f").Device(1)
	b.ReportAllocs()
	for b.Loop() {
		d.ReadDone(4096, 70*time.Microsecond, nil)
	}
}

func TestReloaded(t *testing.T) {
	r := New(Build{})
	r.Reloaded(true)
	before := series(t, r)["config_last_reload_success_timestamp_seconds{}"]
	if ok := series(t, r)["config_last_reload_successful{}"]; ok != 1 || before == 0 {
		t.Errorf("after a success: %v at %v", ok, before)
	}
	r.Reloaded(false)
	if ok, at := series(t, r)["config_last_reload_successful{}"], series(t, r)["config_last_reload_success_timestamp_seconds{}"]; ok != 0 || at != before {
		t.Errorf("after a failure: %v at %v, want 0 at %v", ok, at, before)
	}
}
