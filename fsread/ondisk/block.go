package ondisk

// Layout of tree blocks, in bytes.
//
// struct btrfs_header, 101 bytes: csum [32] @0, fsid [16] @32, bytenr u64 @48, flags u64 @56,
// chunk_tree_uuid [16] @64, generation u64 @80, owner u64 @88, nritems u32 @96, level u8 @100.
// struct btrfs_item, 25 bytes: key [17] @0, offset u32 @17 (of the data, from the end of the header),
// size u32 @21.
// struct btrfs_key_ptr, 33 bytes: key [17] @0, blockptr u64 @17, generation u64 @25.
const (
	headerSize = 101
	itemSize   = 25
	ptrSize    = 33
)

// Block is a tree block that [Expect.Check] has accepted. Its methods rely on that, do not allocate, and
// return slices of it; an index outside 0..Len()-1 is the caller's mistake.
type Block []byte

// Bytenr returns the logical address that the block was written for.
func (b Block) Bytenr() Logical { return Logical(le.Uint64(b[48:])) }

// Generation returns the transaction that wrote the block.
func (b Block) Generation() uint64 { return le.Uint64(b[80:]) }

// Owner returns the id of the tree that the block was first written for.
func (b Block) Owner() uint64 { return le.Uint64(b[88:]) }

// Level returns the height above the leaves; 0 is a leaf.
func (b Block) Level() uint8 { return b[100] }

// Len returns the number of items of a leaf or of pointers of a node (nritems).
func (b Block) Len() int { return int(le.Uint32(b[96:])) }

// Key returns the key of item or pointer i.
func (b Block) Key(i int) Key { return decodeKey(b[headerSize+i*b.stride():]) }

// Item returns the payload of item i of a leaf.
func (b Block) Item(i int) []byte {
	h := b[headerSize+i*itemSize:]
	start := headerSize + uint64(le.Uint32(h[17:]))
	end := start + uint64(le.Uint32(h[21:]))
	return b[start:end:end]
}

// Ptr returns the address of child i of a node.
func (b Block) Ptr(i int) Logical { return Logical(le.Uint64(b[headerSize+i*ptrSize+17:])) }

// PtrGeneration returns the generation that child i of a node must have.
func (b Block) PtrGeneration(i int) uint64 { return le.Uint64(b[headerSize+i*ptrSize+25:]) }

// Search returns the index of the last item or pointer whose key is at most k, and -1 if there is none.
func (b Block) Search(k Key) int {
	stride := b.stride()
	lo, hi := 0, b.Len() // keys before lo are <= k, keys from hi on are > k
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if decodeKey(b[headerSize+mid*stride:]).Compare(k) <= 0 {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo - 1
}

// stride is the distance from one key to the next.
func (b Block) stride() int {
	if b.Level() == 0 {
		return itemSize
	}
	return ptrSize
}
