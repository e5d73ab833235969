package fsread

import (
	"testing"

	"github.com/btrexport/btrexport/fsread/fsreadtest"
)

// TestCounts reads a file of compressed extents twice: once they are inflated, once they are found in the cache.
func TestCounts(t *testing.T) {
	f := openPlain(t, fsreadtest.Load(t, "zstd"))
	read := func() {
		t.Helper()
		if err := eachFile(f, func(_ string, file *File) error {
			if file.size != 200001 { // all of it compressed, two extents
				return nil
			}
			_, err := file.ReadAt(t.Context(), make([]byte, file.size), 0)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	read()
	first := f.Counts()
	read()
	second := f.Counts()
	switch {
	case first.Extents.Misses == 0 || first.Trees.Misses == 0:
		t.Errorf("after the first read no misses: %+v", first)
	case first.Extents.Bytes < 200001 || first.Trees.Bytes == 0:
		t.Errorf("after the first read nothing is cached: %+v", first)
	case first.Inflating[2].Took <= 0 || first.Inflating[2].Algorithm != "zstd" || first.Inflating[1].Took != 0:
		t.Errorf("times of decoders: %v", first.Inflating)
	case second.Extents.Misses != first.Extents.Misses || second.Trees.Misses != first.Trees.Misses || second.Inflating != first.Inflating:
		t.Errorf("the second read was not answered by the caches: %+v, then %+v", first, second)
	case second.Extents.Hits < first.Extents.Hits+2 || second.Trees.Hits <= first.Trees.Hits:
		t.Errorf("the second read's hits: %+v, then %+v", first, second)
	}
}
