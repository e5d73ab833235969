package fsread

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread/btree"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
)

// Options for Open; the zero value is useful.
type Options struct {
	Degraded bool // open though devices are missing
	// Changing says that the kernel has the filesystem mounted read-write: blocks of the generation
	// that was opened may be overwritten, so bytes that no checksum vouches for are refused.
	Changing bool
	// IgnoreLog shows the last commit of a filesystem that was not unmounted, without what was synced
	// after it. With Changing that is so in any case: such a log is still being written.
	IgnoreLog bool
	// SlowRead is how long a device may take until the next copy or the parity is asked as well; 0 means a second,
	// and less waits for every device as long as it takes.
	SlowRead time.Duration
	Root     RootChoice // which state to open; zero: the last commit
	// CacheBytes bounds the caches of tree blocks and of inflated extents together; 0 means 64 MiB, and at
	// least 4 MiB is taken.
	CacheBytes int64
	Pool       *devio.Pool                    // for every buffer; nil: one of its own
	Stats      volume.Stats                   // nil: none
	Device     func(devid uint64) devio.Stats // statistics of each device, asked once; nil: none
	Log        *slog.Logger                   // nil: silent
}

const (
	maxOpens     = 8 // of a filesystem that changes: it may commit every few milliseconds
	defaultCache = 64 << 20
	minCache     = 4 << 20
	ownPoolBytes = 16 << 20
	defaultSlow  = time.Second
)

// FS is one filesystem at one committed generation.
type FS struct {
	vol     *volume.Volume
	set     *volume.Set
	super   *ondisk.Superblock // with the roots that were opened; set.Super has the last commit's
	refuse  error              // why bytes without a checksum are not served; nil: they are
	moved   atomic.Bool        // the devices were found to have a later state
	reader  *btree.Reader
	roots   btree.Tree // the tree of tree roots
	csums   btree.Tree
	logs    logs
	stripes btree.Tree // the RAID stripe tree, where the superblock has its bit
	pool    *devio.Pool
	own     bool // pool is ours to close
	opts    Options
	copied  int // which copy of the superblock was used
	devs    []volume.Device

	life     context.Context // ends with Close: for reads that must wait for tree blocks
	end      context.CancelCauseFunc
	planners crew[*Read] // plan reads whose tree blocks are not cached
	lookers  crew[look]  // read tree blocks that streams are coming to
	inflater *inflater
	submit   sync.Pool // of *submission
}

// Open assembles a filesystem from its devices, in any order. On success the FS owns them. Errors:
// volume.ErrNoFilesystem, volume.ErrDevices, *volume.MissingError, ondisk.ErrUnsupported for what is
// refused by name, *btree.BlockError for a tree that no copy can serve.
func Open(ctx context.Context, devs []volume.Device, o Options) (*FS, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	fs := &FS{opts: o, pool: o.Pool, devs: devs}
	if fs.pool == nil {
		fs.pool, fs.own = devio.NewPool(ownPoolBytes), true
	}
	err := fs.open(ctx, devs)
	for try := 1; o.Changing && try < maxOpens && errors.As(err, new(*btree.BlockError)); try++ {
		// A commit between the reads of superblock and trees looks like this. The next superblock is newer.
		err = fs.open(ctx, devs)
	}
	if err != nil {
		if fs.own {
			fs.pool.Close()
		}
		return nil, err
	}
	fs.life, fs.end = context.WithCancelCause(context.Background())
	fs.planners.limit, fs.planners.work = maxPlanners, fs.planWaiting
	fs.lookers.limit, fs.lookers.work = maxLookers, fs.lookWaiting
	fs.inflater = newInflater(fs, fs.cacheBytes()-fs.treeCache())
	fs.submit.New = func() any { return &submission{} }
	return fs, nil
}

func (fs *FS) open(ctx context.Context, devs []volume.Device) error {
	set, err := volume.Scan(ctx, fs.pool, devs, fs.opts.Degraded)
	if err != nil {
		if set != nil {
			return fmt.Errorf("filesystem %s: %w", nameOf(set.Super), err)
		}
		return err
	}
	fs.set, fs.copied = set, set.Copy
	fs.report(set)
	if fs.opts.Device != nil {
		for _, f := range set.Devices {
			f.Dev.Observe(fs.opts.Device(uint64(f.Super.Dev.DevID)))
		}
	}
	states, err := choose(set, fs.opts.Root)
	for i := range states {
		if err = fs.assemble(ctx, set, &states[i]); err == nil {
			return nil
		}
	}
	return fmt.Errorf("filesystem %s: %w", nameOf(set.Super), fs.explain(ctx, set, states, err))
}

// report logs what was odd about the superblocks.
func (fs *FS) report(set *volume.Set) {
	for _, why := range set.Ignored {
		fs.opts.Log.Warn("device ignored", "why", why)
	}
	for _, f := range set.Devices {
		if f.Copy > 0 {
			fs.opts.Log.Warn("primary superblock is not usable, a mirror serves", "device", f.Dev.Name(), "err", errors.Join(f.Ruined...))
		}
	}
}

// reportStale logs whose copies serve only where a checksum vouches for them.
func (fs *FS) reportStale() {
	for _, d := range fs.vol.Devices() {
		if d.Stale {
			fs.opts.Log.Warn("device missed writes, or was a seed and written to: its copies are asked last", "device", d.Name,
				"devid", uint64(d.DevID), "generation", d.Generation, "newest", fs.set.Super.Generation)
		}
	}
}

// assemble reads the chunk tree through the chunks of the superblock, then the roots through all chunks.
func (fs *FS) assemble(ctx context.Context, set *volume.Set, r *rootAt) error {
	fs.set, fs.super, fs.refuse = set, r.super.At(r.Roots), nil
	if err := fs.super.Gate(); err != nil {
		return err
	}
	vol, own, err := fs.mapChunks(ctx, set, r)
	if err != nil {
		return err
	}
	if own != nil {
		fs.opts.Log.Warn("the chunk tree of this generation can't be read, the last commit's serves", "generation", r.Generation, "err", own)
	}
	fs.vol = vol
	switch {
	case !r.same(set.Super.Roots()):
		fs.super.LogRoot = 0 // of the last commit, or of one that was never the last
		fs.refuse = fmt.Errorf("%w: generation %d is not the last, %d", ErrUnverifiable, r.Generation, set.Super.Generation)
	case fs.opts.Changing:
		fs.refuse = fmt.Errorf("%w: the filesystem is mounted read-write", ErrUnverifiable)
	}
	fs.reportStale()
	fs.reader = btree.NewReader(fs.vol, fs.treeCache())
	fs.roots = fs.reader.Tree(ondisk.TreeRoot, rootPointer(r.Roots))
	if err := fs.openCsums(ctx); err != nil {
		return err
	}
	if err := fs.openStripes(ctx); err != nil {
		return err
	}
	return fs.openLogs(ctx)
}

func (fs *FS) slowRead() time.Duration {
	if fs.opts.SlowRead == 0 {
		return defaultSlow
	}
	return max(fs.opts.SlowRead, 0)
}

func (fs *FS) cacheBytes() int64 {
	if fs.opts.CacheBytes == 0 {
		return defaultCache
	}
	return max(fs.opts.CacheBytes, minCache)
}

// treeCache is the part of the cache that tree blocks have for themselves, so that a stream of extents
// does not drive out the roots.
func (fs *FS) treeCache() int64 { return max(fs.cacheBytes()/4, minCache/2) }

func readChunkTree(ctx context.Context, boot *volume.Volume) (devices []ondisk.DevItem, chunks []ondisk.ChunkEntry, err error) {
	sb := boot.Super()
	t := btree.NewReader(boot, minCache).Tree(ondisk.TreeChunk,
		btree.Pointer{Logical: sb.ChunkRoot, Generation: sb.ChunkRootGeneration, Level: sb.ChunkRootLevel})
	err = t.All(ctx, ondisk.Key{}, func(k ondisk.Key, item []byte) (bool, error) {
		switch k.Type {
		case ondisk.TypeDevItem:
			d, err := ondisk.DecodeDevItem(item)
			devices = append(devices, d)
			return true, err
		case ondisk.TypeChunkItem:
			c, err := ondisk.DecodeChunk(item, ondisk.Logical(k.Offset), sb.SectorSize)
			chunks = append(chunks, ondisk.ChunkEntry{Logical: ondisk.Logical(k.Offset), Chunk: c})
			return true, err
		}
		return true, nil
	})
	return devices, chunks, err
}

// openCsums finds the checksum tree. A filesystem that never held data has an empty one, never none.
func (fs *FS) openCsums(ctx context.Context) error {
	ri, err := fs.rootItem(ctx, ondisk.TreeCsum)
	if err != nil {
		return fmt.Errorf("checksum tree: %w", err)
	}
	fs.csums = fs.reader.Tree(ondisk.TreeCsum, btree.Pointer{Logical: ri.Bytenr, Generation: ri.Generation, Level: ri.Level})
	return nil
}

// Close ends reads that wait for tree blocks, closes the devices, which completes every read, and
// waits for both. Lent payloads stay valid until they are released.
func (fs *FS) Close() error {
	fs.end(ErrClosed)
	errs := make([]error, len(fs.devs))
	var closing sync.WaitGroup
	for i, d := range fs.devs { // together: one that hangs takes its time
		closing.Go(func() { errs[i] = d.Close() })
	}
	closing.Wait()
	fs.planners.close()
	fs.lookers.close()
	fs.inflater.close()
	if fs.own {
		fs.pool.Close()
	}
	return errors.Join(errs...)
}

// Pool is where the buffers of reads come from.
func (fs *FS) Pool() *devio.Pool { return fs.pool }

func nameOf(sb *ondisk.Superblock) string {
	if sb.Label != "" {
		return sb.Label
	}
	return sb.FSID.String()
}
