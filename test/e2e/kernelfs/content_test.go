package kernelfs

import (
	"bytes"
	"encoding/binary"
	"testing"

	"pgregory.net/rapid"
)

// Fill must give the same bytes whatever the range it is asked for.
func TestFillAgreesWithBlocks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Content{Seed: rapid.Uint64().Draw(t, "seed"), Noise: rapid.Bool().Draw(t, "noise")}
		id := rapid.Uint64().Draw(t, "id")
		off := rapid.Int64Range(0, 1<<40).Draw(t, "off")
		got := make([]byte, rapid.IntRange(0, 3*BlockSize).Draw(t, "len"))
		c.Fill(id, off, got)
		for i := range got {
			at := off + int64(i)
			var block [BlockSize]byte
			if i == 0 || at%BlockSize == 0 || i == len(got)-1 {
				c.Block(id, uint64(at/BlockSize), block[:])
				if want := block[at%BlockSize]; got[i] != want {
					t.Fatalf("byte %d: got %#x, want %#x", at, got[i], want)
				}
			}
		}
	})
}

// Every block and every line of 512 bytes must differ from all others, or a reader that mixes
// them up goes unnoticed.
func TestLinesAreUnique(t *testing.T) {
	for _, noise := range []bool{false, true} {
		seen := make(map[string][3]int)
		for id := range 8 {
			for i := range 64 {
				var block [BlockSize]byte
				Content{Seed: 3, Noise: noise}.Block(uint64(id), uint64(i), block[:])
				for line := 0; line < BlockSize; line += lineSize {
					where := [3]int{id, i, line}
					key := string(block[line : line+lineSize])
					if other, ok := seen[key]; ok {
						t.Fatalf("noise %v: content, block, line %v equals %v", noise, where, other)
					}
					seen[key] = where
				}
			}
		}
	}
}

func TestBlockDescribesItself(t *testing.T) {
	var a, b [BlockSize]byte
	Content{Seed: 1}.Block(42, 1<<33, a[:])
	if got := string(a[:4]); got != magic {
		t.Errorf("magic: got %q", got)
	}
	if id, i := binary.LittleEndian.Uint64(a[8:]), binary.LittleEndian.Uint64(a[16:]); id != 42 || i != 1<<33 {
		t.Errorf("got content %d block %d, want 42 and %d", id, i, uint64(1)<<33)
	}
	if Content.Block(Content{Seed: 2}, 42, 1<<33, b[:]); bytes.Equal(a[:], b[:]) {
		t.Error("seeds 1 and 2 give the same block")
	}
}
