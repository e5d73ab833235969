package fsread

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/btrexport/btrexport/fsread/btree"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
)

// maxProbes bounds how many older states are tried when the last one can't be opened.
const maxProbes = 16

// RootChoice picks the state that a filesystem is opened at; the zero value is the last commit. Any other
// state is what superblocks still know of: its blocks are free to be overwritten, so a read may fail, and
// bytes without a checksum are refused.
type RootChoice struct {
	Generation uint64 // of the root tree: any superblock's own, or one in its backup slots; 0: not asked for
	Slot       int    // 1 + a backup slot of the superblock; 0: not asked for
}

// rootAt is the roots of one generation, and who knows of them.
type rootAt struct {
	ondisk.Roots
	super  *ondisk.Superblock
	device string // "" for the superblock that speaks for the filesystem
	copied int    // which copy of the superblock
	slot   int    // of the superblock; -1: its own roots
}

// RootInfo is a state that superblocks know of, and whether it can be read now.
type RootInfo struct {
	Generation      uint64
	Slot            int    // backup slot of a superblock; -1: the superblock's own roots
	Device          string // whose superblock it is; "" for the one that speaks for the filesystem
	SuperCopy       int    // of that device; 0 is the primary
	Root, ChunkRoot ondisk.Logical
	Open            bool  // the filesystem was opened at it
	Err             error // why the root tree's topmost block can't be read; nil: it can
	ChunkErr        error // why its chunk tree can't be read; the last commit's is used then
}

// NoRootError is a state that no superblock knows of.
type NoRootError struct {
	Want RootChoice
	Have []uint64 // generations, the newest first
	Err  error    // what is wrong with the slot that was asked for
}

func (e *NoRootError) Error() string {
	var have []string
	for _, g := range e.Have[:min(len(e.Have), maxProbes)] {
		have = append(have, fmt.Sprint(g))
	}
	there := "there are " + strings.Join(have, ", ")
	if len(have) == 1 {
		there = "there is " + have[0] + " alone"
	}
	if e.Err != nil {
		return fmt.Sprintf("backup root %d: %v (btrexport info lists those that can be opened)", e.Want.Slot-1, e.Err)
	}
	return fmt.Sprintf("no root of generation %d (%s: see btrexport info)", e.Want.Generation, there)
}

// Unwrap makes it ErrNotExist.
func (e *NoRootError) Unwrap() error { return ErrNotExist }

// RuinedError is a state whose root tree or chunk tree can't be read.
type RuinedError struct {
	Err   error
	Older uint64     // the newest generation that can be opened; 0: none
	Roots []RootInfo // all that there are
}

func (e *RuinedError) Error() string {
	if e.Older == 0 {
		return e.Err.Error()
	}
	return fmt.Sprintf("%v (another state can be opened: --generation %d)", e.Err, e.Older)
}

func (e *RuinedError) Unwrap() error { return e.Err }

// same says whether both are one state: an address is written once in a generation.
func (r *rootAt) same(o ondisk.Roots) bool {
	return r.Root == o.Root && r.Generation == o.Generation && r.RootLevel == o.RootLevel
}

// rootsOf lists what a superblock knows: its own roots, then its usable slots.
func rootsOf(sb *ondisk.Superblock, device string, copied int) []rootAt {
	out := []rootAt{{Roots: sb.Roots(), super: sb, device: device, copied: copied, slot: -1}}
	for slot := range ondisk.BackupSlots {
		if r, err := sb.Backup(slot); err == nil {
			out = append(out, rootAt{Roots: r, super: sb, device: device, copied: copied, slot: slot})
		}
	}
	return out
}

// allRoots lists every state that superblocks of the filesystem's own devices know of: first all that the
// chosen one does, then what others add to it.
func allRoots(set *volume.Set) []rootAt {
	out := rootsOf(set.Super, "", set.Copy)
	for _, f := range set.Devices {
		if f.Seed {
			continue
		}
		for _, c := range f.Copies {
			for _, r := range rootsOf(c.Superblock, f.Dev.Name(), c.Index) {
				if !slices.ContainsFunc(out, func(o rootAt) bool { return r.same(o.Roots) && r.ChunkRoot == o.ChunkRoot }) {
					out = append(out, r)
				}
			}
		}
	}
	return out
}

// generations gives those of all states, the newest first, each once.
func generations(all []rootAt) []uint64 {
	var out []uint64
	for _, r := range all {
		out = append(out, r.Generation)
	}
	slices.Sort(out)
	slices.Reverse(out)
	return slices.Compact(out)
}

// choose gives the states that fit what was asked for, the likeliest first. Error: *NoRootError.
func choose(set *volume.Set, want RootChoice) ([]rootAt, error) {
	all := allRoots(set)
	if want == (RootChoice{}) {
		return all[:1], nil
	}
	if want.Slot > 0 {
		err := fmt.Errorf("there are slots 0 to %d", ondisk.BackupSlots-1)
		if want.Slot <= ondisk.BackupSlots {
			_, err = set.Super.Backup(want.Slot - 1)
		}
		if err != nil {
			return nil, &NoRootError{Want: want, Have: generations(all), Err: err}
		}
		all = slices.DeleteFunc(all, func(r rootAt) bool { return r.super != set.Super || r.slot != want.Slot-1 })
	}
	fit := slices.DeleteFunc(slices.Clone(all), func(r rootAt) bool { return want.Generation > 0 && r.Generation != want.Generation })
	if len(fit) == 0 {
		return nil, &NoRootError{Want: want, Have: generations(all)}
	}
	return fit, nil
}

// mapChunks gives the volume of a state: by its own chunk tree, or by the last commit's where that can't be
// read. The newer one still maps all but what was balanced away since. own is what was wrong with its own.
func (fs *FS) mapChunks(ctx context.Context, set *volume.Set, r *rootAt) (vol *volume.Volume, own, err error) {
	sb := r.super.At(r.Roots)
	o := volume.Options{Degraded: fs.opts.Degraded, Stats: fs.opts.Stats, SlowRead: fs.slowRead()}
	if r.same(set.Super.Roots()) {
		o.Judge = judge{fs} // the checksums of an older state say nothing of what parity covers now
	}
	boot, err := set.At(sb).Bootstrap(fs.pool, o)
	if err != nil {
		return nil, err, err
	}
	devices, chunks, err := readChunkTree(ctx, boot)
	if err != nil && errors.As(err, new(*btree.BlockError)) && !r.same(set.Super.Roots()) {
		own = err
		newest, berr := set.Bootstrap(fs.pool, o)
		if berr != nil {
			return nil, own, own
		}
		if devices, chunks, berr = readChunkTree(ctx, newest); berr == nil {
			err = nil
		}
	}
	if err != nil {
		return nil, err, chunkTreeError(set, boot, err)
	}
	vol, err = boot.WithChunks(devices, chunks)
	return vol, own, err
}

// chunkTreeError names the devices that reading the chunk tree would take.
func chunkTreeError(set *volume.Set, boot *volume.Volume, err error) error {
	missing := boot.Missing()
	if len(missing) == 0 {
		return err
	}
	return fmt.Errorf("%d of %d devices given, the chunk tree can't be read without %s (add -d for each): %w",
		len(set.Devices), set.Super.NumDevices, strings.Join(missing, " and "), err)
}

// scratch is an FS to try states with, of which nobody is told.
func (fs *FS) scratch() *FS {
	return &FS{pool: fs.pool, opts: Options{Degraded: fs.opts.Degraded, SlowRead: fs.opts.SlowRead, CacheBytes: minCache, Log: slog.New(slog.DiscardHandler)}}
}

// Roots lists the states that superblocks know of, and tries whether each can be read: its chunk tree, and
// the root tree's topmost block. What lies below is not looked at. Error: of ctx alone.
func (fs *FS) Roots(ctx context.Context) ([]RootInfo, error) {
	return fs.tryRoots(ctx, fs.set, fs.super.Roots())
}

func (fs *FS) tryRoots(ctx context.Context, set *volume.Set, open ondisk.Roots) ([]RootInfo, error) {
	var out []RootInfo
	for _, r := range allRoots(set) {
		i := RootInfo{Generation: r.Generation, Slot: r.slot, Device: r.device, SuperCopy: r.copied, Root: r.Root, ChunkRoot: r.ChunkRoot, Open: r.same(open)}
		i.ChunkErr, i.Err = fs.scratch().tryRoot(ctx, set, &r)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		out = append(out, i)
	}
	slices.SortStableFunc(out, func(a, b RootInfo) int { return cmp.Compare(b.Generation, a.Generation) })
	return out, nil
}

func (fs *FS) tryRoot(ctx context.Context, set *volume.Set, r *rootAt) (chunks, root error) {
	vol, chunks, err := fs.mapChunks(ctx, set, r)
	if err != nil {
		return chunks, err
	}
	return chunks, btree.NewReader(vol, minCache).Tree(ondisk.TreeRoot, rootPointer(r.Roots)).ReadRoot(ctx)
}

func rootPointer(r ondisk.Roots) btree.Pointer {
	return btree.Pointer{Logical: r.Root, Generation: r.Generation, Level: r.RootLevel}
}

// explain adds to the error of a state whose root or chunk tree can't be read what else can be opened. A
// filesystem that changes is left alone: its next commit is better than its last but one. So is one of which
// nothing but devices is missing: they are what it takes.
func (fs *FS) explain(ctx context.Context, set *volume.Set, tried []rootAt, err error) error {
	var block *btree.BlockError
	if fs.opts.Changing || ctx.Err() != nil || !errors.As(err, &block) || (block.Tree != ondisk.TreeRoot && block.Tree != ondisk.TreeChunk) || onlyMissing(err) {
		return err
	}
	e := &RuinedError{Err: err}
	var cause error
	if e.Roots, cause = fs.tryRoots(ctx, set, ondisk.Roots{}); cause != nil {
		return cause
	}
	others := allRoots(set)
	slices.SortStableFunc(others, func(a, b rootAt) int { return cmp.Compare(b.Generation, a.Generation) })
	for n, r := range others {
		if n < maxProbes && !slices.ContainsFunc(tried, func(t rootAt) bool { return t.same(r.Roots) }) && fs.scratch().assemble(ctx, set, &r) == nil {
			e.Older = r.Generation
			break
		}
	}
	return e
}

// onlyMissing says whether no copy failed that was there.
func onlyMissing(err error) bool {
	var lost *volume.Lost
	return errors.As(err, &lost) && len(lost.Copies) > 0 && !slices.ContainsFunc(lost.Copies, func(c *volume.CopyError) bool {
		return !errors.Is(c, volume.ErrMissing)
	})
}
