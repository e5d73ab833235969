package fsread

import (
	"slices"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
)

// Info describes a filesystem as it was opened.
type Info struct {
	Label      string // any bytes; empty for most filesystems
	FSID       ondisk.UUID
	Generation uint64 // the one that all reads see
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
}

// DeviceInfo is one device and how much of it chunks take.
type DeviceInfo struct {
	volume.DeviceInfo
	Allocated uint64 // bytes
}

// Info describes the filesystem. Nothing is read: all of it was, when the filesystem was opened.
func (fs *FS) Info() Info {
	sb := fs.super
	i := Info{Label: sb.Label, FSID: sb.FSID, Generation: sb.Generation, SuperCopy: fs.copied, Checksum: sb.CsumType.String(),
		NodeSize: sb.NodeSize, SectorSize: sb.SectorSize, Features: sb.Features(), Used: sb.BytesUsed, Total: sb.TotalBytes}
	allocated := make(map[devio.DevID]uint64)
	fs.vol.Chunks(func(_ ondisk.Logical, c *ondisk.Chunk) {
		for _, s := range c.Stripes {
			allocated[s.Dev] += c.StripeLength()
		}
		i.addGroup(c)
	})
	for _, d := range fs.vol.Devices() {
		i.Devices = append(i.Devices, DeviceInfo{DeviceInfo: d, Allocated: allocated[d.DevID]})
	}
	return i
}

// groupOrder is data, metadata, system: what a reader looks for first comes first.
func groupOrder(kind string) int {
	return slices.Index([]string{"data", "data+metadata", "metadata", "system"}, kind)
}

func (i *Info) addGroup(c *ondisk.Chunk) {
	kind := "system"
	switch {
	case c.IsData() && c.IsMetadata():
		kind = "data+metadata"
	case c.IsData():
		kind = "data"
	case c.IsMetadata():
		kind = "metadata"
	}
	for n := range i.Groups {
		if g := &i.Groups[n]; g.Kind == kind && g.Profile == c.Profile() {
			g.Chunks++
			g.Bytes += c.Length
			return
		}
	}
	i.Groups = append(i.Groups, BlockGroups{Kind: kind, Profile: c.Profile(), Chunks: 1, Bytes: c.Length})
	slices.SortStableFunc(i.Groups, func(a, b BlockGroups) int {
		return groupOrder(a.Kind) - groupOrder(b.Kind)
	})
}

// Degraded says whether a device is missing.
func (i *Info) Degraded() bool {
	return slices.ContainsFunc(i.Devices, func(d DeviceInfo) bool { return d.Missing })
}

// RootBlock is the address of the subvolume's topmost tree block, Info.NodeSize bytes.
func (s *Subvolume) RootBlock() ondisk.Logical { return s.root.Bytenr }
