package ondisk

import (
	"fmt"
	"math"
	"math/bits"
	"strconv"

	"github.com/btrexport/btrexport/devio"
)

const (
	devItemSize     = 98
	chunkHeaderSize = 48
	stripeSize      = 32
	maxChunkLength  = 1 << 32 * StripeLen // stripe numbers fit in 32 bits
)

// StripeLen is the number of bytes that a striped chunk lays on one device before it goes on to the next.
// The kernel accepts no other value.
const StripeLen = 64 << 10

// DevItem is struct btrfs_dev_item: a device as the filesystem knows it.
type DevItem struct {
	DevID                 devio.DevID
	TotalBytes, BytesUsed uint64
	SectorSize            uint32
	Type, Generation      uint64 // 0, but for a seed: the generation that its superblock must have
	UUID                  UUID
	FSID                  UUID // of the filesystem that the device was made for: differs on a seed
}

// DecodeDevItem decodes the payload of a DEV_ITEM. The error is ErrCorrupt.
func DecodeDevItem(b []byte) (DevItem, error) {
	if len(b) != devItemSize {
		return DevItem{}, corrupt("device item", "%d bytes, want %d", len(b), devItemSize)
	}
	return decodeDevFields(b), nil
}

// struct btrfs_dev_item, 98 bytes: devid u64 @0, total_bytes @8, bytes_used @16, io_align u32 @24, io_width
// u32 @28, sector_size u32 @32, type u64 @36, generation @44, start_offset @52, dev_group u32 @60,
// seek_speed u8 @64, bandwidth u8 @65, uuid [16] @66, fsid [16] @82.
func decodeDevFields(b []byte) DevItem {
	_ = b[devItemSize-1]
	return DevItem{
		DevID:      devio.DevID(le.Uint64(b)),
		TotalBytes: le.Uint64(b[8:]),
		BytesUsed:  le.Uint64(b[16:]),
		SectorSize: le.Uint32(b[32:]),
		Type:       le.Uint64(b[36:]),
		Generation: le.Uint64(b[44:]),
		UUID:       UUID(b[66:82]),
		FSID:       UUID(b[82:98]),
	}
}

// Bits of Chunk.Type (BTRFS_BLOCK_GROUP_*): what a chunk holds, and at most one profile.
const (
	BlockGroupData     uint64 = 1 << 0
	BlockGroupSystem   uint64 = 1 << 1
	BlockGroupMetadata uint64 = 1 << 2
	BlockGroupRAID0    uint64 = 1 << 3
	BlockGroupRAID1    uint64 = 1 << 4
	BlockGroupDUP      uint64 = 1 << 5
	BlockGroupRAID10   uint64 = 1 << 6
	BlockGroupRAID5    uint64 = 1 << 7
	BlockGroupRAID6    uint64 = 1 << 8
	BlockGroupRAID1C3  uint64 = 1 << 9
	BlockGroupRAID1C4  uint64 = 1 << 10

	blockGroupTypes    = BlockGroupData | BlockGroupSystem | BlockGroupMetadata
	blockGroupProfiles = BlockGroupRAID0 | BlockGroupRAID1 | BlockGroupDUP | BlockGroupRAID10 |
		BlockGroupRAID5 | BlockGroupRAID6 | BlockGroupRAID1C3 | BlockGroupRAID1C4
)

// Profile is how a chunk is laid over its stripes.
type Profile uint8

// The profiles, in the order of btrfs_raid_array's names. Single is a chunk without a profile bit.
const (
	Single Profile = iota
	DUP
	RAID0
	RAID1
	RAID1C3
	RAID1C4
	RAID10
	RAID5
	RAID6
)

// String returns the name that btrfs-progs prints in lower case: "single", "dup", "raid0", "raid1c3".
func (p Profile) String() string {
	switch p {
	case Single:
		return "single"
	case DUP:
		return "dup"
	case RAID0:
		return "raid0"
	case RAID1:
		return "raid1"
	case RAID1C3:
		return "raid1c3"
	case RAID1C4:
		return "raid1c4"
	case RAID10:
		return "raid10"
	case RAID5:
		return "raid5"
	case RAID6:
		return "raid6"
	}
	return "profile-" + strconv.Itoa(int(p))
}

// Stripe is the part of a chunk on one device.
type Stripe struct {
	Dev      devio.DevID
	Physical devio.Physical
	DevUUID  UUID
}

// Chunk is struct btrfs_chunk: a logical range and the stripes that hold it. Of a chunk that DecodeChunk
// returned, the number of stripes fits the profile and no stripe wraps around the address space.
type Chunk struct {
	Length     uint64 // bytes of logical space, a multiple of the sectorsize, at most 2^48
	Owner      uint64
	StripeLen  uint64 // always the constant StripeLen
	Type       uint64 // BlockGroup* bits
	SubStripes uint16 // 2 for RAID10, without meaning elsewhere
	SectorSize uint32
	Stripes    []Stripe
}

// DecodeChunk decodes and validates the payload of the CHUNK_ITEM that starts at logical
// (btrfs_check_chunk_valid). The error is ErrCorrupt. Left to the chunk map, which sees more than one
// item: overlap with others, and whether data and metadata may share a chunk.
func DecodeChunk(item []byte, logical Logical, sectorSize uint32) (Chunk, error) {
	c, err := decodeChunkHeader(item, logical, sectorSize)
	if err != nil {
		return Chunk{}, err
	}
	c.Stripes = make([]Stripe, (len(item)-chunkHeaderSize)/stripeSize)
	for i := range c.Stripes {
		c.Stripes[i] = decodeStripe(item[chunkHeaderSize+i*stripeSize:])
	}
	return c, nil
}

// struct btrfs_stripe, 32 bytes: devid u64 @0, offset u64 @8, dev_uuid [16] @16.
func decodeStripe(b []byte) Stripe {
	_ = b[stripeSize-1]
	return Stripe{
		Dev:      devio.DevID(le.Uint64(b)),
		Physical: devio.Physical(le.Uint64(b[8:])),
		DevUUID:  UUID(b[16:32]),
	}
}

// decodeChunkHeader does all of DecodeChunk but fill in Stripes, without allocating on good items.
//
// struct btrfs_chunk: length u64 @0, owner @8, stripe_len @16, type @24, io_align u32 @32, io_width u32 @36,
// sector_size u32 @40, num_stripes u16 @44, sub_stripes u16 @46, then num_stripes of btrfs_stripe from 48.
func decodeChunkHeader(item []byte, logical Logical, sectorSize uint32) (Chunk, error) {
	if len(item) < chunkHeaderSize {
		return Chunk{}, corruptChunk(logical, "%d bytes", len(item))
	}
	c := Chunk{
		Length:     le.Uint64(item),
		Owner:      le.Uint64(item[8:]),
		StripeLen:  le.Uint64(item[16:]),
		Type:       le.Uint64(item[24:]),
		SectorSize: le.Uint32(item[40:]),
		SubStripes: le.Uint16(item[46:]),
	}
	n := int(le.Uint16(item[44:]))
	if want := chunkHeaderSize + n*stripeSize; len(item) != want {
		return Chunk{}, corruptChunk(logical, "%d bytes, %d stripes take %d", len(item), n, want)
	}
	if err := c.checkRange(logical, sectorSize); err != nil {
		return Chunk{}, err
	}
	if err := c.checkType(logical); err != nil {
		return Chunk{}, err
	}
	if !c.stripeCountFits(n) {
		return Chunk{}, corruptChunk(logical, "%s with %d stripes, sub_stripes %d", c.Profile(), n, c.SubStripes)
	}
	last := math.MaxUint64 - c.stripeLength(n)
	for i := range n {
		if p := le.Uint64(item[chunkHeaderSize+i*stripeSize+8:]); p > last {
			return Chunk{}, corruptChunk(logical, "stripe %d at physical %d ends past 2^64", i, p)
		}
	}
	return c, nil
}

func (c *Chunk) checkRange(logical Logical, sectorSize uint32) error {
	switch {
	case c.SectorSize != sectorSize || sectorSize == 0:
		return corruptChunk(logical, "sector_size %d, the filesystem's is %d", c.SectorSize, sectorSize)
	case uint64(logical)%uint64(sectorSize) != 0:
		return corruptChunk(logical, "start is not aligned to %d", sectorSize)
	case c.Length == 0 || c.Length%uint64(sectorSize) != 0 || c.Length > maxChunkLength:
		return corruptChunk(logical, "length %d", c.Length)
	case uint64(logical) > math.MaxUint64-c.Length:
		return corruptChunk(logical, "length %d ends past 2^64", c.Length)
	case c.StripeLen != StripeLen:
		return corruptChunk(logical, "stripe_len %d, want %d", c.StripeLen, StripeLen)
	}
	return nil
}

func (c *Chunk) checkType(logical Logical) error {
	switch {
	case c.Type&^(blockGroupTypes|blockGroupProfiles) != 0:
		return corruptChunk(logical, "type 0x%x has unknown bits", c.Type)
	case bits.OnesCount64(c.Type&blockGroupProfiles) > 1:
		return corruptChunk(logical, "type 0x%x has several profiles", c.Type)
	case c.Type&blockGroupTypes == 0:
		return corruptChunk(logical, "type 0x%x is neither data, metadata nor system", c.Type)
	case c.IsSystem() && c.Type&blockGroupTypes != BlockGroupSystem:
		return corruptChunk(logical, "type 0x%x is system and something else", c.Type)
	}
	return nil
}

// stripeCountFits holds the stripe counts of btrfs_raid_array. RAID0 with one stripe and RAID10 with two
// are what device removal leaves.
func (c *Chunk) stripeCountFits(n int) bool {
	switch c.Profile() {
	case Single:
		return n == 1
	case DUP, RAID1:
		return n == 2
	case RAID1C3:
		return n == 3
	case RAID1C4:
		return n == 4
	case RAID0:
		return n >= 1
	case RAID10:
		return n >= 2 && n%2 == 0 && c.SubStripes == 2
	case RAID5:
		return n >= 2
	case RAID6:
		return n >= 3
	}
	return false
}

// Profile returns the chunk's profile.
func (c *Chunk) Profile() Profile {
	switch c.Type & blockGroupProfiles {
	case BlockGroupDUP:
		return DUP
	case BlockGroupRAID0:
		return RAID0
	case BlockGroupRAID1:
		return RAID1
	case BlockGroupRAID1C3:
		return RAID1C3
	case BlockGroupRAID1C4:
		return RAID1C4
	case BlockGroupRAID10:
		return RAID10
	case BlockGroupRAID5:
		return RAID5
	case BlockGroupRAID6:
		return RAID6
	}
	return Single
}

// IsData reports whether the chunk holds file data. Mixed chunks hold metadata too.
func (c *Chunk) IsData() bool { return c.Type&BlockGroupData != 0 }

// IsMetadata reports whether the chunk holds tree blocks. Mixed chunks hold data too.
func (c *Chunk) IsMetadata() bool { return c.Type&BlockGroupMetadata != 0 }

// IsSystem reports whether the chunk holds the chunk tree.
func (c *Chunk) IsSystem() bool { return c.Type&BlockGroupSystem != 0 }

// Kind names what the chunk is for: data, data+metadata where both are mixed, metadata or system. Sorted by name, what
// a reader looks for first comes first.
func (c *Chunk) Kind() string {
	switch {
	case c.IsData() && c.IsMetadata():
		return "data+metadata"
	case c.IsData():
		return "data"
	case c.IsMetadata():
		return "metadata"
	}
	return "system"
}

// StripeLength returns the bytes that each stripe takes on its device: Length divided by the columns that
// hold data, in whole rows of StripeLen where there is more than one column or parity. Every address that
// the chunk maps to lies inside.
func (c *Chunk) StripeLength() uint64 { return c.stripeLength(len(c.Stripes)) }

// stripeLength is StripeLength for n stripes. Precondition: stripeCountFits(n) and Length <= 2^48.
func (c *Chunk) stripeLength(n int) uint64 {
	columns := uint64(1)
	switch c.Profile() {
	case Single, DUP, RAID1, RAID1C3, RAID1C4:
		return c.Length
	case RAID0:
		columns = uint64(n)
	case RAID10:
		columns = uint64(n / 2)
	case RAID5:
		columns = uint64(n - 1)
	case RAID6:
		columns = uint64(n - 2)
	}
	row := columns * StripeLen
	return (c.Length + row - 1) / row * StripeLen
}

func corruptChunk(logical Logical, format string, args ...any) error {
	return corrupt(fmt.Sprintf("chunk %d", logical), format, args...)
}
