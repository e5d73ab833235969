package metrics

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Build is what btrexport_build_info says of the program.
type Build struct {
	Version   string // of btrexport, for example 0.3.0
	GoVersion string // of the compiler, as runtime.Version has it
	Revision  string // of the source; "" where the build does not know it
}

// Registry holds every metric of the process.
type Registry struct {
	build Build // immutable
	reg   *prometheus.Registry
	ready atomic.Pointer[readiness] // nil: ready

	deviceReads      *prometheus.CounterVec
	submissions      *prometheus.CounterVec
	deviceReadBytes  *prometheus.CounterVec
	deviceReadErrors *prometheus.CounterVec
	deviceReadTime   *prometheus.HistogramVec
	deviceQueue      *prometheus.GaugeVec

	checksumFailures *prometheus.CounterVec
	readRetries      *prometheus.CounterVec
	readsRepaired    *prometheus.CounterVec
	readsLost        *prometheus.CounterVec
	readsUnverified  *prometheus.CounterVec

	requests    *prometheus.CounterVec
	requestTime *prometheus.HistogramVec
	readBytes   *prometheus.CounterVec
	aheadBytes  *prometheus.CounterVec
	aheadUsed   *prometheus.CounterVec
	connections *prometheus.GaugeVec
	refused     *prometheus.CounterVec

	mu       sync.Mutex
	exports  map[string]*Export      // guarded by mu; those that were not removed
	states   map[string]func() State // guarded by mu; by filesystem
	inFlight func() map[string]int   // guarded by mu; nil: none

	handshakes *prometheus.CounterVec
	panics     prometheus.Counter

	reloadSuccessful prometheus.Gauge
	reloadTime       prometheus.Gauge
}

// New makes a Registry that is not ready yet, with the collectors of the process and of Go's runtime.
func New(b Build) *Registry {
	r := &Registry{
		build:   b,
		reg:     prometheus.NewRegistry(),
		exports: make(map[string]*Export),
		states:  make(map[string]func() State),

		deviceReads: counter("btrexport_device_reads_total",
			"Reads sent to a device, failed ones included.", "filesystem", "devid"),
		submissions: counter("btrexport_device_submissions_total",
			"System calls that sent a device one or several reads.", "filesystem", "devid"),
		deviceReadBytes: counter("btrexport_device_read_bytes_total",
			"Bytes that a device delivered.", "filesystem", "devid"),
		deviceReadErrors: counter("btrexport_device_read_errors_total",
			"Reads that a device failed or cut short.", "filesystem", "devid"),
		deviceReadTime: histogram("btrexport_device_read_duration_seconds",
			"Time from sending a read to a device to its completion, failed ones included.", "filesystem", "devid"),
		deviceQueue: gauge("btrexport_device_queue_depth",
			"Reads that a device has been sent and has not completed.", "filesystem", "devid"),

		checksumFailures: counter("btrexport_checksum_failures_total",
			"Blocks that a device delivered and that did not match their checksum.", "filesystem", "devid", "kind"),
		readRetries: counter("btrexport_read_retries_total",
			"Blocks that were asked of another copy because this device's failed or took too long.", "filesystem", "devid", "reason"),
		readsRepaired: counter("btrexport_reads_repaired_total",
			"Blocks that another copy served after a retry, or that were rebuilt from parity. Nothing is written to disk.", "filesystem", "source"),
		readsLost: counter("btrexport_reads_lost_total",
			"Blocks that no copy could serve.", "filesystem"),
		readsUnverified: counter("btrexport_reads_unverified_total",
			"Blocks that were served without a checksum to hold them against (files with NODATASUM).", "filesystem"),

		requests: counter("btrexport_nbd_requests_total",
			"Requests of clients, by the result that was sent.", "export", "command", "result"),
		requestTime: requestTime(),
		readBytes: counter("btrexport_nbd_read_bytes_total",
			"Bytes that successful reads of clients returned.", "export"),
		aheadBytes: counter("btrexport_nbd_readahead_bytes_total",
			"Bytes that were read before a client asked for them.", "export"),
		aheadUsed: counter("btrexport_nbd_readahead_used_bytes_total",
			"Bytes of clients' reads that had been read before they were asked for.", "export"),
		connections: gauge("btrexport_nbd_connections",
			"Connections that are open.", "listener"),
		refused: counter("btrexport_nbd_connections_refused_total",
			"Clients that a limit kept from an export: of connections, of connections of an address, of handshakes, or of a handshake's time.", "listener", "reason"),
		handshakes: counter("btrexport_nbd_handshakes_total",
			"Handshakes by their end: an export was chosen, the client left in good order or was lost, a limit refused it, its time was over, or it broke the protocol.", "result"),
		panics: prometheus.NewCounter(prometheus.CounterOpts{Name: "btrexport_panics_total",
			Help: "Connections that a mistake in this program ended: please report what the log says."}),

		reloadSuccessful: prometheus.NewGauge(prometheus.GaugeOpts{Name: "btrexport_config_last_reload_successful",
			Help: "1 if the last attempt to load the configuration succeeded, 0 if it was refused and the one before is served."}),
		reloadTime: prometheus.NewGauge(prometheus.GaugeOpts{Name: "btrexport_config_last_reload_success_timestamp_seconds",
			Help: "Unix time of the last load of a configuration that succeeded."}),
	}
	r.SetReady(false, "starting")
	info := gauge("btrexport_build_info", "Always 1; the labels say which build runs.", "version", "goversion", "revision")
	info.WithLabelValues(b.Version, b.GoVersion, b.Revision).Set(1)
	for _, result := range handshakes {
		r.handshakes.WithLabelValues(result)
	}
	r.reg.MustRegister(info,
		r.deviceReads, r.submissions, r.deviceReadBytes, r.deviceReadErrors, r.deviceReadTime, r.deviceQueue,
		r.checksumFailures, r.readRetries, r.readsRepaired, r.readsLost, r.readsUnverified,
		r.requests, r.requestTime, r.readBytes, r.aheadBytes, r.aheadUsed, r.connections, r.refused, r.handshakes, r.panics,
		r.reloadSuccessful, r.reloadTime, newStates(r),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

func requestTime() *prometheus.HistogramVec {
	return histogram("btrexport_nbd_request_duration_seconds",
		"Time from receiving a request to its complete reply.", "export", "command")
}

func counter(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

func gauge(name, help string, labels ...string) *prometheus.GaugeVec {
	return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
}

// histogram has buckets from a hit in the page cache (50 µs) to the first retry of a dying disk (1.6 s), and
// one for what is given up on (10 s). The native histogram beside them travels in protobuf scrapes only.
func histogram(name, help string, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:                            name,
		Help:                            help,
		Buckets:                         append(prometheus.ExponentialBuckets(50e-6, 2, 16), 10),
		NativeHistogramBucketFactor:     1.1,
		NativeHistogramMaxBucketNumber:  100,
		NativeHistogramMinResetDuration: time.Hour,
	}, labels)
}

// addCount adds n, if it is positive. A counter panics on a negative number, and a count that is wrong must
// never end a server that reads right.
func addCount(c prometheus.Counter, n int) {
	if n > 0 {
		c.Add(float64(n))
	}
}

// Reloaded tells how an attempt to load the configuration ended, the first one included.
func (r *Registry) Reloaded(ok bool) {
	if !ok {
		r.reloadSuccessful.Set(0)
		return
	}
	r.reloadSuccessful.Set(1)
	r.reloadTime.SetToCurrentTime()
}

// RemoveListener drops the series of an address that is listened on no more.
func (r *Registry) RemoveListener(name string) {
	r.connections.DeleteLabelValues(name)
	r.refused.DeletePartialMatch(prometheus.Labels{"listener": name})
}

// RemoveFilesystem drops every series of a filesystem that is served no more. Handles that are still in use
// count on unseen.
func (r *Registry) RemoveFilesystem(name string) {
	r.mu.Lock()
	delete(r.states, name)
	r.mu.Unlock()
	match := prometheus.Labels{"filesystem": name}
	for _, v := range []interface {
		DeletePartialMatch(prometheus.Labels) int
	}{
		r.deviceReads, r.submissions, r.deviceReadBytes, r.deviceReadErrors, r.deviceReadTime, r.deviceQueue,
		r.checksumFailures, r.readRetries, r.readsRepaired, r.readsLost, r.readsUnverified,
	} {
		v.DeletePartialMatch(match)
	}
}

// RemoveExport drops every series of an export that is served no more. Handles that are still in use count
// on unseen.
func (r *Registry) RemoveExport(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.exports, name)
	match := prometheus.Labels{"export": name}
	r.requests.DeletePartialMatch(match)
	r.requestTime.DeletePartialMatch(match)
	r.readBytes.DeletePartialMatch(match)
	r.aheadBytes.DeletePartialMatch(match)
	r.aheadUsed.DeletePartialMatch(match)
}
