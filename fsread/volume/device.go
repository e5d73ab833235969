package volume

import (
	"sync/atomic"
	"time"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// Device is what the volume reads from: *devio.Queue, or a faulty one in tests.
type Device interface {
	Submit(batch []*devio.Read)
	Size() uint64
	Align() int
	Name() string
	Observe(devio.Stats)
	Close() error
}

// Stats is told of copies that failed. Methods must not block. Blocks are counted in units:
// sectors of data, nodes of metadata.
type Stats interface {
	// ChecksumFailed: a unit that this device delivered was refused by its check.
	ChecksumFailed(devid uint64, metadata bool)
	// Retried: a unit is read from another copy, because this device's failed by reason
	// "io", "checksum" or "slow".
	Retried(devid uint64, reason string)
	// Repaired: a unit was served after a retry, from source "mirror", or was rebuilt from "parity".
	Repaired(source string)
	// Lost: units that no copy could serve.
	Lost(units int)
	// Unverified: units that were served though nothing vouches for them, since they have no checksum. A
	// compressed extent counts as one.
	Unverified(units int)
}

// noStats serves where the caller asked for none.
type noStats struct{}

func (noStats) ChecksumFailed(uint64, bool) {}
func (noStats) Retried(uint64, string)      {}
func (noStats) Repaired(string)             {}
func (noStats) Lost(int)                    {}
func (noStats) Unverified(int)              {}

// member is one device of the filesystem, as the chunk map points at it.
type member struct {
	id    devio.DevID // immutable, as all but load
	uuid  ondisk.UUID
	dev   Device // nil: missing
	super *ondisk.Superblock
	index int  // place in Volume.members: a batch keeps one list of reads for each
	seed  bool // it belongs to a seed: a filesystem that this one has sprouted from
	stale bool // its superblock is not of the generation that it must be: it missed writes, or a seed was written to

	load     atomic.Int64  // bytes planned for this device and not yet delivered
	failures atomic.Int32  // reads in a row that failed, or were late
	late     atomic.Int32  // reads under way that were given up
	probe    atomic.Int64  // when a doubtful device may be asked again, Unix nanoseconds
	ends     atomic.Uint64 // reads that it has ended, well or not

	seen   uint64    // of watch.look, as seenAt; what ends was when the watch last looked
	seenAt time.Time // when the watch last saw ends go on
}

const (
	// doubtAfter is how many reads in a row fail until a device is doubted: asked last.
	doubtAfter = 8
	// probeEvery is how often a doubtful device is asked all the same.
	probeEvery = 30 * time.Second
)

// delivered notes the end of a read that the device made good, or not.
func (m *member) delivered(good bool) {
	m.ends.Add(1)
	switch {
	case !good:
		m.failed(1)
	case m.failures.Load() > 0:
		m.failures.Store(0)
	}
}

// failed counts failures; the one that makes the device doubtful sets the time of its next probe.
func (m *member) failed(n int32) {
	if f := m.failures.Add(n); f >= doubtAfter && f-n < doubtAfter {
		m.probe.Store(time.Now().Add(probeEvery).UnixNano())
	}
}

// doubtful says whether the device failed so often that others are to be asked first.
func (m *member) doubtful() bool { return m.failures.Load() >= doubtAfter }

// avoid is doubtful for who is about to ask: from time to time one read may find out whether the device is
// well again, if none is still waiting for it.
func (m *member) avoid() bool {
	if !m.doubtful() {
		return false
	}
	now, next := time.Now().UnixNano(), m.probe.Load()
	return m.late.Load() > 0 || now < next || !m.probe.CompareAndSwap(next, now+int64(probeEvery))
}

func (m *member) name() string {
	if m.dev == nil {
		return "missing"
	}
	return m.dev.Name()
}

// usable says whether a copy on m may serve at all, and why not. Without a check to judge
// it by, a stale copy could be wrong unseen, so it serves only who asked for it.
func (m *member) usable(verified, degraded bool) error {
	switch {
	case m == nil || m.dev == nil:
		return ErrMissing
	case m.stale && !verified && !degraded:
		return ErrStale
	}
	return nil
}
