package volume

import (
	"fmt"
	"slices"
	"sort"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/parity"
)

// stripeLen is the only stripe length that btrfs has ever accepted.
const stripeLen = ondisk.StripeLen

// maxCopies bounds the copies of a unit: RAID1C4 has the most.
const maxCopies = 4

// chunk is a mapped chunk: logical addresses [start, end) on the members of its stripes.
type chunk struct {
	ondisk.Chunk
	profile    ondisk.Profile
	start, end ondisk.Logical
	members    []*member    // one for each stripe; a member without a device where it is missing
	copies     int          // that are stored as such; parity is none. 0: what the chunk is can't be read
	code       *parity.Code // of RAID5 and RAID6; else nil
	scattered  bool         // the stripe tree says where its bytes lie, and not the stripes
}

// chunkMap is sorted by start and without overlap.
type chunkMap []*chunk

// find gives the chunk that holds l, nil when none does.
func (m chunkMap) find(l ondisk.Logical) *chunk {
	i := sort.Search(len(m), func(i int) bool { return m[i].end > l })
	if i == len(m) || m[i].start > l {
		return nil
	}
	return m[i]
}

// newChunkMap sorts and checks what the chunk tree held. lookup gives the member of a stripe.
func newChunkMap(entries []ondisk.ChunkEntry, lookup func(ondisk.Stripe) *member) (chunkMap, error) {
	m := make(chunkMap, 0, len(entries))
	codes := make(map[[2]int]*parity.Code)
	for _, e := range entries {
		c := &chunk{Chunk: e.Chunk, profile: e.Chunk.Profile(), start: e.Logical, end: e.Logical + ondisk.Logical(e.Chunk.Length)}
		c.copies = copiesOf(c.profile, len(c.Stripes))
		if c.parity() > 0 {
			if c.code = codes[c.shape()]; c.code == nil {
				var err error
				if c.code, err = parity.New(c.data(), c.parity()); err != nil {
					c.copies = 0
				}
				codes[c.shape()] = c.code
			}
		}
		c.members = make([]*member, len(c.Stripes))
		for i, s := range c.Stripes {
			c.members[i] = lookup(s)
		}
		m = append(m, c)
	}
	slices.SortFunc(m, func(a, b *chunk) int {
		if a.start < b.start {
			return -1
		}
		if a.start > b.start {
			return 1
		}
		return 0
	})
	for i := 1; i < len(m); i++ {
		if m[i].start < m[i-1].end {
			return nil, &ondisk.Error{Item: "chunk map", Detail: fmt.Sprintf("chunks at logical %d and %d overlap", m[i-1].start, m[i].start)}
		}
	}
	return m, nil
}

// copiesOf counts the places that hold each byte as it is: btrfs_num_copies without parity.
func copiesOf(p ondisk.Profile, stripes int) int {
	switch p {
	case ondisk.Single, ondisk.RAID0, ondisk.RAID5, ondisk.RAID6:
		return 1
	case ondisk.RAID10:
		return 2
	case ondisk.DUP, ondisk.RAID1, ondisk.RAID1C3, ondisk.RAID1C4:
		return stripes
	}
	return 0
}

// extent gives how many bytes from off, the offset inside the chunk, lie in one piece on one
// device: to the end of the stripe for striped profiles, else to the end of the chunk.
func (c *chunk) extent(off uint64) uint64 {
	switch c.profile {
	case ondisk.RAID0, ondisk.RAID10, ondisk.RAID5, ondisk.RAID6:
		return min(stripeLen-off%stripeLen, c.Length-off)
	}
	return c.Length - off
}

// locate gives the stripe that holds copy m of off, and the place on its device. With nr the
// stripe number off/64K (btrfs_map_block):
//
//	SINGLE               stripe 0                      off
//	DUP RAID1 C3 C4      stripe m-1                    off
//	RAID0   n columns    stripe nr%n                   nr/n*64K + off%64K
//	RAID10  f = n/2      stripe (nr%f)*2 + m-1         nr/f*64K + off%64K
//	RAID5/6 d columns    column nr%d of row nr/d       nr/d*64K + off%64K
//
// Precondition: off < Length, 1 <= m <= copies.
func (c *chunk) locate(off uint64, m Mirror) (*member, devio.Physical) {
	nr, in := off/stripeLen, off%stripeLen
	i, phys := 0, off
	switch c.profile {
	case ondisk.DUP, ondisk.RAID1, ondisk.RAID1C3, ondisk.RAID1C4:
		i = int(m) - 1
	case ondisk.RAID0:
		n := uint64(len(c.Stripes))
		i, phys = int(nr%n), nr/n*stripeLen+in
	case ondisk.RAID10:
		f := uint64(len(c.Stripes) / 2)
		i, phys = int(nr%f)*2+int(m)-1, nr/f*stripeLen+in
	case ondisk.RAID5, ondisk.RAID6:
		d, phys := c.column(off, int(nr%uint64(c.data())))
		return d, phys
	}
	return c.members[i], c.Stripes[i].Physical + devio.Physical(phys)
}

// parity gives the number of parity columns of a row.
func (c *chunk) parity() int {
	switch c.profile {
	case ondisk.RAID5:
		return 1
	case ondisk.RAID6:
		return 2
	}
	return 0
}

// data gives the number of data columns of a row of RAID5 or RAID6.
func (c *chunk) data() int { return len(c.Stripes) - c.parity() }

func (c *chunk) shape() [2]int { return [2]int{c.data(), c.parity()} }

// column gives where column i of the row of off lies on its device, at the same place in its stripe as off in
// its own. Columns are the data in order, then P, then Q; each row begins one stripe further (btrfs_map_block).
// Precondition: RAID5 or RAID6, off < Length.
func (c *chunk) column(off uint64, i int) (*member, devio.Physical) {
	row := off / stripeLen / uint64(c.data())
	s := int((row + uint64(i)) % uint64(len(c.Stripes)))
	return c.members[s], c.Stripes[s].Physical + devio.Physical(row*stripeLen+off%stripeLen)
}

// neighbour gives the offset in the chunk of what data column i of the row of off holds at the place of off.
func (c *chunk) neighbour(off uint64, i int) uint64 {
	d := uint64(c.data())
	return (off/stripeLen/d*d+uint64(i))*stripeLen + off%stripeLen
}
