package metrics

import (
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// State is what a filesystem is at the moment of a scrape. Bytes that a label can't hold are replaced.
type State struct {
	UUID, Label                  string
	DataProfile, MetadataProfile string // raid1, or single,raid1 where there are chunks of both
	Degraded                     bool   // a device is missing
	Devices                      []DeviceState
	Caches                       []CacheState
	Decompress                   []DecompressState
}

// DeviceState is one device of a filesystem. Of devices with the same devid the first counts.
type DeviceState struct {
	DevID       uint64
	Path, Model string // "": missing; not known
	Up          bool   // there, and it does not fail all that it is asked
	// Errors that the kernel noted on the disk, in the order of errorKinds; nil: they can't be read.
	Errors []uint64
}

// CacheState is one of a filesystem's caches.
type CacheState struct {
	Kind                    string // tree, extent
	Hits, Misses, Evictions uint64
	Bytes                   int64
}

// DecompressState is the time that one kind of decoder has worked.
type DecompressState struct {
	Algorithm string // zlib, lzo, zstd
	Seconds   float64
}

// errorKinds are the values of the label kind of the errors that the kernel notes.
var errorKinds = [...]string{"write", "read", "flush", "corruption", "generation"}

// states asks for the state of each filesystem when it is scraped. What it tells is gone with the filesystem, and
// begins anew with one that is opened anew.
type states struct {
	r *Registry // immutable

	filesystem, device, up, degraded, recorded *prometheus.Desc
	hits, misses, evictions, bytes, decompress *prometheus.Desc
	inFlight                                   *prometheus.Desc
}

func newStates(r *Registry) *states {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &states{
		r: r,
		filesystem: desc("btrexport_filesystem_info", "Always 1; the labels say which filesystem stands behind a name.",
			"filesystem", "uuid", "label", "data_profile", "metadata_profile"),
		degraded: desc("btrexport_filesystem_degraded", "1 if the filesystem is served without one of its devices.", "filesystem"),
		device: desc("btrexport_device_info", "Always 1; the labels say what stands behind a devid, with an empty path if it is missing.",
			"filesystem", "devid", "path", "model"),
		up: desc("btrexport_device_up", "1 if the device is there and did not fail its last reads; else other copies are read first.",
			"filesystem", "devid"),
		recorded: desc("btrexport_device_recorded_errors", "Errors that the kernel has written down of a device in the filesystem, as of its opening (btrfs device stats).",
			"filesystem", "devid", "kind"),
		hits: desc("btrexport_cache_hits_total", "Tree blocks and inflated extents that were found in memory.",
			"filesystem", "kind"),
		misses:    desc("btrexport_cache_misses_total", "Tree blocks and inflated extents that had to be read.", "filesystem", "kind"),
		evictions: desc("btrexport_cache_evictions_total", "Tree blocks and inflated extents that gave way to others.", "filesystem", "kind"),
		bytes:     desc("btrexport_cache_bytes", "Memory that tree blocks and inflated extents take.", "filesystem", "kind"),
		decompress: desc("btrexport_decompress_seconds_total", "Time that decoders have worked, on all cores together.",
			"filesystem", "algorithm"),
		inFlight: desc("btrexport_nbd_inflight_requests", "Requests that clients wait for.", "export"),
	}
}

// Describe implements prometheus.Collector.
func (s *states) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{s.filesystem, s.degraded, s.device, s.up, s.recorded, s.hits, s.misses, s.evictions, s.bytes, s.decompress, s.inFlight} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (s *states) Collect(out chan<- prometheus.Metric) {
	s.r.mu.Lock()
	type source struct {
		name string
		ask  func() State
	}
	var sources []source
	for name, ask := range s.r.states {
		sources = append(sources, source{name, ask})
	}
	var exports []string
	for name := range s.r.exports {
		exports = append(exports, name)
	}
	requests := s.r.inFlight
	s.r.mu.Unlock()
	for _, f := range sources {
		state := f.ask()
		s.collect(out, valid(f.name), &state)
	}
	var waiting map[string]int
	if requests != nil {
		waiting = requests()
	}
	for _, name := range exports {
		out <- prometheus.MustNewConstMetric(s.inFlight, prometheus.GaugeValue, float64(waiting[name]), name)
	}
}

func (s *states) collect(out chan<- prometheus.Metric, name string, f *State) {
	set := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, append([]string{name}, labels...)...)
	}
	count := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, append([]string{name}, labels...)...)
	}
	set(s.filesystem, 1, valid(f.UUID), valid(f.Label), valid(f.DataProfile), valid(f.MetadataProfile))
	set(s.degraded, number(f.Degraded))
	for i, d := range f.Devices[:min(len(f.Devices), maxDevices)] {
		if slices.ContainsFunc(f.Devices[:i], func(o DeviceState) bool { return o.DevID == d.DevID }) {
			continue
		}
		devid := strconv.FormatUint(d.DevID, 10)
		set(s.device, 1, devid, valid(d.Path), valid(d.Model))
		set(s.up, number(d.Up), devid)
		for k, n := range d.Errors[:min(len(d.Errors), len(errorKinds))] {
			set(s.recorded, float64(n), devid, errorKinds[k])
		}
	}
	for _, c := range f.Caches {
		count(s.hits, float64(c.Hits), c.Kind)
		count(s.misses, float64(c.Misses), c.Kind)
		count(s.evictions, float64(c.Evictions), c.Kind)
		set(s.bytes, float64(c.Bytes), c.Kind)
	}
	for _, d := range f.Decompress {
		count(s.decompress, d.Seconds, d.Algorithm)
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// valid makes a label of what stands on a disk or in a path.
func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// Watch has every scrape ask for the state of a filesystem, until RemoveFilesystem or another Watch of its name. ask may
// be called at any time, by several at once, and must not wait for a disk.
func (r *Registry) Watch(filesystem string, ask func() State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.states[filesystem] = ask
}

// WatchRequests has every scrape ask how many requests of an export, by its name, are not yet answered.
func (r *Registry) WatchRequests(ask func() map[string]int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inFlight = ask
}

// handshakes are the values of the label result of handshakes; what is none of them counts as the last.
var handshakes = [...]string{"ok", "aborted", "lost", "refused", "timeout", "error"}

// HandshakeDone counts a handshake by its end: ok, aborted, lost, refused, timeout or error.
func (r *Registry) HandshakeDone(result string) {
	i := slices.Index(handshakes[:], result)
	if i < 0 {
		i = len(handshakes) - 1
	}
	r.handshakes.WithLabelValues(handshakes[i]).Inc()
}

// Panicked counts a connection that a mistake in this program ended.
func (r *Registry) Panicked() { r.panics.Inc() }
