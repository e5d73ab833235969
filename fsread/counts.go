package fsread

import (
	"time"

	"github.com/btrexport/btrexport/fsread/cache"
	"github.com/btrexport/btrexport/fsread/codec"
)

// Counts is what a filesystem has counted since it was opened, for who watches it.
type Counts struct {
	Trees   CacheCounts // tree blocks
	Extents CacheCounts // inflated extents
	// Inflating is how long decoders have worked, one entry for each algorithm; on several cores at a time, more than
	// the time that has passed.
	Inflating [codec.Zstd]DecoderTime
}

// DecoderTime is how long the decoders of one algorithm have worked.
type DecoderTime struct {
	Algorithm string // zlib, lzo, zstd
	Took      time.Duration
}

// CacheCounts are those of one cache.
type CacheCounts struct {
	cache.Stats
	Misses uint64 // values that were asked for and had to be made, or waited for
}

// Counts gives what has been counted so far. It may be called at any time, also after Close.
func (fs *FS) Counts() Counts {
	var c Counts
	c.Trees.Stats, c.Trees.Misses = fs.reader.CacheStats()
	c.Extents = CacheCounts{Stats: fs.inflater.cache.Stats(), Misses: fs.inflater.misses.Load()}
	for i := range c.Inflating {
		k := codec.Kind(i + 1)
		c.Inflating[i] = DecoderTime{k.String(), time.Duration(fs.inflater.took[k].Load())}
	}
	return c
}
