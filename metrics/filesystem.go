package metrics

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// maxDevices bounds the devids of one filesystem that get series of their own. A devid stands on the disk:
// a forged chunk tree must not fill the memory of the server and of Prometheus. Those beyond it share the
// series of the devid "other".
const maxDevices = 1024

// Filesystem counts what happens to the blocks of one filesystem.
type Filesystem struct {
	r    *Registry // immutable
	name string    // immutable

	mirror, parity prometheus.Counter // reads repaired
	lost           prometheus.Counter
	unverified     prometheus.Counter

	mu      sync.RWMutex
	devices map[uint64]*Device // guarded by mu
	other   *Device            // guarded by mu; nil until a devid beyond maxDevices is seen
}

// Filesystem makes the series of a filesystem. Its devices follow as Device names them. Handles of the same
// name share their series.
func (r *Registry) Filesystem(name string) *Filesystem {
	return &Filesystem{
		r:          r,
		name:       name,
		mirror:     r.readsRepaired.WithLabelValues(name, "mirror"),
		parity:     r.readsRepaired.WithLabelValues(name, "parity"),
		lost:       r.readsLost.WithLabelValues(name),
		unverified: r.readsUnverified.WithLabelValues(name),
		devices:    make(map[uint64]*Device),
	}
}

// Device gives the handle of a device, making its series if it is new. Call it for every device of the
// filesystem when that opens, missing ones too, so that their counters begin at zero.
func (f *Filesystem) Device(devid uint64) *Device {
	f.mu.RLock()
	d := f.devices[devid]
	f.mu.RUnlock()
	if d != nil {
		return d
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if d := f.devices[devid]; d != nil {
		return d
	}
	if len(f.devices) >= maxDevices {
		if f.other == nil {
			f.other = f.newDevice("other")
		}
		return f.other
	}
	d = f.newDevice(strconv.FormatUint(devid, 10))
	f.devices[devid] = d
	return d
}

func (f *Filesystem) newDevice(devid string) *Device {
	return &Device{
		reads:         f.r.deviceReads.WithLabelValues(f.name, devid),
		submissions:   f.r.submissions.WithLabelValues(f.name, devid),
		bytes:         f.r.deviceReadBytes.WithLabelValues(f.name, devid),
		errors:        f.r.deviceReadErrors.WithLabelValues(f.name, devid),
		time:          f.r.deviceReadTime.WithLabelValues(f.name, devid),
		queue:         f.r.deviceQueue.WithLabelValues(f.name, devid),
		badData:       f.r.checksumFailures.WithLabelValues(f.name, devid, "data"),
		badMetadata:   f.r.checksumFailures.WithLabelValues(f.name, devid, "metadata"),
		retryIO:       f.r.readRetries.WithLabelValues(f.name, devid, "io"),
		retryChecksum: f.r.readRetries.WithLabelValues(f.name, devid, "checksum"),
		retrySlow:     f.r.readRetries.WithLabelValues(f.name, devid, "slow"),
	}
}

// ChecksumFailed counts one block of devid that did not match its checksum.
func (f *Filesystem) ChecksumFailed(devid uint64, metadata bool) {
	d := f.Device(devid)
	if metadata {
		d.badMetadata.Inc()
	} else {
		d.badData.Inc()
	}
}

// Retried counts one block that devid failed and that is asked of another copy. The reason is "checksum",
// "slow" or "io"; every other word counts as "io".
func (f *Filesystem) Retried(devid uint64, reason string) {
	d := f.Device(devid)
	switch reason {
	case "checksum":
		d.retryChecksum.Inc()
	case "slow":
		d.retrySlow.Inc()
	default:
		d.retryIO.Inc()
	}
}

// Repaired counts one block that was served after a retry. The source is "parity" or "mirror"; every other
// word counts as "mirror".
func (f *Filesystem) Repaired(source string) {
	if source == "parity" {
		f.parity.Inc()
	} else {
		f.mirror.Inc()
	}
}

// Lost counts blocks that no copy could serve.
func (f *Filesystem) Lost(blocks int) { addCount(f.lost, blocks) }

// Unverified counts blocks that were served without a checksum to hold them against.
func (f *Filesystem) Unverified(blocks int) { addCount(f.unverified, blocks) }

// Device counts the reads of one device.
type Device struct {
	reads, bytes, errors   prometheus.Counter
	submissions            prometheus.Counter
	time                   prometheus.Observer
	queue                  prometheus.Gauge
	badData, badMetadata   prometheus.Counter
	retryIO, retryChecksum prometheus.Counter
	retrySlow              prometheus.Counter
}

// ReadDone counts one completed read: the bytes that it delivered, how long it took, and its error, if any.
// A short read is an error of who calls.
func (d *Device) ReadDone(bytes int, took time.Duration, err error) {
	d.reads.Inc()
	addCount(d.bytes, bytes)
	if err != nil {
		d.errors.Inc()
	}
	d.time.Observe(took.Seconds())
}

// Submitted counts one system call that sent the device so many reads; how many they are ReadDone counts.
func (d *Device) Submitted(int) { d.submissions.Inc() }

// InFlight tells that delta reads more (or less, if negative) are at the device.
func (d *Device) InFlight(delta int) { d.queue.Add(float64(delta)) }
