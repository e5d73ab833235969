package volume

import (
	"fmt"
	"slices"

	"github.com/btrexport/btrexport/fsread/ondisk"
)

// group finds the filesystem to open among the devices, and what each is to it. Devices of one fsid
// belong together. Others can only be seeds: those carry the flag SEEDING, and a filesystem that has
// sprouted from one has an fsid of its own (btrfs_setup_sprout).
func (s *Set) group() error {
	newest := s.newest()
	top, err := pickTop(newest)
	if err != nil {
		return err
	}
	s.Super, s.Copy = top.Super, top.Copy
	for i := range s.Devices {
		f := &s.Devices[i]
		own := newest[slices.IndexFunc(newest, func(n *Found) bool { return n.Super.FSID == f.Super.FSID })]
		f.Seed = own != top
		f.Stale = f.Super.Generation < own.Super.Generation
		for _, g := range s.Devices[:i] {
			if sameDevice(f.Super, g.Super) {
				return fmt.Errorf("%w: %s and %s are the same device or copies of it: devid %d uuid %s (give it once)",
					ErrDevices, g.Dev.Name(), f.Dev.Name(), f.Super.Dev.DevID, f.Super.Dev.UUID)
			}
		}
	}
	return nil
}

// newest gives of every fsid the device with the newest superblock, the first of equal ones.
func (s *Set) newest() []*Found {
	var out []*Found
	for i := range s.Devices {
		f := &s.Devices[i]
		switch n := slices.IndexFunc(out, func(n *Found) bool { return n.Super.FSID == f.Super.FSID }); {
		case n < 0:
			out = append(out, f)
		case f.Super.Generation > out[n].Super.Generation:
			out[n] = f
		}
	}
	return out
}

// pickTop gives the filesystem that the others can be seeds of: the one that is no seed. Where all
// are, as in a chain of seeds without its last sprout, it is the newest, since a sprout goes on
// counting where its seed stopped.
func pickTop(newest []*Found) (*Found, error) {
	top := newest[0]
	for _, f := range newest[1:] {
		switch {
		case top.seeding() && (!f.seeding() || f.Super.Generation > top.Super.Generation):
			top = f
		case !top.seeding() && !f.seeding():
			return nil, differError(top.Dev, top.Super, f.Dev, f.Super)
		}
	}
	return top, nil
}

func (f *Found) seeding() bool { return f.Super.Flags&ondisk.SuperSeeding != 0 }

// sameDevice says whether two superblocks are of one device. A copy of a filesystem whose visible
// fsid was changed (btrfstune -m) keeps the ids by which a chunk tree knows its devices.
func sameDevice(a, b *ondisk.Superblock) bool {
	return a.Dev.DevID == b.Dev.DevID && (a.FSID == b.FSID || (a.Dev.UUID == b.Dev.UUID && a.Dev.FSID == b.Dev.FSID))
}

func differError(d Device, a *ondisk.Superblock, e Device, b *ondisk.Superblock) error {
	return foreignError(fmt.Sprintf("devices %s and %s belong to different filesystems: %s and %s (name one filesystem's devices; for several use a configuration file)",
		d.Name(), e.Name(), a.FSID, b.FSID))
}

// foreignError is ErrDevices in words that say all.
type foreignError string

func (e foreignError) Error() string { return string(e) }
func (e foreignError) Unwrap() error { return ErrDevices }

// gate refuses what the filesystem needs and this program lacks; its seeds' flags count as well.
func (s *Set) gate() error {
	if err := s.Super.Gate(); err != nil {
		return err
	}
	for _, f := range s.Devices {
		if !f.Seed {
			continue
		}
		if err := f.Super.Gate(); err != nil {
			return fmt.Errorf("seed device %s: %w", f.Dev.Name(), err)
		}
	}
	return nil
}
