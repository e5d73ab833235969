package ondisk

const (
	extentItemHeaderSize = 24 // of EXTENT_ITEM and METADATA_ITEM
	treeBlockInfoSize    = 18
	dataRefSize          = 28

	extentFlagData      = 1 << 0 // BTRFS_EXTENT_FLAG_*
	extentFlagTreeBlock = 1 << 1
)

// ExtentItem is struct btrfs_extent_item: who uses an extent of data or a tree block.
type ExtentItem struct {
	Refs       uint64 // all references together, of inline and of keyed back references
	Generation uint64
	Flags      uint64
	inline     []byte // packed references; aliases the item
}

// ExtentRef is one back reference of an extent.
type ExtentRef struct {
	Type uint8 // TypeTreeBlockRef, TypeExtentDataRef, TypeSharedBlockRef, TypeSharedDataRef; TypeExtentOwnerRef refers to nothing
	// Root, Inode and Offset are of an EXTENT_DATA_REF: a file, and where in it the extent's first byte would stand.
	// Root alone is of a TREE_BLOCK_REF.
	Root, Inode, Offset uint64
	Parent              Logical // of the shared ones: the tree block that has the reference
	Count               uint64  // how many file extent items; 1 for tree blocks, 0 for an owner
}

// DecodeExtentItem decodes the payload of an EXTENT_ITEM or METADATA_ITEM. The error is ErrCorrupt.
//
// struct btrfs_extent_item, 24 bytes: refs u64 @0, generation u64 @8, flags u64 @16; of a tree block under an
// EXTENT_ITEM then struct btrfs_tree_block_info, 18 bytes; then the inline references.
func DecodeExtentItem(k Key, item []byte) (ExtentItem, error) {
	if len(item) < extentItemHeaderSize {
		return ExtentItem{}, corrupt("extent item", "%d bytes", len(item))
	}
	x := ExtentItem{Refs: le.Uint64(item), Generation: le.Uint64(item[8:]), Flags: le.Uint64(item[16:]), inline: item[extentItemHeaderSize:]}
	data, block := x.Flags&extentFlagData != 0, x.Flags&extentFlagTreeBlock != 0
	switch {
	case data == block || (data && k.Type == TypeMetadataItem):
		return ExtentItem{}, corrupt("extent item", "flags 0x%x under key %s", x.Flags, k)
	case x.Refs == 0:
		return ExtentItem{}, corrupt("extent item", "no references under key %s", k)
	}
	if block && k.Type != TypeMetadataItem {
		if len(x.inline) < treeBlockInfoSize {
			return ExtentItem{}, corrupt("extent item", "%d bytes of a tree block", len(item))
		}
		x.inline = x.inline[treeBlockInfoSize:]
	}
	return x, nil
}

// Inline is the packed inline references, for NextExtentRef.
func (x *ExtentItem) Inline() []byte { return x.inline }

// NextExtentRef decodes the first of packed inline references and gives those behind it. The error is ErrCorrupt.
// Precondition: b is not empty.
//
// struct btrfs_extent_inline_ref: type u8 @0, then offset u64 @1; of EXTENT_DATA_REF instead of the offset struct
// btrfs_extent_data_ref, 28 bytes: root u64 @0, objectid u64 @8, offset u64 @16, count u32 @24; of
// SHARED_DATA_REF behind it count u32 @9.
func NextExtentRef(b []byte) (r ExtentRef, rest []byte, err error) {
	size := 1 + 8
	switch b[0] {
	case TypeExtentDataRef:
		size = 1 + dataRefSize
	case TypeSharedDataRef:
		size += 4
	case TypeTreeBlockRef, TypeSharedBlockRef, TypeExtentOwnerRef:
	default:
		return ExtentRef{}, nil, corrupt("extent item", "inline reference of type %d", b[0])
	}
	if len(b) < size {
		return ExtentRef{}, nil, corrupt("extent item", "%d bytes left of an inline reference of type %d", len(b), b[0])
	}
	if b[0] == TypeExtentDataRef {
		return dataRef(b[1:]), b[size:], nil
	}
	k := Key{Type: b[0], Offset: le.Uint64(b[1:])}
	r, err = DecodeExtentRef(k, b[9:size])
	return r, b[size:], err
}

// DecodeExtentRef decodes a back reference with a key of its own: (address, type, hash, root or parent). The error
// is ErrCorrupt.
//
// struct btrfs_shared_data_ref, 4 bytes: count u32 @0. Those of tree blocks have no payload.
func DecodeExtentRef(k Key, item []byte) (ExtentRef, error) {
	r := ExtentRef{Type: k.Type, Count: 1}
	want := 0
	switch k.Type {
	case TypeExtentDataRef:
		want = dataRefSize
	case TypeSharedDataRef:
		want = 4
	}
	if len(item) != want {
		return ExtentRef{}, corrupt("extent back reference", "%d bytes of type %d, want %d", len(item), k.Type, want)
	}
	switch k.Type {
	case TypeExtentDataRef:
		return dataRef(item), nil
	case TypeSharedDataRef:
		r.Parent, r.Count = Logical(k.Offset), uint64(le.Uint32(item))
	case TypeSharedBlockRef:
		r.Parent = Logical(k.Offset)
	case TypeExtentOwnerRef:
		r.Root, r.Count = k.Offset, 0
	default:
		r.Root = k.Offset
	}
	return r, nil
}

// dataRef decodes struct btrfs_extent_data_ref. Precondition: len(b) >= dataRefSize.
func dataRef(b []byte) ExtentRef {
	return ExtentRef{Type: TypeExtentDataRef, Root: le.Uint64(b), Inode: le.Uint64(b[8:]), Offset: le.Uint64(b[16:]), Count: uint64(le.Uint32(b[24:]))}
}

// IsExtentRef reports whether a key is of a back reference of an extent.
func (k Key) IsExtentRef() bool {
	return k.Type == TypeTreeBlockRef || k.Type == TypeExtentDataRef || k.Type == TypeSharedBlockRef || k.Type == TypeSharedDataRef
}
