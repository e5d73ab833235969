package ondisktest

import (
	"encoding/binary"
	"fmt"

	"github.com/btrexport/btrexport/fsread/csum"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

var le = binary.LittleEndian

// Bytes in front of the items of a tree block, of one item's header, and of one pointer.
const (
	HeaderSize = 101
	ItemSize   = 25
	PtrSize    = 33
)

// Header is what Leaf and Node write in front of a tree block; the level of a leaf is 0 whatever it says.
type Header struct {
	FSID       ondisk.UUID
	Bytenr     ondisk.Logical
	Generation uint64
	Owner      uint64
	Level      uint8
	NodeSize   uint32
	Csum       csum.Type
}

// Item is a key and its payload.
type Item struct {
	Key  ondisk.Key
	Data []byte
}

// Ptr is a node's pointer to a child.
type Ptr struct {
	Key        ondisk.Key
	Block      ondisk.Logical
	Generation uint64
}

// Leaf returns a sealed leaf with the items in the order given.
func Leaf(h Header, items ...Item) []byte {
	h.Level = 0
	b := header(h, len(items))
	end := len(b)
	for i, it := range items {
		end -= len(it.Data)
		at := HeaderSize + i*ItemSize
		if end < HeaderSize+len(items)*ItemSize {
			panic(fmt.Sprintf("ondisktest: item %d of %d does not fit into a leaf of %d bytes", i, len(items), len(b)))
		}
		copy(b[end:], it.Data)
		putKey(b[at:], it.Key)
		le.PutUint32(b[at+17:], uint32(end-HeaderSize))
		le.PutUint32(b[at+21:], uint32(len(it.Data)))
	}
	Seal(b, h.Csum)
	return b
}

// Node returns a sealed node with the pointers in the order given.
func Node(h Header, ptrs ...Ptr) []byte {
	b := header(h, len(ptrs))
	for i, p := range ptrs {
		at := HeaderSize + i*PtrSize
		putKey(b[at:], p.Key)
		le.PutUint64(b[at+17:], uint64(p.Block))
		le.PutUint64(b[at+25:], p.Generation)
	}
	Seal(b, h.Csum)
	return b
}

func header(h Header, n int) []byte {
	b := make([]byte, h.NodeSize)
	copy(b[32:], h.FSID[:])
	le.PutUint64(b[48:], uint64(h.Bytenr))
	le.PutUint64(b[56:], 1|1<<56) // written, backref revision 1 (mixed)
	le.PutUint64(b[80:], h.Generation)
	le.PutUint64(b[88:], h.Owner)
	le.PutUint32(b[96:], uint32(n))
	b[100] = h.Level
	return b
}

// Seal stores the checksum of a superblock or tree block, after it was changed.
func Seal(b []byte, t csum.Type) {
	var sum [csum.MaxSize]byte
	t.Sum(&sum, b[csum.MaxSize:])
	copy(b, sum[:])
}

func putKey(b []byte, k ondisk.Key) {
	le.PutUint64(b, k.ObjectID)
	b[8] = k.Type
	le.PutUint64(b[9:], k.Offset)
}
