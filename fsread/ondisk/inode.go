package ondisk

import (
	"slices"
	"time"
)

const (
	inodeItemSize         = 160
	timespecSize          = 12
	inodeRefHeaderSize    = 10
	inodeExtrefHeaderSize = 18
)

// Bits of InodeItem.Flags (BTRFS_INODE_*).
const (
	InodeNoDataSum    uint64 = 1 << 0 // data have no checksums
	InodeNoDataCow    uint64 = 1 << 1
	InodeReadOnly     uint64 = 1 << 2
	InodeNoCompress   uint64 = 1 << 3
	InodePrealloc     uint64 = 1 << 4
	InodeSync         uint64 = 1 << 5
	InodeImmutable    uint64 = 1 << 6
	InodeAppend       uint64 = 1 << 7
	InodeNoDump       uint64 = 1 << 8
	InodeNoATime      uint64 = 1 << 9
	InodeDirSync      uint64 = 1 << 10
	InodeCompress     uint64 = 1 << 11 // a wish; each extent says what it is
	InodeRootItemInit uint64 = 1 << 31
	InodeROVerity     uint64 = 1 << 32
)

// Timespec is struct btrfs_timespec: seconds since 1970 and nanoseconds. Neither was validated.
type Timespec struct {
	Sec  int64
	Nsec uint32
}

// Time returns the time in UTC.
func (t Timespec) Time() time.Time { return time.Unix(t.Sec, int64(t.Nsec)).UTC() }

// struct btrfs_timespec, 12 bytes: sec u64 @0, nsec u32 @8.
func decodeTimespec(b []byte) Timespec {
	_ = b[timespecSize-1]
	return Timespec{Sec: int64(le.Uint64(b)), Nsec: le.Uint32(b[8:])}
}

// InodeItem is struct btrfs_inode_item.
type InodeItem struct {
	Generation, TransID        uint64
	Size                       uint64 // bytes of the file (i_size)
	NBytes                     uint64 // bytes allocated; not the size
	NLink, UID, GID, Mode      uint32 // Mode as in struct stat
	RDev, Flags, Sequence      uint64 // Flags: Inode* bits
	ATime, CTime, MTime, OTime Timespec
}

// DecodeInodeItem decodes the payload of an INODE_ITEM. The error is ErrCorrupt.
//
// struct btrfs_inode_item, 160 bytes: generation u64 @0, transid @8, size @16, nbytes @24, block_group @32,
// nlink u32 @40, uid u32 @44, gid u32 @48, mode u32 @52, rdev u64 @56, flags @64, sequence @72,
// reserved [4]u64 @80, atime @112, ctime @124, mtime @136, otime @148.
func DecodeInodeItem(b []byte) (InodeItem, error) {
	if err := checkInodeItem(b); err != nil {
		return InodeItem{}, err
	}
	return InodeItem{
		Generation: le.Uint64(b),
		TransID:    le.Uint64(b[8:]),
		Size:       le.Uint64(b[16:]),
		NBytes:     le.Uint64(b[24:]),
		NLink:      le.Uint32(b[40:]),
		UID:        le.Uint32(b[44:]),
		GID:        le.Uint32(b[48:]),
		Mode:       le.Uint32(b[52:]),
		RDev:       le.Uint64(b[56:]),
		Flags:      le.Uint64(b[64:]),
		Sequence:   le.Uint64(b[72:]),
		ATime:      decodeTimespec(b[112:]),
		CTime:      decodeTimespec(b[124:]),
		MTime:      decodeTimespec(b[136:]),
		OTime:      decodeTimespec(b[148:]),
	}, nil
}

func checkInodeItem(b []byte) error {
	if len(b) != inodeItemSize {
		return corrupt("inode item", "%d bytes, want %d", len(b), inodeItemSize)
	}
	return nil
}

// InodeRef is one name of an inode in the directory that the key of its INODE_REF item gives.
type InodeRef struct {
	Index uint64 // offset of the DIR_INDEX item
	Name  []byte // aliases the item
}

// NextInodeRef decodes the first of the names packed in an INODE_REF item; rest holds those after it, and
// is empty after the last. The error is ErrCorrupt.
//
// struct btrfs_inode_ref, 10 bytes: index u64 @0, name_len u16 @8, then the name.
func NextInodeRef(b []byte) (r InodeRef, rest []byte, err error) {
	if len(b) < inodeRefHeaderSize {
		return InodeRef{}, nil, corrupt("inode ref", "%d bytes left", len(b))
	}
	name, rest, ok := cutName(b[inodeRefHeaderSize:], le.Uint16(b[8:]))
	if !ok {
		return InodeRef{}, nil, corrupt("inode ref", "name_len %d, %d bytes left", le.Uint16(b[8:]), len(b))
	}
	return InodeRef{Index: le.Uint64(b), Name: name}, rest, nil
}

// InodeExtref is one name of an inode, for inodes with more names than an INODE_REF item holds.
type InodeExtref struct {
	Parent uint64 // inode of the directory
	Index  uint64 // offset of the DIR_INDEX item
	Name   []byte // aliases the item
}

// NextInodeExtref is NextInodeRef for INODE_EXTREF items.
//
// struct btrfs_inode_extref, 18 bytes: parent u64 @0, index u64 @8, name_len u16 @16, then the name.
func NextInodeExtref(b []byte) (r InodeExtref, rest []byte, err error) {
	if len(b) < inodeExtrefHeaderSize {
		return InodeExtref{}, nil, corrupt("inode extref", "%d bytes left", len(b))
	}
	name, rest, ok := cutName(b[inodeExtrefHeaderSize:], le.Uint16(b[16:]))
	if !ok {
		return InodeExtref{}, nil, corrupt("inode extref", "name_len %d, %d bytes left", le.Uint16(b[16:]), len(b))
	}
	return InodeExtref{Parent: le.Uint64(b), Index: le.Uint64(b[8:]), Name: name}, rest, nil
}

// cutName splits a name of n bytes from b; ok is false when b is shorter.
func cutName(b []byte, n uint16) (name, rest []byte, ok bool) {
	if len(b) < int(n) {
		return nil, nil, false
	}
	return slices.Clip(b[:n]), b[n:], true
}

func checkInodeRefs(b []byte) error {
	for len(b) > 0 {
		var err error
		if _, b, err = NextInodeRef(b); err != nil {
			return err
		}
	}
	return nil
}

func checkInodeExtrefs(b []byte) error {
	for len(b) > 0 {
		var err error
		if _, b, err = NextInodeExtref(b); err != nil {
			return err
		}
	}
	return nil
}

// Device gives the numbers of a block or character device. On the disk is the kernel's own dev_t, major << 20 |
// minor, and not what stat packs them into.
func (i *InodeItem) Device() (major, minor uint32) {
	return uint32(i.RDev >> 20), uint32(i.RDev & (1<<20 - 1))
}
