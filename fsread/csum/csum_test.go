package csum_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/btrexport/btrexport/fsread/csum"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
)

var types = []csum.Type{csum.CRC32C, csum.XXHash64, csum.SHA256, csum.BLAKE2b}

// TestSumKnownAnswers has the sums as they stand on the disk: crc32c and xxhash64 little-endian.
func TestSumKnownAnswers(t *testing.T) {
	tests := []struct {
		t    csum.Type
		in   string
		want string
	}{
		{csum.CRC32C, "123456789", "839206e3"},
		{csum.CRC32C, "", "00000000"},
		{csum.CRC32C, string(make([]byte, 32)), "aa36918a"}, // RFC 3720 B.4
		{csum.XXHash64, "", "99e9d85137db46ef"},             // xxHash's specification: ef46db3751d8e999
		{csum.XXHash64, "a", "5b6e8ca9f1c44ed2"},
		{csum.XXHash64, "abc", "990977adf52cbc44"},
		{csum.XXHash64, "Nobody inspects the spammish repetition", "f18b378a3ca8cefb"},
		{csum.SHA256, "", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
		{csum.SHA256, "abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}, // FIPS 180-2 B.1
		{csum.BLAKE2b, "", "0e5751c026e543b2e8ab2eb06099daa1d1e5df47778f7787faab45cdf12fe3a8"},
		{csum.BLAKE2b, "abc", "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319"}, // b2sum -l 256
		{csum.BLAKE2b, "The quick brown fox jumps over the lazy dog", "01718cec35cd3d796dd00020e0bfecb473ad23457d063b75eff29c0ffa2e58a9"},
	}
	for _, tt := range tests {
		dst := [csum.MaxSize]byte{}
		for i := range dst {
			dst[i] = 0xFF // the padding must be cleared
		}
		tt.t.Sum(&dst, []byte(tt.in))
		want := make([]byte, csum.MaxSize)
		if _, err := hex.Decode(want, []byte(tt.want)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(dst[:], want) {
			t.Errorf("%s of %q: got %x, want %x", tt.t, tt.in, dst, want)
		}
	}
}

// TestGoldenSuperblocks checks sums that the kernel wrote: of the superblock at 64 KiB, from byte 32 on.
func TestGoldenSuperblocks(t *testing.T) {
	const offset, size = 64 << 10, 4096
	for image, typ := range map[string]csum.Type{
		"single": csum.CRC32C, "xxhash": csum.XXHash64, "sha256": csum.SHA256, "blake2": csum.BLAKE2b,
	} {
		f, err := os.Open(fsreadtest.Load(t, image).Devices[0])
		if err != nil {
			t.Fatal(err)
		}
		super := make([]byte, size)
		_, err = f.ReadAt(super, offset)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		want, b := super[:csum.MaxSize], super[csum.MaxSize:]
		for _, other := range types {
			if got := other.Match(want, b); got != (other == typ) {
				t.Errorf("%s: %s matches: %t", image, other, got)
			}
		}
		for bit := range 8 {
			b[bit*500] ^= 1 << bit
			if typ.Match(want, b) {
				t.Errorf("%s: %s matches with a flipped bit", image, typ)
			}
			b[bit*500] ^= 1 << bit
		}
	}
}

func TestTypes(t *testing.T) {
	tests := []struct {
		t         csum.Type
		name      string
		size      int
		supported bool
	}{
		{csum.CRC32C, "crc32c", 4, true},
		{csum.XXHash64, "xxhash64", 8, true},
		{csum.SHA256, "sha256", 32, true},
		{csum.BLAKE2b, "blake2b", 32, true},
		{4, "unknown-4", 0, false},
		{65535, "unknown-65535", 0, false},
	}
	for _, tt := range tests {
		if got := tt.t.String(); got != tt.name {
			t.Errorf("Type(%d).String: got %q, want %q", uint16(tt.t), got, tt.name)
		}
		if got := tt.t.Size(); got != tt.size {
			t.Errorf("%s.Size: got %d, want %d", tt.t, got, tt.size)
		}
		if got := tt.t.Supported(); got != tt.supported {
			t.Errorf("%s.Supported: got %t, want %t", tt.t, got, tt.supported)
		}
	}
}

func TestMatch(t *testing.T) {
	data := []byte("123456789")
	for _, typ := range types {
		var sum [csum.MaxSize]byte
		typ.Sum(&sum, data)
		good := sum[:typ.Size()]
		flipped := bytes.Clone(good)
		flipped[typ.Size()-1] ^= 0x80
		tests := []struct {
			name string
			want []byte
			data []byte
			ok   bool
		}{
			{"right", good, data, true},
			{"right, more room than a sum takes", append(bytes.Clone(good), 1, 2), data, true},
			{"last bit of the sum", flipped, data, false},
			{"other data", good, []byte("123456788"), false},
			{"too short", good[:typ.Size()-1], data, false},
			{"none", nil, data, false},
			{"zeros", make([]byte, csum.MaxSize), data, false},
		}
		for _, tt := range tests {
			if got := typ.Match(tt.want, tt.data); got != tt.ok {
				t.Errorf("%s, %s: got %t, want %t", typ, tt.name, got, tt.ok)
			}
		}
	}
	for _, want := range [][]byte{nil, make([]byte, csum.MaxSize)} {
		if csum.Type(9).Match(want, data) {
			t.Errorf("an unknown type matches %x", want)
		}
	}
}

func TestUnknownSumIsZero(t *testing.T) {
	dst := [csum.MaxSize]byte{1, 2, 3}
	csum.Type(9).Sum(&dst, []byte("x"))
	if dst != [csum.MaxSize]byte{} {
		t.Errorf("got %x, want zeros", dst)
	}
}

func TestNoAllocations(t *testing.T) {
	data := make([]byte, 4096)
	var sum [csum.MaxSize]byte
	for _, typ := range types {
		if n := testing.AllocsPerRun(100, func() {
			typ.Sum(&sum, data)
			if !typ.Match(sum[:typ.Size()], data) {
				t.Fatal("own sum does not match")
			}
		}); n != 0 {
			t.Errorf("%s: got %v allocations per run, want 0", typ, n)
		}
	}
}

// BenchmarkMatch checks a sector and a tree block. To compare BLAKE2b's code for AVX2 with that for any CPU:
// -tags purego, or GODEBUG=cpu.avx2=off,cpu.avx=off,cpu.sse41=off.
func BenchmarkMatch(b *testing.B) {
	for _, typ := range types {
		for _, size := range []int{4096, 16384} {
			b.Run(fmt.Sprintf("%s/%d", typ, size), func(b *testing.B) {
				data := make([]byte, size)
				var sum [csum.MaxSize]byte
				typ.Sum(&sum, data)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					if !typ.Match(sum[:typ.Size()], data) {
						b.Fatal("own sum does not match")
					}
				}
			})
		}
	}
}
