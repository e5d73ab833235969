package ondisk

import (
	"fmt"
	"slices"

	"github.com/btrexport/btrexport/fsread/csum"
)

// Values of Expect.Owner that are no tree's id: ids of trees have their upper bits all clear or all set.
const (
	OwnerAnySubvolume uint64 = 1<<63 + 1 // TreeFS or any subvolume: snapshots share blocks, which keep the origin's id
	OwnerUnchecked    uint64 = 1 << 63   // log and relocation trees
)

// Expect is what is known of a tree block before it is read: from the superblock or a root item for a
// root, from the parent's pointer for any other. Every field is checked; a zero Generation, MaxGeneration
// or Owner accepts no block of a filesystem.
type Expect struct {
	Logical    Logical
	FSID       UUID   // Superblock.TreeFSID
	Seeds      []UUID // other fsids that are accepted
	Level      uint8
	Generation uint64 // exactly
	Owner      uint64 // exact tree id, OwnerAnySubvolume or OwnerUnchecked

	FirstKey    Key // of the parent's pointer
	HasFirstKey bool
	Limit       Key // every key is before it: the key of the parent's next pointer, or the parent's own limit
	HasLimit    bool

	MaxGeneration uint64 // of the superblock, one more for log trees
	Csum          csum.Type
	SectorSize    uint32
	NodeSize      uint32
}

// Check says whether b is the expected block and its structure is sound, in the order of the kernel's
// btrfs_validate_extent_buffer and tree-checker.c, plus two checks of our own: every key lies in the range
// that the parent gives the block, and the last pointer of a node is looked at too. On success Block(b)
// may be used. The error is ErrChecksum or ErrCorrupt; either means that this copy is bad and another may
// be good. A good block costs no allocation.
func (e *Expect) Check(b []byte) error {
	if len(b) != int(e.NodeSize) || len(b) < minSectorSize {
		return e.corrupt("%d bytes, nodesize is %d", len(b), e.NodeSize)
	}
	if err := e.checkSelf(b); err != nil {
		return err
	}
	if err := e.checkParent(b); err != nil {
		return err
	}
	if e.Level == 0 {
		return e.checkLeaf(b)
	}
	return e.checkNode(b)
}

// checkSelf checks what the block says of itself.
func (e *Expect) checkSelf(b []byte) error {
	if got := Block(b).Bytenr(); got != e.Logical {
		return e.corrupt("bytenr %d", got)
	}
	if fsid := UUID(b[32:48]); fsid != e.FSID && !slices.Contains(e.Seeds, fsid) {
		return e.corrupt("fsid %s, want %s", fsid, e.FSID)
	}
	if b[100] >= maxLevel {
		return e.corrupt("level %d, want less than %d", b[100], maxLevel)
	}
	if !e.Csum.Match(b, b[csumRoom:]) {
		return checksumError(e.item(), e.Csum, b, b[csumRoom:])
	}
	return nil
}

// checkParent checks what the parent or root says of the block.
func (e *Expect) checkParent(b Block) error {
	if b.Level() != e.Level {
		return e.corrupt("level %d, want %d", b.Level(), e.Level)
	}
	if g := b.Generation(); g != e.Generation {
		return e.corrupt("generation %d, want %d", g, e.Generation)
	}
	if e.Generation > e.MaxGeneration {
		return e.corrupt("generation %d is after the last one, %d", e.Generation, e.MaxGeneration)
	}
	if e.HasFirstKey {
		if b.Len() == 0 {
			return e.corrupt("no items, want first key %s", e.FirstKey)
		}
		if k := b.Key(0); k != e.FirstKey {
			return e.corrupt("first key %s, want %s", k, e.FirstKey)
		}
	}
	if !e.ownerFits(b.Owner()) {
		return e.corrupt("owner %d, want %s", int64(b.Owner()), e.ownerName())
	}
	return nil
}

func (e *Expect) ownerFits(owner uint64) bool {
	switch e.Owner {
	case OwnerUnchecked:
		return true
	case OwnerAnySubvolume:
		return IsSubvolume(owner)
	}
	return owner == e.Owner
}

// checkLeaf: keys increase, and the payloads fill the block from its end downwards without gap or overlap,
// down to the item array at most.
func (e *Expect) checkLeaf(b Block) error {
	n := uint64(le.Uint32(b[96:]))
	if n > uint64(len(b)-headerSize)/itemSize {
		return e.corrupt("nritems %d", n)
	}
	if n == 0 {
		return e.checkEmptyLeaf(b)
	}
	end := uint64(len(b) - headerSize) // where the next payload must end
	var prev Key
	for i := range int(n) {
		h := b[headerSize+i*itemSize:][:itemSize]
		k := decodeKey(h)
		if i > 0 && k.Compare(prev) <= 0 {
			return e.corrupt("key %d %s is not after %s", i, k, prev)
		}
		off, size := uint64(le.Uint32(h[17:])), uint64(le.Uint32(h[21:]))
		if off+size != end || off < n*itemSize {
			return e.corrupt("item %d %s lies at %d+%d, must end at %d and start after %d",
				i, k, off, size, end, n*itemSize)
		}
		prev, end = k, off
	}
	return e.checkLimit(prev)
}

// checkEmptyLeaf: a tree may run empty, but not one that always has an item (the kernel's check_leaf).
func (e *Expect) checkEmptyLeaf(b Block) error {
	switch b.Owner() {
	case TreeRoot, TreeChunk, TreeDev, TreeFS, TreeDataReloc, 0:
		return e.corrupt("leaf of tree %d is empty", int64(b.Owner()))
	}
	return nil
}

func (e *Expect) checkNode(b Block) error {
	n := uint64(le.Uint32(b[96:]))
	if n == 0 || n > uint64(len(b)-headerSize)/ptrSize {
		return e.corrupt("nritems %d", n)
	}
	var prev Key
	for i := range int(n) {
		k := b.Key(i)
		if i > 0 && k.Compare(prev) <= 0 {
			return e.corrupt("key %d %s is not after %s", i, k, prev)
		}
		if p := b.Ptr(i); p == 0 || uint64(p)&uint64(e.SectorSize-1) != 0 {
			return e.corrupt("pointer %d to %d", i, p)
		}
		prev = k
	}
	return e.checkLimit(prev)
}

// checkLimit takes the last key of a block; FirstKey is its lower bound.
func (e *Expect) checkLimit(last Key) error {
	if e.HasLimit && last.Compare(e.Limit) >= 0 {
		return e.corrupt("key %s is not before %s", last, e.Limit)
	}
	return nil
}

func (e *Expect) ownerName() string {
	if e.Owner == OwnerAnySubvolume {
		return "a subvolume"
	}
	return fmt.Sprint(int64(e.Owner))
}

func (e *Expect) item() string { return fmt.Sprintf("tree block %d", e.Logical) }

func (e *Expect) corrupt(format string, args ...any) error { return corrupt(e.item(), format, args...) }
