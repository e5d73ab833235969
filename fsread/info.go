package fsread

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread/btree"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
)

// Info describes a filesystem as it was opened.
type Info struct {
	Label      string // any bytes; empty for most filesystems
	FSID       ondisk.UUID
	Generation uint64 // the one that all reads see
	Newest     uint64 // of the last commit: above Generation where an older state was opened
	SuperCopy  int    // which copy of the superblock was used; 0 is the primary
	Checksum   string // crc32c, xxhash64, ...
	NodeSize   uint32 // bytes, as all sizes
	SectorSize uint32
	Features   []string
	Used       uint64 // bytes of data and metadata, each counted once
	Total      uint64 // of all devices together
	Groups     []BlockGroups
	Devices    []DeviceInfo // in the order of the chunk tree
}

// BlockGroups are the chunks of one kind and profile.
type BlockGroups struct {
	Kind    string // data, metadata, system, or data+metadata where chunks are mixed
	Profile ondisk.Profile
	Chunks  int
	Bytes   uint64 // logical: each byte counted once, whatever its copies
	Used    uint64 // of Bytes; FS.Usage counts it
	// Unreadable is what of Bytes has no copy, and can't be rebuilt, without the devices that are missing.
	Unreadable uint64
}

// DeviceInfo is one device and how much of it chunks take.
type DeviceInfo struct {
	volume.DeviceInfo
	Allocated uint64 // bytes
}

// Info describes the filesystem. Nothing is read: all of it was, when the filesystem was opened.
func (fs *FS) Info() Info {
	sb := fs.super
	i := Info{Label: sb.Label, FSID: sb.FSID, Generation: sb.Generation, Newest: fs.set.Super.Generation, SuperCopy: fs.copied, Checksum: sb.CsumType.String(),
		NodeSize: sb.NodeSize, SectorSize: sb.SectorSize, Features: sb.Features(), Used: sb.BytesUsed, Total: sb.TotalBytes}
	allocated := make(map[devio.DevID]uint64)
	fs.vol.Chunks(func(start ondisk.Logical, c *ondisk.Chunk) {
		for _, s := range c.Stripes {
			allocated[s.Dev] += c.StripeLength()
		}
		i.addGroup(c)
		i.group(c).Unreadable += fs.vol.Unreadable(start)
	})
	for _, d := range fs.vol.Devices() {
		i.Devices = append(i.Devices, DeviceInfo{DeviceInfo: d, Allocated: allocated[d.DevID]})
	}
	return i
}

// Devices tells of the devices what Info does, but for what chunks take of them, at less cost.
func (fs *FS) Devices() []volume.DeviceInfo { return fs.vol.Devices() }

// Rotational says that one of the filesystem's devices has spinning disks: reads far apart cost a seek there.
func (fs *FS) Rotational() bool {
	return slices.ContainsFunc(fs.devs, func(d volume.Device) bool {
		r, ok := d.(interface{ Rotational() bool })
		return ok && r.Rotational()
	})
}

// Usage describes the filesystem as Info does and counts what of the chunks is in use, one search of the
// block group tree, or without one of the extent tree, for each chunk. On an error all else is right.
func (fs *FS) Usage(ctx context.Context) (Info, error) {
	i := fs.Info()
	id := ondisk.TreeExtent
	if fs.super.CompatRO&ondisk.CompatROBlockGroupTree != 0 {
		id = ondisk.TreeBlockGroup
	}
	ri, err := fs.rootItem(ctx, id)
	if err != nil {
		return i, fmt.Errorf("usage: %w", err)
	}
	t := fs.reader.Tree(id, btree.Pointer{Logical: ri.Bytenr, Generation: ri.Generation, Level: ri.Level})
	var cur btree.Cursor
	fs.vol.Chunks(func(start ondisk.Logical, c *ondisk.Chunk) {
		if err != nil {
			return
		}
		var ok bool
		var used uint64
		ok, err = cur.Find(ctx, t, ondisk.Key{ObjectID: uint64(start), Type: ondisk.TypeBlockGroup, Offset: c.Length})
		if !ok || err != nil {
			return // a chunk without an item holds nothing yet
		}
		if used, err = ondisk.BlockGroupUsed(cur.Item(), c.Length); err == nil {
			i.group(c).Used += used
		}
	})
	if err != nil {
		return i, fmt.Errorf("usage: %w", err)
	}
	return i, nil
}

// group gives the groups that a chunk is one of; nil when it is the first.
func (i *Info) group(c *ondisk.Chunk) *BlockGroups {
	for n := range i.Groups {
		if g := &i.Groups[n]; g.Kind == c.Kind() && g.Profile == c.Profile() {
			return g
		}
	}
	return nil
}

func (i *Info) addGroup(c *ondisk.Chunk) {
	if g := i.group(c); g != nil {
		g.Chunks++
		g.Bytes += c.Length
		return
	}
	i.Groups = append(i.Groups, BlockGroups{Kind: c.Kind(), Profile: c.Profile(), Chunks: 1, Bytes: c.Length})
	slices.SortStableFunc(i.Groups, func(a, b BlockGroups) int { return strings.Compare(a.Kind, b.Kind) })
}

// Degraded says whether a device is missing.
func (i *Info) Degraded() bool {
	return slices.ContainsFunc(i.Devices, func(d DeviceInfo) bool { return d.Missing })
}

// RootBlock is the address of the subvolume's topmost tree block, Info.NodeSize bytes.
func (s *Subvolume) RootBlock() ondisk.Logical { return s.root.Bytenr }
