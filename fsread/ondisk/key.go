package ondisk

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
)

var le = binary.LittleEndian

// Logical is a byte address in the space of the whole filesystem (the kernel's bytenr). Only the chunk
// map turns it into a devio.Physical, and only together with a devio.DevID.
type Logical uint64

// UUID names a filesystem, a device or a subvolume.
type UUID [16]byte

// String returns the usual form in lower case, 8-4-4-4-12.
func (u UUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

// IsZero reports whether no UUID was set.
func (u UUID) IsZero() bool { return u == UUID{} }

// KeySize is the size of struct btrfs_disk_key in bytes.
const KeySize = 17

// Key is the place of an item in its tree. Keys are ordered by ObjectID, Type, Offset, all unsigned.
type Key struct {
	ObjectID uint64
	Type     uint8
	Offset   uint64
}

// struct btrfs_disk_key, 17 bytes: objectid u64 @0, type u8 @8, offset u64 @9. Precondition: len(b) >= 17.
func decodeKey(b []byte) Key {
	_ = b[KeySize-1]
	return Key{ObjectID: le.Uint64(b), Type: b[8], Offset: le.Uint64(b[9:])}
}

// Compare returns -1, 0 or 1 as k stands before, at or after o (btrfs_comp_cpu_keys).
func (k Key) Compare(o Key) int {
	if c := cmp.Compare(k.ObjectID, o.ObjectID); c != 0 {
		return c
	}
	if c := cmp.Compare(k.Type, o.Type); c != 0 {
		return c
	}
	return cmp.Compare(k.Offset, o.Offset)
}

// String returns the form of the kernel's messages, "(256 EXTENT_DATA 4096)", with the reserved objectids
// at the upper end as negative numbers.
func (k Key) String() string {
	id := strconv.FormatUint(k.ObjectID, 10)
	if k.ObjectID > math.MaxUint64-FirstFree {
		id = strconv.FormatInt(int64(k.ObjectID), 10)
	}
	return "(" + id + " " + typeName(k.Type) + " " + strconv.FormatUint(k.Offset, 10) + ")"
}

// Ids of trees and reserved objectids (BTRFS_*_OBJECTID). The negative ones are stored as uint64.
const (
	TreeRoot       uint64 = 1 // holds the root items of the other trees
	TreeExtent     uint64 = 2
	TreeChunk      uint64 = 3
	TreeDev        uint64 = 4
	TreeFS         uint64 = 5 // the top-level subvolume
	TreeRootDir    uint64 = 6 // the directory in TreeRoot that names the default subvolume
	TreeCsum       uint64 = 7
	TreeQuota      uint64 = 8
	TreeUUID       uint64 = 9
	TreeFreeSpace  uint64 = 10
	TreeBlockGroup uint64 = 11
	TreeRaidStripe uint64 = 12
	TreeRemap      uint64 = 13

	FirstFree uint64 = 256                  // lowest id of a subvolume other than TreeFS, and of an inode
	LastFree  uint64 = math.MaxUint64 - 255 // -256, the highest

	TreeLog        uint64 = math.MaxUint64 - 5 // -6
	TreeReloc      uint64 = math.MaxUint64 - 7 // -8
	TreeDataReloc  uint64 = math.MaxUint64 - 8 // -9
	CsumObjectID   uint64 = math.MaxUint64 - 9 // -10, of every EXTENT_CSUM item
	OrphanObjectID uint64 = math.MaxUint64 - 4 // -5, of every ORPHAN item

	DevStatsObjectID       uint64 = 0   // of every PERSISTENT_ITEM of a device's errors, in TreeDev
	DevItemsObjectID       uint64 = 1   // of every DEV_ITEM
	FirstChunkTreeObjectID uint64 = 256 // of every CHUNK_ITEM
)

// Item types (BTRFS_*_KEY) that a reader meets by name; there are more.
const (
	TypeInodeItem    uint8 = 1
	TypeInodeRef     uint8 = 12
	TypeInodeExtref  uint8 = 13
	TypeXattrItem    uint8 = 24
	TypeVerityDesc   uint8 = 36
	TypeVerityMerkle uint8 = 37
	TypeOrphan       uint8 = 48
	TypeDirLogItem   uint8 = 60
	TypeDirLogIndex  uint8 = 72
	TypeDirItem      uint8 = 84
	TypeDirIndex     uint8 = 96
	TypeExtentData   uint8 = 108
	TypeExtentCsum   uint8 = 128
	TypeRootItem     uint8 = 132
	TypeRootBackref  uint8 = 144
	TypeRootRef      uint8 = 156

	TypeExtentItem     uint8 = 168
	TypeMetadataItem   uint8 = 169
	TypeExtentOwnerRef uint8 = 172
	TypeTreeBlockRef   uint8 = 176
	TypeExtentDataRef  uint8 = 178
	TypeSharedBlockRef uint8 = 182
	TypeSharedDataRef  uint8 = 184

	TypeBlockGroup uint8 = 192
	TypeDevItem    uint8 = 216
	TypeChunkItem  uint8 = 228
	TypeRaidStripe uint8 = 230

	TypePersistentItem uint8 = 249
)

func typeName(t uint8) string {
	switch t {
	case TypeInodeItem:
		return "INODE_ITEM"
	case TypeInodeRef:
		return "INODE_REF"
	case TypeInodeExtref:
		return "INODE_EXTREF"
	case TypeXattrItem:
		return "XATTR_ITEM"
	case TypeVerityDesc:
		return "VERITY_DESC_ITEM"
	case TypeVerityMerkle:
		return "VERITY_MERKLE_ITEM"
	case TypeOrphan:
		return "ORPHAN_ITEM"
	case TypeDirLogItem:
		return "DIR_LOG_ITEM"
	case TypeDirLogIndex:
		return "DIR_LOG_INDEX"
	case TypeDirItem:
		return "DIR_ITEM"
	case TypeDirIndex:
		return "DIR_INDEX"
	case TypeExtentData:
		return "EXTENT_DATA"
	case TypeExtentCsum:
		return "EXTENT_CSUM"
	case TypeRootItem:
		return "ROOT_ITEM"
	case TypeRootBackref:
		return "ROOT_BACKREF"
	case TypeRootRef:
		return "ROOT_REF"
	case TypeExtentItem:
		return "EXTENT_ITEM"
	case TypeMetadataItem:
		return "METADATA_ITEM"
	case TypeDevItem:
		return "DEV_ITEM"
	case TypeChunkItem:
		return "CHUNK_ITEM"
	case TypeRaidStripe:
		return "RAID_STRIPE"
	case TypePersistentItem:
		return "PERSISTENT_ITEM"
	}
	return strconv.Itoa(int(t))
}

// IsSubvolume reports whether id is the id of a subvolume: TreeFS, or one from FirstFree on whose top 16
// bits, which quota groups use as a level, are clear (the kernel's is_fstree).
func IsSubvolume(id uint64) bool {
	return id == TreeFS || id >= FirstFree && id < 1<<48
}
