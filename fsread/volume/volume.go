package volume

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// Options for a Volume; the zero value is useful.
type Options struct {
	Degraded bool  // open though devices are missing; reads without a copy fail one by one
	Stats    Stats // nil: none
	// SlowRead is how long a device may take for a read until the next copy is asked as well; 0: for ever.
	SlowRead time.Duration
	Judge    Judge // nil: none
}

// Judge knows of data sectors that nobody asked for what they must hold: by it the columns of a parity row that
// are wrong are told from those that are right.
type Judge interface {
	// Bad says whether b, whole sectors of data at logical, is refused by the checksum of one of them. Sectors
	// without a checksum are not bad. It may wait for tree blocks.
	Bad(logical ondisk.Logical, b []byte) bool
}

// Volume reads logical ranges of one filesystem. It is immutable; Submit may be called concurrently.
type Volume struct {
	super   *ondisk.Superblock
	pool    *devio.Pool
	opts    Options
	members []*member
	seeds   []ondisk.UUID // what tree blocks of seeds carry, each once
	chunks  chunkMap
	byID    map[devio.DevID]*member // of a filesystem with a stripe tree, which names devices by devid alone
	batches sync.Pool               // of *batch, sized for members
	watch   watch

	rebuilds sync.Pool // of *rebuild
}

// Bootstrap gives a Volume that maps the chunks of the superblock's array: enough to read the chunk
// tree, when the device that it lies on was given.
func (s *Set) Bootstrap(pool *devio.Pool, o Options) (*Volume, error) {
	if o.Stats == nil {
		o.Stats = noStats{}
	}
	entries, err := s.Super.SysChunks()
	if err != nil {
		return nil, err
	}
	v := &Volume{super: s.Super, pool: pool, opts: o}
	for _, f := range s.Devices {
		v.members = append(v.members, &member{id: f.Super.Dev.DevID, uuid: f.Super.Dev.UUID, dev: f.Dev, super: f.Super,
			seed: f.Seed, stale: f.Stale})
		if f.Seed {
			v.addSeed(f.Super.TreeFSID())
		}
	}
	return v.finish(entries)
}

// WithChunks gives the whole Volume from what the chunk tree holds: its DEV_ITEMs, those of seeds among
// them, and its chunks. Errors: *MissingError for devices that were not given, unless Options.Degraded;
// ErrDevices for a device of another filesystem that is no seed of this one; ondisk.ErrCorrupt for
// chunks that overlap.
func (v *Volume) WithChunks(devices []ondisk.DevItem, entries []ondisk.ChunkEntry) (*Volume, error) {
	w := &Volume{super: v.super, pool: v.pool, opts: v.opts}
	var missing []MissingDevice
	for _, d := range devices {
		m := &member{id: d.DevID, uuid: d.UUID, seed: v.foreign(d.FSID)}
		g := v.given(d)
		if g == nil {
			missing = append(missing, MissingDevice{DevItem: d, Seed: m.seed})
		} else {
			// A copy: the bootstrap volume's reads may still be counting on its own. A sprout notes the
			// generation that its seed had; with another one the kernel refuses it (read_one_dev).
			m.dev, m.super, m.stale = g.dev, g.super, g.stale || (m.seed && g.super.Generation != d.Generation)
		}
		if m.seed && g != nil {
			w.addSeed(d.FSID)
		}
		w.members = append(w.members, m)
	}
	if err := v.checkSeeds(devices); err != nil {
		return nil, err
	}
	if _, err := w.finish(entries); err != nil {
		return nil, err
	}
	if len(missing) > 0 && !v.opts.Degraded {
		return nil, w.missingError(missing)
	}
	return w, nil
}

// foreign says whether a DEV_ITEM's fsid is a seed's.
func (v *Volume) foreign(fsid ondisk.UUID) bool {
	return fsid != v.super.TreeFSID() && fsid != v.super.FSID
}

func (v *Volume) addSeed(fsid ondisk.UUID) {
	if !slices.Contains(v.seeds, fsid) {
		v.seeds = append(v.seeds, fsid)
	}
}

// SeedFSIDs gives the ids that tree blocks may carry beside the filesystem's own: those which nobody
// wrote to since they were a seed's. Only the seeds that were given count, since a seed's blocks lie on
// its own devices: the kernel neither moves one without writing it anew nor replaces such a device.
func (v *Volume) SeedFSIDs() []ondisk.UUID { return v.seeds }

// given finds the device of a DEV_ITEM. The filesystem goes into it for seeds: the devices of a copy that
// got another fsid keep their uuids.
func (v *Volume) given(d ondisk.DevItem) *member {
	for _, m := range v.members {
		if m.id == d.DevID && m.uuid == d.UUID && m.seed == v.foreign(d.FSID) && (!m.seed || m.super.Dev.FSID == d.FSID) {
			return m
		}
	}
	return nil
}

// checkSeeds refuses a device of another filesystem that the chunk tree does not name.
func (v *Volume) checkSeeds(devices []ondisk.DevItem) error {
	own := slices.IndexFunc(v.members, func(m *member) bool { return !m.seed })
	for _, m := range v.members {
		if m.seed && !slices.ContainsFunc(devices, func(d ondisk.DevItem) bool { return v.given(d) == m }) {
			return differError(v.members[own].dev, v.super, m.dev, m.super)
		}
	}
	return nil
}

func (v *Volume) finish(entries []ondisk.ChunkEntry) (*Volume, error) {
	for i, m := range v.members {
		m.index = i
	}
	v.watch.limit, v.watch.members = v.opts.SlowRead, v.members
	v.batches.New = func() any { return v.newBatch() }
	v.rebuilds.New = func() any { return new(rebuild) }
	type key struct {
		id   devio.DevID
		uuid ondisk.UUID
	}
	members := make(map[key]*member, len(v.members))
	for _, m := range v.members {
		members[key{m.id, m.uuid}] = m
	}
	var err error
	v.chunks, err = newChunkMap(entries, func(s ondisk.Stripe) *member {
		if m := members[key{s.Dev, s.DevUUID}]; m != nil {
			return m
		}
		return &member{id: s.Dev, uuid: s.DevUUID}
	})
	if v.super.Incompat&ondisk.IncompatRaidStripeTree != 0 {
		v.useStripeTree()
	}
	return v, err
}

// Missing names the devices that chunks lie on and that were not given.
func (v *Volume) Missing() []string {
	var out []string
	for _, c := range v.chunks {
		for _, m := range c.members {
			if name := fmt.Sprintf("devid %d (uuid %s)", m.id, m.uuid); m.dev == nil && !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	return out
}

// DeviceInfo describes one device of the filesystem.
type DeviceInfo struct {
	DevID      devio.DevID
	UUID       ondisk.UUID
	Name       string // as the user named it; "" when missing
	Model      string // of the disk, as its maker calls it; "" when not known
	Size       uint64 // of the device or file, bytes; 0 when missing
	Generation uint64 // of its superblock; 0 when missing
	Missing    bool
	Doubtful   bool // it failed its last reads, and other copies are asked first
	Stale      bool // it missed writes, or is a seed that was written to after the sprout
	Seed       bool // it belongs to a filesystem that this one has sprouted from
}

// Devices lists the filesystem's devices in the order of the chunk tree.
func (v *Volume) Devices() []DeviceInfo {
	out := make([]DeviceInfo, 0, len(v.members))
	for _, m := range v.members {
		d := DeviceInfo{DevID: m.id, UUID: m.uuid, Stale: m.stale, Missing: m.dev == nil, Doubtful: m.doubtful(), Seed: m.seed}
		if m.dev != nil {
			d.Name, d.Size, d.Generation = m.dev.Name(), m.dev.Size(), m.super.Generation
			if k, ok := m.dev.(interface{ Model() string }); ok {
				d.Model = k.Model()
			}
		}
		out = append(out, d)
	}
	return out
}

// Chunks calls f for every chunk, by logical address.
func (v *Volume) Chunks(f func(start ondisk.Logical, c *ondisk.Chunk)) {
	for _, c := range v.chunks {
		f(c.start, &c.Chunk)
	}
}

// CountLost counts units that were read and can't be used all the same.
func (v *Volume) CountLost(units int) { v.opts.Stats.Lost(units) }

// Super is the superblock that the filesystem was opened by.
func (v *Volume) Super() *ondisk.Superblock { return v.super }

// StartUnit reads one unit of n bytes, checked by check, and calls done with bytes that are its
// caller's to keep, or with a *Lost. done runs once, perhaps before StartUnit returns.
func (v *Volume) StartUnit(logical ondisk.Logical, n int, check Verifier, done func([]byte, error)) {
	u := &unitRead{buf: v.pool.Get(n), done: done}
	u.req = Request{Logical: logical, Buf: u.buf.B, Home: u.buf, Unit: n, Verifier: check, Metadata: true, Done: u}
	v.Submit([]*Request{&u.req})
}

// unitRead copies its unit out of the lent buffer, which goes back to the pool.
type unitRead struct {
	req  Request
	buf  *devio.Buffer
	done func([]byte, error)
}

func (u *unitRead) RequestDone(r *Request) {
	var block []byte
	var err error
	if len(r.Lost) > 0 {
		err = &r.Lost[0]
	} else {
		block = append(make([]byte, 0, len(r.Buf)), r.Buf...)
	}
	u.buf.Release()
	if r.Moved != nil {
		r.Moved.Release()
	}
	u.done(block, err)
}
