package volume

import (
	"fmt"
	"slices"
	"sync"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// Options for a Volume; the zero value is useful.
type Options struct {
	Degraded bool  // open though devices are missing; reads without a copy fail one by one
	Stats    Stats // nil: none
}

// Volume reads logical ranges of one filesystem. It is immutable; Submit may be called concurrently.
type Volume struct {
	super   *ondisk.Superblock
	pool    *devio.Pool
	opts    Options
	members []*member
	chunks  chunkMap
	batches sync.Pool // of *batch, sized for members
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
			stale: f.Super.Generation < s.Super.Generation})
	}
	return v.finish(entries)
}

// WithChunks gives the whole Volume from what the chunk tree holds: its DEV_ITEMs and its chunks.
// Errors: *MissingError for devices that were not given, unless Options.Degraded; ondisk.ErrUnsupported
// for seed devices; ondisk.ErrCorrupt for chunks that overlap.
func (v *Volume) WithChunks(devices []ondisk.DevItem, entries []ondisk.ChunkEntry) (*Volume, error) {
	w := &Volume{super: v.super, pool: v.pool, opts: v.opts}
	var missing []ondisk.DevItem
	for _, d := range devices {
		if d.FSID != v.super.TreeFSID() && d.FSID != v.super.FSID {
			return nil, &ondisk.UnsupportedError{Feature: fmt.Sprintf("seed device (devid %d of filesystem %s)", d.DevID, d.FSID)}
		}
		m := v.member(d.DevID, d.UUID)
		if m == nil {
			m = &member{id: d.DevID, uuid: d.UUID}
			missing = append(missing, d)
		} else {
			// A copy: the bootstrap volume's reads may still be counting on its own.
			m = &member{id: m.id, uuid: m.uuid, dev: m.dev, super: m.super, stale: m.stale}
		}
		w.members = append(w.members, m)
	}
	if _, err := w.finish(entries); err != nil {
		return nil, err
	}
	if len(missing) > 0 && !v.opts.Degraded {
		return nil, w.missingError(missing)
	}
	return w, nil
}

func (v *Volume) finish(entries []ondisk.ChunkEntry) (*Volume, error) {
	for i, m := range v.members {
		m.index = i
	}
	v.batches.New = func() any { return &batch{reads: make([][]*devio.Read, len(v.members))} }
	var err error
	v.chunks, err = newChunkMap(entries, func(s ondisk.Stripe) *member {
		if m := v.member(s.Dev, s.DevUUID); m != nil {
			return m
		}
		return &member{id: s.Dev, uuid: s.DevUUID}
	})
	return v, err
}

func (v *Volume) member(id devio.DevID, uuid ondisk.UUID) *member {
	for _, m := range v.members {
		if m.id == id && m.uuid == uuid {
			return m
		}
	}
	return nil
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

// MissingError names the devices that a filesystem needs and that were not given.
type MissingError struct {
	Missing []ondisk.DevItem
	Given   int
	Total   int
	// Lost is set when some chunk has no copy left; Profile is then that chunk's, else the weakest seen.
	Lost    bool
	Profile ondisk.Profile
}

func (e *MissingError) Error() string {
	what := ""
	for i, d := range e.Missing {
		if i > 0 {
			what += ", "
		}
		what += fmt.Sprintf("devid %d (uuid %s)", d.DevID, d.UUID)
	}
	verb := "is"
	if len(e.Missing) > 1 {
		verb = "are"
	}
	remedy := fmt.Sprintf("--degraded: %s can be read without", e.Profile)
	if e.Lost {
		remedy = fmt.Sprintf("--degraded: reads of the %s chunks that need it will fail", e.Profile)
	}
	return fmt.Sprintf("%s %s missing, %d of %d devices given (add -d for each, or %s)", what, verb, e.Given, e.Total, remedy)
}

func (e *MissingError) Unwrap() error { return ErrMissing }

func (v *Volume) missingError(missing []ondisk.DevItem) *MissingError {
	e := &MissingError{Missing: missing, Total: len(v.members), Given: len(v.members) - len(missing)}
	for _, c := range v.chunks {
		lost := c.copies > 0
		for m := Mirror(1); int(m) <= c.copies && lost; m++ {
			lost = !c.wholeCopy(m)
		}
		if lost && !e.Lost {
			e.Lost, e.Profile = true, c.profile
		}
		if !e.Lost && c.copies > 1 && (e.Profile == ondisk.Single || e.Profile == ondisk.DUP) {
			e.Profile = c.profile
		}
	}
	return e
}

// wholeCopy says whether every device of copy m is there. RAID10 may lose one device of each pair and
// still be whole, which a look at one row of each mirror number alone would miss: so each pair counts.
func (c *chunk) wholeCopy(m Mirror) bool {
	if c.profile == ondisk.RAID10 {
		for i := 0; i < len(c.members); i += 2 {
			if c.members[i].dev == nil && c.members[i+1].dev == nil {
				return false
			}
		}
		return true
	}
	if c.profile == ondisk.RAID0 {
		for _, d := range c.members {
			if d.dev == nil {
				return false
			}
		}
		return true
	}
	i := 0
	if c.copies > 1 {
		i = int(m) - 1
	}
	return c.members[i].dev != nil
}

// DeviceInfo describes one device of the filesystem.
type DeviceInfo struct {
	DevID      devio.DevID
	UUID       ondisk.UUID
	Name       string // as the user named it; "" when missing
	Size       uint64 // of the device or file, bytes; 0 when missing
	Generation uint64 // of its superblock; 0 when missing
	Missing    bool
	Stale      bool
}

// Devices lists the filesystem's devices in the order of the chunk tree.
func (v *Volume) Devices() []DeviceInfo {
	out := make([]DeviceInfo, 0, len(v.members))
	for _, m := range v.members {
		d := DeviceInfo{DevID: m.id, UUID: m.uuid, Stale: m.stale, Missing: m.dev == nil}
		if m.dev != nil {
			d.Name, d.Size, d.Generation = m.dev.Name(), m.dev.Size(), m.super.Generation
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
	u.req = Request{Logical: logical, Buf: u.buf.B, Unit: n, Verifier: check, Metadata: true, Done: u}
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
		block = append(make([]byte, 0, len(u.buf.B)), u.buf.B...)
	}
	u.buf.Release()
	u.done(block, err)
}
