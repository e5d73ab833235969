package fsread

import (
	"context"
	"fmt"
	"math"

	"github.com/btrexport/btrexport/fsread/btree"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
)

// openStripes finds the RAID stripe tree of a filesystem that has one.
func (fs *FS) openStripes(ctx context.Context) error {
	if fs.super.Incompat&ondisk.IncompatRaidStripeTree == 0 {
		return nil
	}
	ri, err := fs.rootItem(ctx, ondisk.TreeRaidStripe)
	if err != nil {
		return fmt.Errorf("RAID stripe tree: %w", err)
	}
	fs.stripes = fs.reader.Tree(ondisk.TreeRaidStripe, btree.Pointer{Logical: ri.Bytenr, Generation: ri.Generation, Level: ri.Level})
	return nil
}

// loadStripes gives the piece what the stripe tree says of n bytes at logical, if that is what maps them.
func (r *Read) loadStripes(ctx context.Context, p *piece, logical ondisk.Logical, n int) error {
	fs := r.file.fs
	p.Stripes = nil
	if !fs.vol.UsesStripeTree(logical) {
		return nil
	}
	first := len(r.stripes)
	var err error
	r.stripes, err = fs.appendStripes(ctx, &r.stripeCur, r.stripes, logical, uint64(n))
	p.Stripes = r.stripes[first:len(r.stripes):len(r.stripes)]
	return err
}

// appendStripes appends the items of the stripe tree that hold some of n bytes at logical. The item that
// holds the first of them may start in front of it; how long items are, the writes decided. What no item
// covers stays out. Errors: *btree.BlockError; btree.ErrNotCached; ondisk.ErrCorrupt for items that overlap.
func (fs *FS) appendStripes(ctx context.Context, cur *btree.Cursor, out []ondisk.StripeExtent, logical ondisk.Logical, n uint64) ([]ondisk.StripeExtent, error) {
	covered, end := logical, logical+ondisk.Logical(n)
	err := cur.Seek(ctx, fs.stripes, ondisk.Key{ObjectID: uint64(logical), Type: ondisk.TypeRaidStripe, Offset: math.MaxUint64})
	if err != nil {
		return out, err
	}
	more := cur.Valid()
	if !more {
		more, err = cur.Next(ctx)
	}
	for first := true; more && err == nil; more, err = cur.Next(ctx) {
		k := cur.Key()
		if ondisk.Logical(k.ObjectID) >= end {
			break
		}
		if k.Type != ondisk.TypeRaidStripe {
			continue
		}
		s, err := ondisk.DecodeStripeExtent(k, cur.Item(), fs.super.SectorSize)
		if err != nil {
			return out, err
		}
		if s.End() <= logical {
			continue
		}
		if !first && s.Logical < covered {
			return out, &ondisk.Error{Item: "RAID_STRIPE", Detail: fmt.Sprintf("logical %d overlaps another item", s.Logical)}
		}
		out = append(out, s)
		if first, covered = false, s.End(); covered >= end {
			break
		}
	}
	return out, err
}

// Copies gives every place where a logical address is stored; see [volume.Volume.Copies]. Where the stripe
// tree maps it, its blocks are read, so there are errors of that as well.
func (fs *FS) Copies(logical ondisk.Logical) ([]volume.Copy, error) {
	if !fs.vol.UsesStripeTree(logical) {
		return fs.vol.Copies(logical)
	}
	var cur btree.Cursor
	stripes, err := fs.appendStripes(fs.life, &cur, nil, logical, 1)
	if err != nil {
		return nil, fmt.Errorf("logical %d: RAID stripe tree: %w", logical, err)
	}
	return fs.vol.Copies(logical, stripes...)
}
