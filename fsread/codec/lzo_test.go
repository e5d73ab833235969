package codec_test

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"strings"
	"testing"

	lzo "github.com/anchore/go-lzo"

	"github.com/btrexport/btrexport/fsread/codec"
)

// TestLZOInstructions decodes blocks written by hand from the stream's description, and holds the test's own
// writer to them.
func TestLZOInstructions(t *testing.T) {
	tests := []struct {
		name, block, want string // hex, text
	}{
		{"end alone", "110000", ""},
		{"first byte 18: one literal", "12 61 110000", "a"},
		{"first byte 20: three literals", "14 616263 110000", "abc"},
		{"first byte 21: four literals", "15 61626364 110000", "abcd"},
		{"run of 4", "01 61626364 110000", "abcd"},
		{"run of 18 by the instruction", "0f 616263646566676869616263646566676869 110000", "abcdefghiabcdefghi"},
		{"run of 19 by a byte", "0001 61626364656667686961626364656667686961 110000", "abcdefghiabcdefghia"},
		{"2 bytes within 1 KiB after one literal", "12 61 0000 110000", "aaa"},
		{"2 bytes within 1 KiB, distance 2, after two", "13 6162 0400 110000", "abab"},
		{"3 bytes within 2 KiB, two trailing literals", "14 616263 4a 00 7879 110000", "abcabcxy"},
		{"8 bytes within 2 KiB, distance 1", "12 61 e0 00 110000", "aaaaaaaaa"},
		{"3 bytes within 16 KiB", "14 616263 21 0800 110000", "abcabc"},
		{"33 bytes within 16 KiB", "12 61 3f 0000 110000", strings.Repeat("a", 34)},
		{"34 bytes within 16 KiB by a byte", "12 61 20 01 0000 110000", strings.Repeat("a", 35)},
		{"289 bytes by a zero byte", "12 61 20 00 01 0000 110000", strings.Repeat("a", 290)},
		{"overlapping, distance 3, trailing literal", "14 616263 25 0900 78 110000", "abcabcabcax"},
	}
	d := codec.NewDecoder()
	for _, tt := range tests {
		block, err := hex.DecodeString(strings.ReplaceAll(tt.block, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		for _, src := range [][]byte{lzoChain(4096, block), lzoExtent(4096, block)} {
			want := append([]byte(tt.want), make([]byte, 400-len(tt.want))...)
			if got := mustInflate(t, d, codec.LZO, 400, src, 4096); !bytes.Equal(got, want) {
				t.Errorf("%s: got %q, want %q", tt.name, bytes.TrimRight(got, "\x00"), tt.want)
			}
		}
	}
}

func TestLZOCorruptBlocks(t *testing.T) {
	long := strings.Repeat("00", 5000)
	tests := []struct {
		name, block, want string
	}{
		{"no end marker", "12 61", "at byte 10: no end marker"},
		{"bytes behind the end marker", "12 61 110000 00", "at byte 10: end marker of length 3, 1 bytes behind it"},
		{"end marker of another length", "12 61 120000", "end marker of length 4"},
		{"end marker cut", "12 61 1100", "instruction cut off"},
		{"bitstream version 1", "11 01 12 61 110000", "at byte 8: match"},
		{"first run above the input", "ff 61", "at byte 8: first run of 238 literals: 1 bytes in"},
		{"run above the input", "05 61 110000", "run of 8 literals"},
		{"run above the output", "00" + strings.Repeat("00", 17) + "ff 61 110000", "at byte 8: run of"},
		{"length without an end", "00" + long, "at byte 8: run of"},
		{"length cut off", "0000", "at byte 8: run of"},
		{"match length without an end", "12 61 20" + long + "110000", "at byte 10: match of"},
		{"match length cut off", "12 61 2000", "at byte 10: instruction cut off"},
		{"match above the output", "12 61 20" + strings.Repeat("00", 16) + "01 0000 110000", "at byte 10: match of 4114 bytes"},
		{"distance above the output so far", "12 61 44 00 110000", "match of 3 bytes, distance 2, then 0 literals"},
		{"distance of 16 KiB and more", "12 61 11 0400 110000", "distance 16385"},
		{"distance above the output so far, more behind", "14 616263 5c 01 6162636465666768 110000", "match of 3 bytes, distance 16,"},
		{"long distance above the output so far, more behind", "14 616263 2a fcff 6162636465666768 110000", "match of 12 bytes, distance 16384,"},
		{"trailing literals above the input", "12 61 43 00 61", "then 3 literals: 1 bytes in"},
		{"2K match cut", "12 61 40", "instruction cut off"},
		{"1K match cut", "12 61 00", "instruction cut off"},
		{"16K match cut", "12 61 21 00", "instruction cut off"},
	}
	d := codec.NewDecoder()
	for _, tt := range tests {
		block, err := hex.DecodeString(strings.ReplaceAll(tt.block, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		for _, src := range [][]byte{lzoChain(4096, block), lzoExtent(4096, block)} {
			if _, err := inflateAt(t, d, codec.LZO, 4096, src, 4096, 0); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
			}
		}
	}
}

// TestLZOOutputEnd lets each instruction end exactly at the end of a segment's sector, and one byte behind it.
func TestLZOOutputEnd(t *testing.T) {
	const sector = 4096
	d := codec.NewDecoder()
	for _, tt := range []struct {
		name  string
		block []byte
		n     int // bytes that it puts out
	}{
		{"match", []byte{0x40, 0}, 3},
		{"match and a trailing literal", []byte{0x41, 0, 'x'}, 4},
		{"match from 8 bytes back, three trailing literals", []byte{0x5f, 0, 'x', 'y', 'z'}, 6},
		{"match from 16 bytes back, three trailing literals", []byte{0x2a, 63, 0, 'x', 'y', 'z'}, 15},
		{"run of literals", []byte{1, 'a', 'b', 'c', 'd'}, 4},
		{"long match", []byte{0x20, 1, 0, 0}, 34},
		{"long run of literals", append([]byte{0, 1}, sample(19)...), 19},
	} {
		for over := range 2 {
			var w lzoWriter
			w.literals([]byte{'a'})
			w.match("16K", 1, sector-tt.n-1+over)
			w.block = append(w.block, tt.block...)
			next := []byte{18, 'n', 17, 0, 0}
			src := lzoExtent(sector, w.end(), next)
			got, err := inflateAt(t, d, codec.LZO, sector+1, src, sector, 0)
			switch {
			case over > 0 && err == nil:
				t.Errorf("%s, one byte behind the sector: no error", tt.name)
			case over == 0 && (err != nil || got[sector] != 'n'):
				t.Errorf("%s, at the end of the sector: %v, or the next segment's byte is not 'n' but %q", tt.name, err, got[sector])
			}
		}
	}
}

// TestLZOPartSkips reads a sector behind a broken segment: it is not decoded.
func TestLZOPartSkips(t *testing.T) {
	const sector = 4096
	data := sample(3 * sector)
	src := lzoLiterals(sector, data)
	src[8] = 17 // the first instruction of the first segment
	d := codec.NewDecoder()
	if _, err := inflateAt(t, d, codec.LZO, sector, src, sector, sector-1); err == nil {
		t.Error("the last byte of the broken segment: no error")
	}
	got, err := inflateAt(t, d, codec.LZO, sector, src, sector, sector)
	if err != nil || !bytes.Equal(got, data[sector:2*sector]) {
		t.Errorf("the sector behind it: %v, or wrong bytes", err)
	}
}

// TestLZORandom decodes valid chains that use every instruction, for each sector size; what they inflate to is
// known from how they were written.
func TestLZORandom(t *testing.T) {
	d := codec.NewDecoder()
	for _, sectorSize := range []int{4096, 8192, 16384, 65536} {
		for seed := range uint64(40) {
			rng := rand.New(rand.NewPCG(seed, uint64(sectorSize)))
			segments := 1 + rng.IntN(codec.MaxExtent/sectorSize)
			var payloads [][]byte
			var want []byte
			for i := range segments {
				size := sectorSize
				if i == segments-1 {
					size = 1 + rng.IntN(sectorSize)
				}
				block, out := lzoRandom(rng, size)
				payloads, want = append(payloads, block), append(want, out...)
			}
			src := lzoExtent(sectorSize, payloads...)
			if len(src) > codec.MaxExtent {
				continue
			}
			n := min((len(want)+sectorSize-1)&^(sectorSize-1), codec.MaxExtent)
			want = append(want, make([]byte, n-len(want))...)
			if got := mustInflate(t, d, codec.LZO, n, src, sectorSize); !bytes.Equal(got, want) {
				t.Fatalf("sector size %d seed %d: wrong bytes", sectorSize, seed)
			}
			for range 20 {
				from := rng.IntN(n + 1)
				part := rng.IntN(n - from + 1)
				got, err := inflateAt(t, d, codec.LZO, part, src, sectorSize, from)
				if err != nil || !bytes.Equal(got, want[from:from+part]) {
					t.Fatalf("sector size %d seed %d bytes %d+%d: %v, or wrong bytes", sectorSize, seed, from, part, err)
				}
			}
		}
	}
}

// TestLZOSegmentAtSectorEnd places the second segment's length 4, 3, 2, 1 and 0 bytes before a sector's end.
func TestLZOSegmentAtSectorEnd(t *testing.T) {
	const sector = 4096
	d := codec.NewDecoder()
	for _, left := range []int{8, 5, 4, 3, 2, 1, 0} {
		var first lzoWriter
		for literals := sector - 200; ; literals++ { // as many as make the payload end where it shall
			first = lzoWriter{}
			first.literals(sample(literals))
			if !first.match("16K", 1, sector-literals) {
				t.Fatalf("%d literals leave no room for a match", literals)
			}
			if 4+4+len(first.block)+3 == sector-left {
				break
			}
		}
		var second lzoWriter
		second.literals(sample(100))
		src := lzoExtent(sector, first.end(), second.end())
		want := append(bytes.Clone(first.out), second.out...)
		if got := mustInflate(t, d, codec.LZO, len(want), src, sector); !bytes.Equal(got, want) {
			t.Errorf("%d bytes left in the sector: wrong bytes", left)
		}
		// A chain may end with the padding of such a sector, counted in its total.
		if left < 4 {
			padded := lzoChain(sector, first.end())
			padded = append(padded, make([]byte, left)...)
			padded[0], padded[1] = byte(len(padded)), byte(len(padded)>>8)
			if got := mustInflate(t, d, codec.LZO, sector, padded, sector); !bytes.Equal(got, first.out) {
				t.Errorf("total with %d bytes of padding: wrong bytes", left)
			}
		}
	}
}

// FuzzLZO compares a block with another decoder's: both take it and give the same bytes, or neither does.
func FuzzLZO(f *testing.F) {
	rng := rand.New(rand.NewPCG(11, 11))
	for range 20 {
		block, _ := lzoRandom(rng, 4096)
		f.Add(block, uint8(rng.IntN(5)))
	}
	f.Add([]byte{17, 0, 0}, uint8(0))
	d := codec.NewDecoder()
	f.Fuzz(func(t *testing.T, block []byte, unit uint8) {
		if len(block) < 3 || len(block) > 100<<10 {
			return
		}
		sectorSize := 4096 << (unit % 5)
		want := make([]byte, sectorSize)
		n, wantErr := lzo.Decompress(block, want)
		clear(want[n:])
		got, err := inflateAt(t, d, codec.LZO, sectorSize, lzoExtent(sectorSize, block), sectorSize, 0)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("got %v, the other decoder %v", err, wantErr)
		}
		if err == nil && !bytes.Equal(got, want) {
			t.Fatal("other bytes than the other decoder's")
		}
	})
}

// FuzzLZOExtent mutates the framing: whatever is accepted whole is accepted in parts, with the same bytes.
func FuzzLZOExtent(f *testing.F) { fuzzExtent(f, codec.LZO) }

// FuzzZlibExtent, likewise.
func FuzzZlibExtent(f *testing.F) { fuzzExtent(f, codec.Zlib) }

// FuzzZstdExtent, likewise.
func FuzzZstdExtent(f *testing.F) { fuzzExtent(f, codec.Zstd) }

func fuzzExtent(f *testing.F, kind codec.Kind) {
	for _, tt := range kernelExtents {
		if tt.kind == kind {
			f.Add(load(f, tt.file), uint32(tt.ram), uint32(tt.ram/2), uint8(0))
		}
	}
	for _, e := range encodings {
		if e.kind == kind {
			f.Add(e.encode(f, sample(5000)), uint32(4096), uint32(100), uint8(0))
		}
	}
	d := codec.NewDecoder()
	f.Fuzz(func(t *testing.T, src []byte, ram, from uint32, unit uint8) {
		n := int(ram % (codec.MaxExtent + 1))
		at := int(from) % (n + 1)
		sectorSize := 4096 << (unit % 5)
		all, err := inflateAt(t, d, kind, n, src, sectorSize, 0)
		if err != nil {
			return
		}
		again, err := inflateAt(t, codec.NewDecoder(), kind, n, src, sectorSize, 0)
		if err != nil || !bytes.Equal(all, again) {
			t.Fatalf("a fresh decoder gives %v, or other bytes", err)
		}
		part, err := inflateAt(t, d, kind, n-at, src, sectorSize, at)
		if err != nil || !bytes.Equal(part, all[at:]) {
			t.Fatalf("from %d: %v, or other bytes than in the whole", at, err)
		}
	})
}
