package volume

import (
	"sort"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// A filesystem with a RAID stripe tree writes data wherever a device has room, and its tree says where. Each
// item is like a small chunk of its own: one stride is the only copy, several are copies of the same bytes.
// Its chunk's stripes then say nothing of an address, not even for ranges that no item covers.

// useStripeTree marks the chunks whose addresses the stripe tree maps (btrfs_need_stripe_tree_update).
func (v *Volume) useStripeTree() {
	v.byID = make(map[devio.DevID]*member, len(v.members))
	for _, m := range v.members {
		v.byID[m.id] = m
	}
	for _, c := range v.chunks {
		if !c.IsData() || c.IsMetadata() {
			continue
		}
		switch c.profile {
		case ondisk.DUP, ondisk.RAID0, ondisk.RAID1, ondisk.RAID1C3, ondisk.RAID1C4, ondisk.RAID10:
			c.scattered = true
		}
	}
}

// UsesStripeTree says whether it is the stripe tree that maps the chunk which holds an address.
func (v *Volume) UsesStripeTree(logical ondisk.Logical) bool {
	if v.byID == nil {
		return false
	}
	c := v.chunks.find(logical)
	return c != nil && c.scattered
}

// scatter appends a chunk for each item, cut to the chunk that it starts in. What out holds beyond its length
// is used again.
func (v *Volume) scatter(out []chunk, items []ondisk.StripeExtent) []chunk {
	for i := range items {
		s := &items[i]
		whole := v.chunks.find(s.Logical)
		if whole == nil || !whole.scattered {
			continue
		}
		if len(out) < cap(out) {
			out = out[:len(out)+1]
		} else {
			out = append(out, chunk{})
		}
		c := &out[len(out)-1]
		c.start, c.end = s.Logical, min(s.End(), whole.end)
		c.Length = uint64(c.end - c.start)
		c.copies, c.Stripes, c.members = s.Count, c.Stripes[:0], c.members[:0]
		for _, d := range s.Strides[:s.Count] {
			c.Stripes = append(c.Stripes, ondisk.Stripe{Dev: d.Dev, Physical: d.Physical})
			c.members = append(c.members, v.member(d.Dev))
		}
		c.profile = c.likeProfile()
	}
	return out
}

// likeProfile gives the profile that has its bytes as an item has: copy m whole at stripe m-1.
func (c *chunk) likeProfile() ondisk.Profile {
	if c.copies == 1 {
		return ondisk.Single
	}
	for _, m := range c.members[1:] {
		if m != c.members[0] {
			return ondisk.RAID1
		}
	}
	return ondisk.DUP
}

// member gives the device of a devid; a missing one where the chunk tree knows none.
func (v *Volume) member(id devio.DevID) *member {
	if m := v.byID[id]; m != nil {
		return m
	}
	return &member{id: id}
}

// find gives what maps l: a chunk, or what the stripe tree says where that maps it. A chunk that the stripe
// tree should map and does not is given itself, and is not mappable.
func (r *Request) find(l ondisk.Logical) *chunk {
	c := r.vol.chunks.find(l)
	if c == nil || !c.scattered {
		return c
	}
	i := sort.Search(len(r.stripes), func(i int) bool { return r.stripes[i].end > l })
	if i == len(r.stripes) || r.stripes[i].start > l {
		return c
	}
	return &r.stripes[i]
}
