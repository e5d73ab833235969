package ondisk

import "slices"

const (
	rootItemSize       = 439
	rootItemSizeLegacy = 239 // until Linux 3.6: no generation_v2 and nothing after it
	rootRefHeaderSize  = 18

	rootReadOnly uint64 = 1 << 0  // BTRFS_ROOT_SUBVOL_RDONLY
	rootDead     uint64 = 1 << 48 // BTRFS_ROOT_SUBVOL_DEAD
)

// RootItem is struct btrfs_root_item: the root of a tree, and of a subvolume what is known of it. The
// fields from UUID on are zero in an item that an old kernel wrote last.
type RootItem struct {
	Generation   uint64 // of the root block
	DirID        uint64 // inode of the root directory, 256
	Bytenr       Logical
	Level        uint8 // of the root block, 0..7
	BytesUsed    uint64
	LastSnapshot uint64
	Flags        uint64
	Refs         uint32
	DropProgress Key // how far the deletion of a subvolume has come
	DropLevel    uint8

	UUID, ParentUUID, ReceivedUUID         UUID
	CTransID, OTransID, STransID, RTransID uint64
	CTime, OTime, STime, RTime             Timespec
}

// DecodeRootItem decodes the payload of a ROOT_ITEM. The error is ErrCorrupt. That Bytenr is aligned was
// seen by CheckLeafItems.
//
// struct btrfs_root_item, 439 bytes: inode [160] @0, generation u64 @160, root_dirid @168, bytenr @176,
// byte_limit @184, bytes_used @192, last_snapshot @200, flags @208, refs u32 @216, drop_progress [17]
// @220, drop_level u8 @237, level u8 @238, generation_v2 u64 @239, uuid [16] @247, parent_uuid @263,
// received_uuid @279, ctransid u64 @295, otransid @303, stransid @311, rtransid @319, ctime [12] @327,
// otime @339, stime @351, rtime @363, reserved. An old kernel that changes the item leaves generation_v2
// behind; what follows it is stale then.
func DecodeRootItem(b []byte) (RootItem, error) {
	if len(b) != rootItemSize && len(b) != rootItemSizeLegacy {
		return RootItem{}, corrupt("root item", "%d bytes, want %d or %d", len(b), rootItemSize, rootItemSizeLegacy)
	}
	r := RootItem{
		Generation:   le.Uint64(b[160:]),
		DirID:        le.Uint64(b[168:]),
		Bytenr:       Logical(le.Uint64(b[176:])),
		BytesUsed:    le.Uint64(b[192:]),
		LastSnapshot: le.Uint64(b[200:]),
		Flags:        le.Uint64(b[208:]),
		Refs:         le.Uint32(b[216:]),
		DropProgress: decodeKey(b[220:]),
		DropLevel:    b[237],
		Level:        b[238],
	}
	if r.Level >= maxLevel {
		return RootItem{}, corrupt("root item", "level %d, want less than %d", r.Level, maxLevel)
	}
	if len(b) == rootItemSize && le.Uint64(b[239:]) == r.Generation {
		r.decodeV2(b)
	}
	return r, nil
}

// decodeV2 fills in the fields after generation_v2. Precondition: len(b) == rootItemSize.
func (r *RootItem) decodeV2(b []byte) {
	r.UUID = UUID(b[247:263])
	r.ParentUUID = UUID(b[263:279])
	r.ReceivedUUID = UUID(b[279:295])
	r.CTransID = le.Uint64(b[295:])
	r.OTransID = le.Uint64(b[303:])
	r.STransID = le.Uint64(b[311:])
	r.RTransID = le.Uint64(b[319:])
	r.CTime = decodeTimespec(b[327:])
	r.OTime = decodeTimespec(b[339:])
	r.STime = decodeTimespec(b[351:])
	r.RTime = decodeTimespec(b[363:])
}

// ReadOnly reports whether the subvolume is a read-only snapshot.
func (r *RootItem) ReadOnly() bool { return r.Flags&rootReadOnly != 0 }

// Dead reports whether the subvolume was deleted and is being cleaned up; it must not be shown.
func (r *RootItem) Dead() bool { return r.Refs == 0 || r.Flags&rootDead != 0 }

func checkRootItem(b []byte, sectorSize uint32) error {
	r, err := DecodeRootItem(b)
	if err != nil {
		return err
	}
	if uint64(r.Bytenr)&uint64(sectorSize-1) != 0 {
		return corrupt("root item", "bytenr %d is not aligned to %d", r.Bytenr, sectorSize)
	}
	return nil
}

// RootRef is struct btrfs_root_ref, of ROOT_REF and ROOT_BACKREF items: where a subvolume hangs in its
// parent.
type RootRef struct {
	DirID    uint64 // directory in the parent subvolume
	Sequence uint64 // offset of its DIR_INDEX item
	Name     []byte // aliases the item
}

// DecodeRootRef decodes the payload of a ROOT_REF or ROOT_BACKREF. The error is ErrCorrupt.
//
// struct btrfs_root_ref, 18 bytes: dirid u64 @0, sequence u64 @8, name_len u16 @16, then the name.
func DecodeRootRef(b []byte) (RootRef, error) {
	if len(b) < rootRefHeaderSize {
		return RootRef{}, corrupt("root ref", "%d bytes", len(b))
	}
	n := int(le.Uint16(b[16:]))
	if n < 1 || n > maxNameLen || n != len(b)-rootRefHeaderSize {
		return RootRef{}, corrupt("root ref", "name_len %d in %d bytes", n, len(b))
	}
	return RootRef{
		DirID:    le.Uint64(b),
		Sequence: le.Uint64(b[8:]),
		Name:     slices.Clip(b[rootRefHeaderSize:]),
	}, nil
}
