package ondisk

import (
	"fmt"
	"math"
)

// CheckLeafItems validates the items of a leaf that a reader uses (the kernel's tree-checker.c, as far as
// values reach a reader, with bounds of our own). Other item types are passed over, and so is a node. b
// has passed [Expect.Check]; it is called once for each block read, since Check alone does not make the
// contents of items safe to use. csumSize is csum.Type.Size of the filesystem. The error is ErrCorrupt and
// names block, item and key. A good leaf costs no allocation.
func CheckLeafItems(b Block, sectorSize uint32, csumSize int) error {
	if b.Level() != 0 {
		return nil
	}
	c := leafChecker{sectorSize: sectorSize, csumSize: csumSize}
	for i := range b.Len() {
		if err := c.check(b.Key(i), b.Item(i)); err != nil {
			return fmt.Errorf("tree block %d, item %d %s: %w", b.Bytenr(), i, b.Key(i), err)
		}
	}
	return nil
}

// leafChecker walks the items of one leaf in order and remembers how far the last extent and the last
// checksum item reached.
type leafChecker struct {
	sectorSize uint32
	csumSize   int

	extentIno uint64 // inode of the last EXTENT_DATA
	extentEnd uint64 // file offset at which it ends
	csumEnd   uint64 // logical address at which the last EXTENT_CSUM ends
}

func (c *leafChecker) check(k Key, item []byte) error {
	switch k.Type {
	case TypeInodeItem:
		return checkInodeItem(item)
	case TypeInodeRef:
		return checkInodeRefs(item)
	case TypeInodeExtref:
		return checkInodeExtrefs(item)
	case TypeDirItem, TypeDirIndex:
		return checkDirItem(k, item)
	case TypeExtentData:
		return c.checkExtentData(k, item)
	case TypeExtentCsum:
		return c.checkExtentCsum(k, item)
	case TypeRootItem:
		return checkRootItem(item, c.sectorSize)
	case TypeRootRef, TypeRootBackref:
		_, err := DecodeRootRef(item)
		return err
	case TypeDevItem:
		return checkDevItem(k, item)
	case TypeChunkItem:
		return c.checkChunkItem(k, item)
	case TypeRaidStripe:
		_, err := DecodeStripeExtent(k, item, c.sectorSize)
		return err
	}
	return nil
}

// checkExtentData also finds extents that overlap inside this leaf. Across leaves only who walks the tree
// can (check_extent_data_item).
func (c *leafChecker) checkExtentData(k Key, item []byte) error {
	x, err := DecodeFileExtent(item, k.Offset, c.sectorSize)
	if err != nil {
		return err
	}
	if k.ObjectID == c.extentIno && k.Offset < c.extentEnd {
		return corruptExtent(k.Offset, "the one before it ends at %d", c.extentEnd)
	}
	c.extentIno, c.extentEnd = k.ObjectID, k.Offset+x.Span(c.sectorSize)
	return nil
}

// checkExtentCsum is the kernel's check_csum_item, and no sector may lie past 2^64.
func (c *leafChecker) checkExtentCsum(k Key, item []byte) error {
	sector := uint64(c.sectorSize)
	if k.ObjectID != CsumObjectID || k.Offset&(sector-1) != 0 {
		return corrupt("checksum item", "key %s", k)
	}
	if c.csumSize <= 0 || len(item)%c.csumSize != 0 {
		return corrupt("checksum item", "%d bytes are no multiple of %d", len(item), c.csumSize)
	}
	length := uint64(len(item)/c.csumSize) * sector
	if k.Offset > math.MaxUint64-length {
		return corrupt("checksum item", "%d bytes from %d end past 2^64", length, k.Offset)
	}
	if k.Offset < c.csumEnd {
		return corrupt("checksum item", "starts at %d, the one before it ends at %d", k.Offset, c.csumEnd)
	}
	c.csumEnd = k.Offset + length
	return nil
}

func checkDevItem(k Key, item []byte) error {
	d, err := DecodeDevItem(item)
	if err != nil {
		return err
	}
	if k.ObjectID != DevItemsObjectID || uint64(d.DevID) != k.Offset {
		return corrupt("device item", "devid %d under key %s", d.DevID, k)
	}
	return nil
}

func (c *leafChecker) checkChunkItem(k Key, item []byte) error {
	if k.ObjectID != FirstChunkTreeObjectID {
		return corrupt("chunk item", "key %s", k)
	}
	_, err := decodeChunkHeader(item, Logical(k.Offset), c.sectorSize)
	return err
}
