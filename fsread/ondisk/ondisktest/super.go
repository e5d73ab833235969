package ondisktest

import (
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// NewSuperblock returns the superblock of a small filesystem on one device, as read from the primary
// place: 4 KiB sectors, 16 KiB nodes, generation 7, a single system chunk of 8 MiB at logical and physical
// 1 MiB.
func NewSuperblock() *ondisk.Superblock {
	fsid := ondisk.UUID{0xf5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	dev := ondisk.DevItem{
		DevID: 1, TotalBytes: 1 << 30, BytesUsed: 64 << 20, SectorSize: 4096,
		UUID: ondisk.UUID{0xde, 1}, FSID: fsid,
	}
	return &ondisk.Superblock{
		FSID:                fsid,
		Bytenr:              ondisk.SuperblockOffsets()[0],
		Flags:               ondisk.SuperWritten,
		Generation:          7,
		Root:                1<<20 + 16<<10,
		ChunkRoot:           1 << 20,
		ChunkRootGeneration: 5,
		TotalBytes:          1 << 30,
		BytesUsed:           16 << 20,
		NumDevices:          1,
		SectorSize:          4096,
		NodeSize:            16 << 10,
		StripeSize:          4096,
		CompatRO:            ondisk.CompatROFreeSpaceTree | ondisk.CompatROFreeSpaceTreeValid,
		Incompat:            ondisk.IncompatMixedBackref | ondisk.IncompatNoHoles | ondisk.IncompatSkinnyMetadata,
		Dev:                 dev,
		Label:               "test",
		SysChunkArray: SysChunkArray(ondisk.ChunkEntry{
			Logical: 1 << 20,
			Chunk: ondisk.Chunk{
				Length: 8 << 20, Owner: ondisk.TreeExtent, StripeLen: ondisk.StripeLen,
				Type: ondisk.BlockGroupSystem, SubStripes: 1, SectorSize: 4096,
				Stripes: []ondisk.Stripe{{Dev: 1, Physical: 1 << 20, DevUUID: dev.UUID}},
			},
		}),
	}
}

// Super returns the sealed superblock of ondisk.SuperblockSize bytes.
func Super(s *ondisk.Superblock) []byte {
	b := make([]byte, ondisk.SuperblockSize)
	copy(b[32:], s.FSID[:])
	copy(b[64:], "_BHRfS_M")
	for off, v := range map[int]uint64{
		48: s.Bytenr, 56: s.Flags, 72: s.Generation, 80: uint64(s.Root), 88: uint64(s.ChunkRoot),
		96: uint64(s.LogRoot), 112: s.TotalBytes, 120: s.BytesUsed, 128: ondisk.TreeRootDir,
		136: s.NumDevices, 164: s.ChunkRootGeneration, 172: s.Compat, 180: s.CompatRO, 188: s.Incompat,
	} {
		le.PutUint64(b[off:], v)
	}
	for off, v := range map[int]uint32{
		144: s.SectorSize, 148: s.NodeSize, 152: s.NodeSize, 156: s.StripeSize, 160: uint32(len(s.SysChunkArray)),
	} {
		le.PutUint32(b[off:], v)
	}
	le.PutUint16(b[196:], uint16(s.CsumType))
	b[198], b[199], b[200] = s.RootLevel, s.ChunkRootLevel, s.LogRootLevel
	copy(b[201:299], DevItem(s.Dev))
	copy(b[299:555], s.Label)
	copy(b[571:587], s.MetadataUUID[:])
	copy(b[811:2859], s.SysChunkArray)
	for i, r := range s.Backups {
		putBackupRoot(b[2859+i*168:], r)
	}
	Seal(b, s.CsumType)
	return b
}

func putBackupRoot(b []byte, r ondisk.BackupRoot) {
	for i, v := range []uint64{
		uint64(r.TreeRoot), r.TreeRootGeneration, uint64(r.ChunkRoot), r.ChunkRootGeneration,
		uint64(r.ExtentRoot), r.ExtentRootGeneration, uint64(r.FSRoot), r.FSRootGeneration,
		uint64(r.DevRoot), r.DevRootGeneration, uint64(r.CsumRoot), r.CsumRootGeneration,
		r.TotalBytes, r.BytesUsed, r.NumDevices,
	} {
		le.PutUint64(b[i*8:], v)
	}
	copy(b[152:], []byte{
		r.TreeRootLevel, r.ChunkRootLevel, r.ExtentRootLevel, r.FSRootLevel, r.DevRootLevel, r.CsumRootLevel,
	})
}

// SysChunkArray returns the packed keys and chunks of a superblock.
func SysChunkArray(chunks ...ondisk.ChunkEntry) []byte {
	var b []byte
	for _, c := range chunks {
		key := make([]byte, ondisk.KeySize)
		putKey(key, ondisk.Key{
			ObjectID: ondisk.FirstChunkTreeObjectID, Type: ondisk.TypeChunkItem, Offset: uint64(c.Logical),
		})
		b = append(append(b, key...), Chunk(c.Chunk)...)
	}
	return b
}
