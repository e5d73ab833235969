package btree

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/btrexport/btrexport/fsread/cache"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
)

// ErrNotCached is the answer of a Cursor that may not wait, when a block would have to be read.
var ErrNotCached = errors.New("tree block is not cached")

// Pointer is what a parent, a root item or the superblock says about a block.
type Pointer struct {
	Logical    ondisk.Logical
	Generation uint64
	Level      uint8
}

// Reader reads and caches tree blocks of one filesystem. It may be used concurrently.
type Reader struct {
	vol    *volume.Volume
	expect ondisk.Expect // what holds for every block: filesystem id, sizes, checksum
	csum   int           // bytes of a data checksum
	cache  *cache.Cache[blockKey, ondisk.Block]
	misses atomic.Uint64 // blocks that were asked for and had to be read, or waited for

	mu      sync.Mutex
	flights map[blockKey]*flight // guarded by mu
}

// blockKey tells blocks apart. Owner is among it so that one tree's expectation never answers for another's.
type blockKey struct {
	Pointer
	owner uint64
}

// flight is a block being read: done is closed when block and err are there.
type flight struct {
	done  chan struct{}
	block ondisk.Block
	err   error
}

// NewReader gives a reader of vol whose cache holds at most cacheBytes.
func NewReader(vol *volume.Volume, cacheBytes int64) *Reader {
	sb := vol.Super()
	return &Reader{
		vol: vol,
		expect: ondisk.Expect{FSID: sb.TreeFSID(), Seeds: vol.SeedFSIDs(), Csum: sb.CsumType, SectorSize: sb.SectorSize, NodeSize: sb.NodeSize,
			MaxGeneration: sb.Generation},
		csum:    sb.CsumType.Size(),
		cache:   cache.New[blockKey, ondisk.Block](cacheBytes),
		flights: make(map[blockKey]*flight),
	}
}

// BlockError is a tree block that could not be read.
type BlockError struct {
	Tree    uint64
	Logical ondisk.Logical
	// Next is where the tree goes on: items whose key is at least Next lie in other blocks. HasNext: there are such.
	Next    ondisk.Key
	HasNext bool
	Err     error
}

func blockError(tree uint64, want *ondisk.Expect, err error) error {
	return &BlockError{Tree: tree, Logical: want.Logical, Next: want.Limit, HasNext: want.HasLimit, Err: err}
}

func (e *BlockError) Error() string {
	return fmt.Sprintf("tree %d block at logical %d: %v", int64(e.Tree), e.Logical, e.Err)
}

func (e *BlockError) Unwrap() error { return e.Err }

// checker is the Verifier of one block.
type checker struct {
	expect ondisk.Expect
	csum   int
}

func (c *checker) VerifyUnit(_ int, b []byte) error {
	if err := c.expect.Check(b); err != nil {
		return err
	}
	if blk := ondisk.Block(b); blk.Level() == 0 {
		return ondisk.CheckLeafItems(blk, c.expect.SectorSize, c.csum)
	}
	return nil
}

// block gives the block of a tree that want describes. wait says whether it may be read when it is not cached.
func (r *Reader) block(ctx context.Context, tree uint64, want *ondisk.Expect, wait bool) (ondisk.Block, error) {
	k := blockKey{Pointer{want.Logical, want.Generation, want.Level}, want.Owner}
	b, ok := r.cache.Get(k)
	if !ok {
		if !wait {
			return nil, ErrNotCached
		}
		var err error
		if b, err = r.load(ctx, k, want); err != nil {
			return nil, blockError(tree, want, err)
		}
	}
	if err := placed(b, want); err != nil {
		return nil, blockError(tree, want, err)
	}
	return b, nil
}

// placed holds a block that another parent had read against what this parent says of its keys.
func placed(b ondisk.Block, want *ondisk.Expect) error {
	n := b.Len()
	switch {
	case want.HasFirstKey && (n == 0 || b.Key(0) != want.FirstKey):
		return &ondisk.Error{Item: "tree block", Detail: fmt.Sprintf("logical %d: first key is not its parent's %s", want.Logical, want.FirstKey)}
	case want.HasLimit && n > 0 && b.Key(n-1).Compare(want.Limit) >= 0:
		return &ondisk.Error{Item: "tree block", Detail: fmt.Sprintf("logical %d: last key is not below its parent's next %s", want.Logical, want.Limit)}
	}
	return nil
}

// load reads a block once for all who want it at this moment. The read belongs to none of them: a
// context that ends stops one's waiting alone.
func (r *Reader) load(ctx context.Context, k blockKey, want *ondisk.Expect) (ondisk.Block, error) {
	r.mu.Lock()
	f, ok := r.flights[k]
	if !ok {
		if b, cached := r.cache.Get(k); cached { // a read ended since the caller looked
			r.mu.Unlock()
			return b, nil
		}
		f = &flight{done: make(chan struct{})}
		r.flights[k] = f
	}
	r.mu.Unlock()
	r.misses.Add(1)
	if !ok {
		r.vol.StartUnit(want.Logical, int(r.expect.NodeSize), &checker{expect: *want, csum: r.csum}, func(b []byte, err error) {
			if err == nil {
				r.cache.Put(k, b, len(b))
			}
			r.mu.Lock()
			delete(r.flights, k)
			r.mu.Unlock()
			f.block, f.err = b, err
			close(f.done)
		})
	}
	select {
	case <-f.done:
		return f.block, f.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// CacheBytes is what the cached blocks take.
func (r *Reader) CacheBytes() int64 { return r.cache.Bytes() }

// CacheStats counts the blocks that were asked for: those that the cache had, and those that had to be waited for.
func (r *Reader) CacheStats() (stats cache.Stats, misses uint64) {
	return r.cache.Stats(), r.misses.Load()
}
