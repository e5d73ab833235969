package volume

import (
	"sync/atomic"

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
	// "io" or "checksum".
	Retried(devid uint64, reason string)
	// Repaired: a unit was served after a retry, from source "mirror".
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

	load atomic.Int64 // bytes planned for this device and not yet delivered
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
