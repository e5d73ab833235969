package csum_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/btrexport/btrexport/fsread/csum"
)

func TestSumKnownAnswers(t *testing.T) {
	tests := []struct {
		in   string
		want uint32
	}{
		{"123456789", 0xE3069283},
		{"", 0},
		{string(make([]byte, 32)), 0x8A9136AA}, // RFC 3720 B.4
	}
	for _, tt := range tests {
		dst := [csum.MaxSize]byte{}
		for i := range dst {
			dst[i] = 0xFF // the padding must be cleared
		}
		csum.CRC32C.Sum(&dst, []byte(tt.in))
		var want [csum.MaxSize]byte
		binary.LittleEndian.PutUint32(want[:], tt.want)
		if dst != want {
			t.Errorf("Sum(%q): got %x, want %x", tt.in, dst, want)
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
		{csum.XXHash64, "xxhash64", 8, false},
		{csum.SHA256, "sha256", 32, false},
		{csum.BLAKE2b, "blake2b", 32, false},
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
	good := []byte{0x83, 0x92, 0x06, 0xE3}
	tests := []struct {
		name string
		t    csum.Type
		want []byte
		data []byte
		ok   bool
	}{
		{"right", csum.CRC32C, good, data, true},
		{"right, more room than a sum takes", csum.CRC32C, append(bytes.Clone(good), 1, 2), data, true},
		{"last bit of the sum", csum.CRC32C, []byte{0x83, 0x92, 0x06, 0x63}, data, false},
		{"other data", csum.CRC32C, good, []byte("123456788"), false},
		{"too short", csum.CRC32C, good[:3], data, false},
		{"none", csum.CRC32C, nil, data, false},
		{"unsupported type never matches", csum.SHA256, make([]byte, 32), data, false},
		{"unknown type never matches", csum.Type(9), nil, data, false},
	}
	for _, tt := range tests {
		if got := tt.t.Match(tt.want, tt.data); got != tt.ok {
			t.Errorf("%s: got %t, want %t", tt.name, got, tt.ok)
		}
	}
}

func TestUnsupportedSumIsZero(t *testing.T) {
	dst := [csum.MaxSize]byte{1, 2, 3}
	csum.BLAKE2b.Sum(&dst, []byte("x"))
	if dst != [csum.MaxSize]byte{} {
		t.Errorf("got %x, want zeros", dst)
	}
}

func TestNoAllocations(t *testing.T) {
	data := make([]byte, 4096)
	var sum [csum.MaxSize]byte
	if n := testing.AllocsPerRun(100, func() {
		csum.CRC32C.Sum(&sum, data)
		if !csum.CRC32C.Match(sum[:4], data) {
			t.Error("own sum does not match")
		}
	}); n != 0 {
		t.Errorf("got %v allocations per run, want 0", n)
	}
}

func BenchmarkMatch4K(b *testing.B) {
	data := make([]byte, 4096)
	var sum [csum.MaxSize]byte
	csum.CRC32C.Sum(&sum, data)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if !csum.CRC32C.Match(sum[:4], data) {
			b.Fatal("own sum does not match")
		}
	}
}
