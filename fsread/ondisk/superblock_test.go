package ondisk_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/ondisk/ondisktest"
)

const superAt = 64 << 10

func TestSuperblockRoundTrip(t *testing.T) {
	want := ondisktest.NewSuperblock()
	want.LogRoot, want.LogRootLevel, want.RootLevel, want.ChunkRootLevel = 40<<20, 1, 2, 3
	want.Compat, want.MetadataUUID, want.Label = 4, ondisk.UUID{9}, "a label"
	for i := range want.Backups {
		want.Backups[i] = ondisk.BackupRoot{
			TreeRoot: 1, ChunkRoot: 2, ExtentRoot: 3, FSRoot: 4, DevRoot: 5, CsumRoot: 6,
			TreeRootGeneration: 11, ChunkRootGeneration: 12, ExtentRootGeneration: 13,
			FSRootGeneration: 14, DevRootGeneration: 15, CsumRootGeneration: 16,
			TotalBytes: 21, BytesUsed: 22, NumDevices: uint64(i),
			TreeRootLevel: 1, ChunkRootLevel: 2, ExtentRootLevel: 3, FSRootLevel: 4, DevRootLevel: 5, CsumRootLevel: 6,
		}
	}
	raw := ondisktest.Super(want)
	got, err := ondisk.DecodeSuperblock(raw, superAt)
	if err != nil {
		t.Fatal(err)
	}
	clear(raw) // the superblock owns its memory
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("decoded superblock differs (-want +got):\n%s", d)
	}
}

func TestSuperblockOffsets(t *testing.T) {
	if got, want := ondisk.SuperblockOffsets(), [3]uint64{65536, 67108864, 274877906944}; got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestSuperblockGood(t *testing.T) {
	tests := []struct {
		name string
		edit func(s *ondisk.Superblock)
	}{
		{"64K sectors and nodes", func(s *ondisk.Superblock) {
			s.SectorSize, s.NodeSize, s.Root, s.ChunkRoot = 64<<10, 64<<10, 2<<20, 1<<20
		}},
		{"4K nodes", func(s *ondisk.Superblock) { s.NodeSize = 4096 }},
		{"total_bytes not aligned", func(s *ondisk.Superblock) { s.TotalBytes++ }},
		{"levels 7", func(s *ondisk.Superblock) { s.RootLevel, s.ChunkRootLevel, s.LogRootLevel = 7, 7, 7 }},
		{"2^31 devices", func(s *ondisk.Superblock) { s.NumDevices = 1 << 31 }},
		{"bytes_used of six nodes", func(s *ondisk.Superblock) { s.BytesUsed = 6 * 16 << 10 }},
		{"label without NUL", func(s *ondisk.Superblock) { s.Label = string(bytes.Repeat([]byte("x"), 256)) }},
		{"full sys_chunk_array", func(s *ondisk.Superblock) {
			s.SysChunkArray = append(s.SysChunkArray, make([]byte, 2048-len(s.SysChunkArray))...)
		}},
		{"metadata_uuid", func(s *ondisk.Superblock) {
			s.MetadataUUID, s.FSID = s.FSID, ondisk.UUID{0xaa}
			s.Incompat |= ondisk.IncompatMetadataUUID
		}},
		{"block group tree", func(s *ondisk.Superblock) { s.CompatRO |= ondisk.CompatROBlockGroupTree }},
		{"unknown features are for Gate", func(s *ondisk.Superblock) { s.Incompat, s.Flags = 1<<40, 1<<63 }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := ondisktest.NewSuperblock()
			tt.edit(s)
			// The chunk in the array keeps its sector size: SysChunks is not what is tested.
			got, err := ondisk.DecodeSuperblock(ondisktest.Super(s), superAt)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(s, got); d != "" {
				t.Errorf("decoded superblock differs (-want +got):\n%s", d)
			}
		})
	}
}

func TestSuperblockRefused(t *testing.T) {
	corrupt := ondisk.ErrCorrupt
	tests := []struct {
		name string
		edit func(b []byte)
		kind error
		part string
	}{
		{"magic", func(b []byte) { b[64] = '!' }, ondisk.ErrNoMagic, ""},
		{"zeroed magic", func(b []byte) { clear(b[64:72]) }, ondisk.ErrNoMagic, ""},
		{"unknown checksum type", func(b []byte) { u16(b, 196, 77) }, ondisk.ErrUnsupported, "checksum type unknown-77"},
		{"root_level", func(b []byte) { b[198] = 8 }, corrupt, "root_level 8"},
		{"chunk_root_level", func(b []byte) { b[199] = 8 }, corrupt, "chunk_root_level 8"},
		{"log_root_level", func(b []byte) { b[200] = 255 }, corrupt, "log_root_level 255"},
		{"sectorsize 0", func(b []byte) { u32(b, 144, 0) }, corrupt, "sectorsize 0"},
		{"sectorsize small", func(b []byte) { u32(b, 144, 2048) }, corrupt, "sectorsize 2048"},
		{"sectorsize large", func(b []byte) { u32(b, 144, 128<<10) }, corrupt, "sectorsize 131072"},
		{"sectorsize odd", func(b []byte) { u32(b, 144, 12288) }, corrupt, "sectorsize 12288"},
		{"nodesize below sectorsize", func(b []byte) { u32(b, 148, 2048); u32(b, 152, 2048) }, corrupt, "nodesize 2048"},
		{"nodesize large", func(b []byte) { u32(b, 148, 128<<10); u32(b, 152, 128<<10) }, corrupt, "nodesize 131072"},
		{"nodesize odd", func(b []byte) { u32(b, 148, 12288); u32(b, 152, 12288) }, corrupt, "nodesize 12288"},
		{"leafsize", func(b []byte) { u32(b, 152, 4096) }, corrupt, "leafsize 4096, nodesize 16384"},
		{"root not aligned", func(b []byte) { u64(b, 80, 1<<20+512) }, corrupt, "root 1049088 is not aligned"},
		{"chunk_root not aligned", func(b []byte) { u64(b, 88, 1<<20+512) }, corrupt, "chunk_root 1049088 is not aligned"},
		{"log_root not aligned", func(b []byte) { u64(b, 96, 1<<20+512) }, corrupt, "log_root 1049088 is not aligned"},
		{"no root", func(b []byte) { u64(b, 80, 0) }, corrupt, "root is 0"},
		{"no chunk_root", func(b []byte) { u64(b, 88, 0) }, corrupt, "chunk_root is 0"},
		{"fsid of the device item", func(b []byte) { b[201+82]++ }, corrupt, "device item says"},
		{"metadata_uuid and the device item", func(b []byte) { u64(b, 188, 1<<10) }, corrupt, "device item says"},
		{"bytes_used", func(b []byte) { u64(b, 120, 6*16<<10-1) }, corrupt, "bytes_used 98303"},
		{"stripesize", func(b []byte) { u32(b, 156, 4095) }, corrupt, "stripesize 4095"},
		{"stripesize 0", func(b []byte) { u32(b, 156, 0) }, corrupt, "stripesize 0"},
		{"no devices", func(b []byte) { u64(b, 136, 0) }, corrupt, "num_devices 0"},
		{"too many devices", func(b []byte) { u64(b, 136, 1<<31+1) }, corrupt, "num_devices 2147483649"},
		{"sys_chunk_array_size small", func(b []byte) { u32(b, 160, 96) }, corrupt, "sys_chunk_array_size 96"},
		{"sys_chunk_array_size large", func(b []byte) { u32(b, 160, 2049) }, corrupt, "sys_chunk_array_size 2049"},
		{"sys_chunk_array_size huge", func(b []byte) { u32(b, 160, 1<<32-1) }, corrupt, "sys_chunk_array_size 4294967295"},
		{"bytenr", func(b []byte) { u64(b, 48, 64<<20) }, corrupt, "bytenr 67108864, read at 65536"},
		{"block group tree without no-holes", func(b []byte) { u64(b, 180, 8|2); u64(b, 188, 0) }, corrupt, "block-group-tree"},
		{"block group tree without valid free space tree", func(b []byte) { u64(b, 180, 8|1) }, corrupt, "block-group-tree"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := ondisktest.Super(ondisktest.NewSuperblock())
			tt.edit(b)
			ondisktest.Seal(b, 0)
			_, err := ondisk.DecodeSuperblock(b, superAt)
			checkErr(t, err, tt.kind, tt.part)
		})
	}
}

func TestSuperblockChecksumCoversAllButItself(t *testing.T) {
	good := ondisktest.Super(ondisktest.NewSuperblock())
	for _, at := range []int{0, 3, 32, 300, 4095} {
		b := bytes.Clone(good)
		b[at] ^= 0x10
		_, err := ondisk.DecodeSuperblock(b, superAt)
		checkErr(t, err, ondisk.ErrChecksum, "superblock: crc32c of the bytes read is ")
	}
}

func TestSuperblockLength(t *testing.T) {
	b := ondisktest.Super(ondisktest.NewSuperblock())
	for _, n := range []int{0, 64, 4095} {
		_, err := ondisk.DecodeSuperblock(b[:n], superAt)
		checkErr(t, err, ondisk.ErrCorrupt, fmt.Sprintf("%d bytes", n))
	}
}

func TestTreeFSID(t *testing.T) {
	s := &ondisk.Superblock{FSID: ondisk.UUID{1}, MetadataUUID: ondisk.UUID{2}}
	if got := s.TreeFSID(); got != s.FSID {
		t.Errorf("without the feature: got %s, want the fsid", got)
	}
	s.Incompat = ondisk.IncompatMetadataUUID
	if got := s.TreeFSID(); got != s.MetadataUUID {
		t.Errorf("with the feature: got %s, want the metadata_uuid", got)
	}
}

func TestSysChunks(t *testing.T) {
	s := ondisktest.NewSuperblock()
	want := []ondisk.ChunkEntry{
		{Logical: 1 << 20, Chunk: chunk(ondisk.BlockGroupSystem, 1)},
		{Logical: 8 << 30, Chunk: chunk(ondisk.BlockGroupSystem|ondisk.BlockGroupRAID1C4, 4)},
	}
	s.SysChunkArray = ondisktest.SysChunkArray(want...)
	got, err := s.SysChunks()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("chunks differ (-want +got):\n%s", d)
	}
}

func TestSysChunksRefused(t *testing.T) {
	first := len(ondisktest.SysChunkArray(ondisk.ChunkEntry{Chunk: chunk(ondisk.BlockGroupSystem, 1)}))
	tests := []struct {
		name string
		edit func(b []byte) []byte
		part string
	}{
		{"empty", func([]byte) []byte { return nil }, "empty"},
		{"cut in a key", func(b []byte) []byte { return b[:first+16] }, "16 bytes left at 97"},
		{"cut in a chunk", func(b []byte) []byte { return b[:first+17+47] }, "64 bytes left at 97"},
		{"cut in a stripe", func(b []byte) []byte { return b[:len(b)-1] }, "chunk at 97 takes 112 of 111 bytes"},
		{"a byte too many", func(b []byte) []byte { return append(b, 0) }, "1 bytes left"},
		{"objectid", func(b []byte) []byte { u64(b, 0, 257); return b }, "(257 CHUNK_ITEM 1048576) at 0"},
		{"type of key", func(b []byte) []byte { b[8] = 216; return b }, "(256 DEV_ITEM 1048576) at 0"},
		{"no stripes", func(b []byte) []byte { u16(b, 17+44, 0); return slices.Delete(b, 65, 97) }, "single with 0 stripes"},
		{"all stripes", func(b []byte) []byte { u16(b, 17+44, 65535); return b }, "chunk at 0 takes 2097168"},
		{"bad chunk", func(b []byte) []byte { u64(b, 17+16, 4096); return b }, "stripe_len 4096"},
		{"not system", func(b []byte) []byte { u64(b, 17+24, 4); return b }, "type 0x4, want system"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := ondisktest.NewSuperblock()
			s.SysChunkArray = tt.edit(ondisktest.SysChunkArray(
				ondisk.ChunkEntry{Logical: 1 << 20, Chunk: chunk(ondisk.BlockGroupSystem, 1)},
				ondisk.ChunkEntry{Logical: 2 << 30, Chunk: chunk(ondisk.BlockGroupSystem|ondisk.BlockGroupDUP, 2)},
			))
			_, err := s.SysChunks()
			checkErr(t, err, ondisk.ErrCorrupt, tt.part)
		})
	}
}
