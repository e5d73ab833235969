package ondisk_test

import (
	"fmt"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/ondisk/ondisktest"
)

const chunkAt = ondisk.Logical(22 << 20)

// profiles holds, for each profile, the stripe counts that are legal among 0 to 7.
var profiles = []struct {
	p     ondisk.Profile
	name  string
	bit   uint64
	legal []int
}{
	{ondisk.Single, "single", 0, []int{1}},
	{ondisk.DUP, "dup", ondisk.BlockGroupDUP, []int{2}},
	{ondisk.RAID0, "raid0", ondisk.BlockGroupRAID0, []int{1, 2, 3, 4, 5, 6, 7}},
	{ondisk.RAID1, "raid1", ondisk.BlockGroupRAID1, []int{2}},
	{ondisk.RAID1C3, "raid1c3", ondisk.BlockGroupRAID1C3, []int{3}},
	{ondisk.RAID1C4, "raid1c4", ondisk.BlockGroupRAID1C4, []int{4}},
	{ondisk.RAID10, "raid10", ondisk.BlockGroupRAID10, []int{2, 4, 6}},
	{ondisk.RAID5, "raid5", ondisk.BlockGroupRAID5, []int{2, 3, 4, 5, 6, 7}},
	{ondisk.RAID6, "raid6", ondisk.BlockGroupRAID6, []int{3, 4, 5, 6, 7}},
}

func TestChunkStripeCounts(t *testing.T) {
	for _, p := range profiles {
		legal := map[int]bool{}
		for _, n := range p.legal {
			legal[n] = true
		}
		for n := range 8 {
			want := chunk(ondisk.BlockGroupData|p.bit, n)
			got, err := ondisk.DecodeChunk(ondisktest.Chunk(want), chunkAt, sector)
			if !legal[n] {
				checkErr(t, err, ondisk.ErrCorrupt, fmt.Sprintf("chunk 23068672: %s with %d stripes", p.name, n))
				continue
			}
			if err != nil {
				t.Errorf("%s with %d stripes: %v", p.name, n, err)
				continue
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("%s with %d stripes differs (-want +got):\n%s", p.name, n, d)
			}
			if got.Profile() != p.p || got.Profile().String() != p.name {
				t.Errorf("profile: got %s, want %s", got.Profile(), p.name)
			}
		}
	}
}

func TestChunkRefused(t *testing.T) {
	tests := []struct {
		name    string
		logical ondisk.Logical
		edit    func(b []byte) []byte
		part    string
	}{
		{"shorter than its header", chunkAt, func(b []byte) []byte { return b[:47] }, "47 bytes"},
		{"empty", chunkAt, func([]byte) []byte { return nil }, "0 bytes"},
		{"a byte missing", chunkAt, func(b []byte) []byte { return b[:len(b)-1] }, "111 bytes, 2 stripes take 112"},
		{"a byte too many", chunkAt, func(b []byte) []byte { return append(b, 0) }, "113 bytes, 2 stripes take 112"},
		{"num_stripes", chunkAt, func(b []byte) []byte { u16(b, 44, 65535); return b }, "65535 stripes take"},
		{"sector_size", chunkAt, func(b []byte) []byte { u32(b, 40, 8192); return b }, "sector_size 8192"},
		{"logical not aligned", chunkAt + 512, func(b []byte) []byte { return b }, "start is not aligned"},
		{"length 0", chunkAt, func(b []byte) []byte { u64(b, 0, 0); return b }, "length 0"},
		{"length not aligned", chunkAt, func(b []byte) []byte { u64(b, 0, 4097); return b }, "length 4097"},
		{"length large", chunkAt, func(b []byte) []byte { u64(b, 0, 1<<48+4096); return b }, "length 281474976714752"},
		{"end past 2^64", math.MaxUint64 - 1<<30 + 1, func(b []byte) []byte { return b }, "ends past 2^64"},
		{"stripe_len", chunkAt, func(b []byte) []byte { u64(b, 16, 32<<10); return b }, "stripe_len 32768"},
		{"stripe_len 0", chunkAt, func(b []byte) []byte { u64(b, 16, 0); return b }, "stripe_len 0"},
		{"two profiles", chunkAt, func(b []byte) []byte { u64(b, 24, 1|0x10|0x20); return b }, "type 0x31 has several profiles"},
		{"no type", chunkAt, func(b []byte) []byte { u64(b, 24, 0x10); return b }, "type 0x10 is neither"},
		{"system and data", chunkAt, func(b []byte) []byte { u64(b, 24, 3|0x10); return b }, "type 0x13 is system and"},
		{"system and metadata", chunkAt, func(b []byte) []byte { u64(b, 24, 6|0x10); return b }, "type 0x16 is system and"},
		{"remapped", chunkAt, func(b []byte) []byte { u64(b, 24, 1|0x10|0x800); return b }, "type 0x811 has unknown bits"},
		{"unknown bit", chunkAt, func(b []byte) []byte { u64(b, 24, 1|0x10|1<<63); return b }, "has unknown bits"},
		{"raid10 sub_stripes", chunkAt, func(b []byte) []byte { u64(b, 24, 1|0x40); return b }, "raid10 with 2 stripes, sub_stripes 1"},
		{"stripe past 2^64", chunkAt, func(b []byte) []byte { u64(b, 80+8, math.MaxUint64-1<<30+1); return b }, "stripe 1 at physical"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			good := ondisktest.Chunk(chunk(ondisk.BlockGroupData|ondisk.BlockGroupRAID1, 2))
			if _, err := ondisk.DecodeChunk(good, chunkAt, sector); err != nil {
				t.Fatalf("before it was broken: %v", err)
			}
			_, err := ondisk.DecodeChunk(tt.edit(good), tt.logical, sector)
			checkErr(t, err, ondisk.ErrCorrupt, tt.part)
		})
	}
}

// TestChunkWithoutSectors: a sector size of 0 on both sides must not be divided by.
func TestChunkWithoutSectors(t *testing.T) {
	c := chunk(ondisk.BlockGroupData, 1)
	c.SectorSize = 0
	_, err := ondisk.DecodeChunk(ondisktest.Chunk(c), chunkAt, 0)
	checkErr(t, err, ondisk.ErrCorrupt, "sector_size 0")
}

func TestChunkLimits(t *testing.T) {
	tests := []struct {
		name    string
		logical ondisk.Logical
		edit    func(c *ondisk.Chunk)
	}{
		{"largest length", chunkAt, func(c *ondisk.Chunk) { c.Length = 1 << 48 }},
		{"ends at the last address", math.MaxUint64 - 1<<30 - sector + 1, func(*ondisk.Chunk) {}},
		{"stripe ends at the last address", chunkAt, func(c *ondisk.Chunk) { c.Stripes[0].Physical = math.MaxUint64 - 1<<30 }},
		{"mixed", chunkAt, func(c *ondisk.Chunk) { c.Type |= ondisk.BlockGroupMetadata }},
		{"system", chunkAt, func(c *ondisk.Chunk) { c.Type = ondisk.BlockGroupSystem }},
	}
	for _, tt := range tests {
		c := chunk(ondisk.BlockGroupData, 1)
		tt.edit(&c)
		got, err := ondisk.DecodeChunk(ondisktest.Chunk(c), tt.logical, sector)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		} else if d := cmp.Diff(c, got); d != "" {
			t.Errorf("%s differs (-want +got):\n%s", tt.name, d)
		}
	}
}

func TestChunkKinds(t *testing.T) {
	for typ := range uint64(8) {
		c := ondisk.Chunk{Type: typ | ondisk.BlockGroupRAID1}
		got := [3]bool{c.IsData(), c.IsSystem(), c.IsMetadata()}
		want := [3]bool{typ&1 != 0, typ&2 != 0, typ&4 != 0}
		if got != want {
			t.Errorf("type %d: got data, system, metadata %v, want %v", typ, got, want)
		}
	}
}

func TestStripeLength(t *testing.T) {
	const k = 64 << 10
	tests := []struct {
		bit    uint64
		n      int
		length uint64
		want   uint64
	}{
		{0, 1, 5 * sector, 5 * sector},
		{ondisk.BlockGroupDUP, 2, 5 * sector, 5 * sector},
		{ondisk.BlockGroupRAID1, 2, 3 * k, 3 * k},
		{ondisk.BlockGroupRAID1C3, 3, 3 * k, 3 * k},
		{ondisk.BlockGroupRAID1C4, 4, 3 * k, 3 * k},
		{ondisk.BlockGroupRAID0, 1, 7 * k, 7 * k},
		{ondisk.BlockGroupRAID0, 3, 9 * k, 3 * k},
		{ondisk.BlockGroupRAID0, 3, 9*k + sector, 4 * k},
		{ondisk.BlockGroupRAID10, 2, 8 * k, 8 * k},
		{ondisk.BlockGroupRAID10, 4, 8 * k, 4 * k},
		{ondisk.BlockGroupRAID5, 2, 6 * k, 6 * k},
		{ondisk.BlockGroupRAID5, 3, 6 * k, 3 * k},
		{ondisk.BlockGroupRAID6, 3, 6 * k, 6 * k},
		{ondisk.BlockGroupRAID6, 4, 6 * k, 3 * k},
		{ondisk.BlockGroupRAID0, 2, 1 << 48, 1 << 47},
	}
	for _, tt := range tests {
		c := chunk(ondisk.BlockGroupData|tt.bit, tt.n)
		c.Length = tt.length
		if got := c.StripeLength(); got != tt.want {
			t.Errorf("%s, %d stripes, length %d: got %d, want %d", c.Profile(), tt.n, tt.length, got, tt.want)
		}
	}
}

func TestDevItem(t *testing.T) {
	want := ondisk.DevItem{
		DevID: 1 << 40, TotalBytes: 2, BytesUsed: 3, SectorSize: 4, Type: 5, Generation: 6,
		UUID: ondisk.UUID{7}, FSID: ondisk.UUID{8},
	}
	raw := ondisktest.DevItem(want)
	got, err := ondisk.DecodeDevItem(raw)
	if err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	for _, b := range [][]byte{nil, raw[:97], append(raw, 0)} {
		_, err := ondisk.DecodeDevItem(b)
		checkErr(t, err, ondisk.ErrCorrupt, "device item")
	}
}

func TestProfileString(t *testing.T) {
	if got, want := ondisk.Profile(99).String(), "profile-99"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
