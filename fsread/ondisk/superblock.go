package ondisk

import (
	"bytes"
	"fmt"
	"math/bits"
	"slices"

	"github.com/btrexport/btrexport/fsread/csum"
)

// SuperblockSize is the size of a superblock in bytes.
const SuperblockSize = 4096

const (
	superMagic       = "_BHRfS_M"
	sysChunkArrayMax = 2048
	backupRootSize   = 168
	labelSize        = 256
	maxLevel         = 8 // BTRFS_MAX_LEVEL: levels are 0..7
	minSectorSize    = 4 << 10
	maxNodeSize      = 64 << 10
	csumRoom         = csum.MaxSize // in front of superblocks and tree blocks
)

// SuperblockOffsets returns where a device keeps its superblocks, in bytes from its start: the primary,
// and two mirrors where the device is large enough. Mirrors never carry a log root.
func SuperblockOffsets() [3]uint64 { return [3]uint64{64 << 10, 64 << 20, 256 << 30} }

// Superblock is struct btrfs_super_block, decoded. Addresses are logical, sizes in bytes.
type Superblock struct {
	CsumType   csum.Type
	FSID       UUID
	Bytenr     uint64 // physical place of this copy
	Flags      uint64 // Super* bits
	Generation uint64 // of the last committed transaction

	Root, ChunkRoot, LogRoot                Logical // LogRoot 0: no log
	RootLevel, ChunkRootLevel, LogRootLevel uint8
	ChunkRootGeneration                     uint64

	TotalBytes, BytesUsed, NumDevices uint64
	SectorSize, NodeSize, StripeSize  uint32 // powers of two

	Compat, CompatRO, Incompat uint64

	Dev           DevItem // the device that this copy was read from
	Label         string
	MetadataUUID  UUID // meaningful with IncompatMetadataUUID; see TreeFSID
	Backups       [4]BackupRoot
	SysChunkArray []byte // packed, see SysChunks
}

// BackupRoot is struct btrfs_root_backup: the roots of one of the last four transactions. Nothing in it
// was validated.
type BackupRoot struct {
	TreeRoot, ChunkRoot, ExtentRoot, FSRoot, DevRoot, CsumRoot                               Logical
	TreeRootGeneration, ChunkRootGeneration, ExtentRootGeneration                            uint64
	FSRootGeneration, DevRootGeneration, CsumRootGeneration                                  uint64
	TotalBytes, BytesUsed, NumDevices                                                        uint64
	TreeRootLevel, ChunkRootLevel, ExtentRootLevel, FSRootLevel, DevRootLevel, CsumRootLevel uint8
}

// DecodeSuperblock decodes the superblock that was read at the physical offset at, and validates all that
// is to be trusted before anything else was read (btrfs_validate_super). b has SuperblockSize bytes.
//
// Errors: ErrNoMagic when there is no btrfs; ErrUnsupported for a checksum type that csum does not
// compute, since nothing can be said about the rest then; ErrChecksum; otherwise ErrCorrupt. Whether the
// filesystem's features are supported is asked of [Superblock.Gate], not here.
func DecodeSuperblock(b []byte, at uint64) (*Superblock, error) {
	if len(b) != SuperblockSize {
		return nil, corrupt("superblock", "%d bytes, want %d", len(b), SuperblockSize)
	}
	if string(b[64:72]) != superMagic {
		return nil, ErrNoMagic
	}
	t := csum.Type(le.Uint16(b[196:]))
	if !t.Supported() {
		return nil, &UnsupportedError{Feature: "checksum type " + t.String()}
	}
	if !t.Match(b, b[csumRoom:]) {
		return nil, checksumError("superblock", t, b, b[csumRoom:])
	}
	s := decodeSuperFields(b)
	size := le.Uint32(b[160:])
	if size < KeySize+chunkHeaderSize+stripeSize || size > sysChunkArrayMax {
		return nil, corrupt("superblock", "sys_chunk_array_size %d, want %d to %d",
			size, KeySize+chunkHeaderSize+stripeSize, sysChunkArrayMax)
	}
	s.SysChunkArray = slices.Clone(b[811 : 811+size])
	if leaf := le.Uint32(b[152:]); leaf != s.NodeSize {
		return nil, corrupt("superblock", "leafsize %d, nodesize %d", leaf, s.NodeSize)
	}
	if err := s.validate(at); err != nil {
		return nil, err
	}
	return s, nil
}

// struct btrfs_super_block, 4096 bytes: csum [32] @0, fsid [16] @32, bytenr @48, flags @56, magic [8] @64,
// generation @72, root @80, chunk_root @88, log_root @96, total_bytes @112, bytes_used @120, num_devices
// @136, sectorsize u32 @144, nodesize u32 @148, leafsize u32 @152, stripesize u32 @156,
// sys_chunk_array_size u32 @160, chunk_root_generation @164, compat @172, compat_ro @180, incompat @188,
// csum_type u16 @196, root_level u8 @198, chunk_root_level u8 @199, log_root_level u8 @200, dev_item [98]
// @201, label [256] @299, metadata_uuid [16] @571, sys_chunk_array [2048] @811, super_roots [4][168] @2859.
func decodeSuperFields(b []byte) *Superblock {
	label, _, _ := bytes.Cut(b[299:299+labelSize], []byte{0})
	s := &Superblock{
		CsumType:   csum.Type(le.Uint16(b[196:])),
		FSID:       UUID(b[32:48]),
		Bytenr:     le.Uint64(b[48:]),
		Flags:      le.Uint64(b[56:]),
		Generation: le.Uint64(b[72:]),

		Root:                Logical(le.Uint64(b[80:])),
		ChunkRoot:           Logical(le.Uint64(b[88:])),
		LogRoot:             Logical(le.Uint64(b[96:])),
		RootLevel:           b[198],
		ChunkRootLevel:      b[199],
		LogRootLevel:        b[200],
		ChunkRootGeneration: le.Uint64(b[164:]),

		TotalBytes: le.Uint64(b[112:]),
		BytesUsed:  le.Uint64(b[120:]),
		NumDevices: le.Uint64(b[136:]),
		SectorSize: le.Uint32(b[144:]),
		NodeSize:   le.Uint32(b[148:]),
		StripeSize: le.Uint32(b[156:]),

		Compat:   le.Uint64(b[172:]),
		CompatRO: le.Uint64(b[180:]),
		Incompat: le.Uint64(b[188:]),

		Dev:          decodeDevFields(b[201 : 201+devItemSize]),
		Label:        string(label),
		MetadataUUID: UUID(b[571:587]),
	}
	for i := range s.Backups {
		s.Backups[i] = decodeBackupRoot(b[2859+i*backupRootSize:])
	}
	return s
}

// struct btrfs_root_backup, 168 bytes: six pairs of root u64 and generation u64 from 0 (tree, chunk, extent,
// fs, dev, csum), total_bytes @96, bytes_used @104, num_devices @112, unused [4]u64, six levels u8 @152.
func decodeBackupRoot(b []byte) BackupRoot {
	_ = b[backupRootSize-1]
	return BackupRoot{
		TreeRoot: Logical(le.Uint64(b)), TreeRootGeneration: le.Uint64(b[8:]), TreeRootLevel: b[152],
		ChunkRoot: Logical(le.Uint64(b[16:])), ChunkRootGeneration: le.Uint64(b[24:]), ChunkRootLevel: b[153],
		ExtentRoot: Logical(le.Uint64(b[32:])), ExtentRootGeneration: le.Uint64(b[40:]), ExtentRootLevel: b[154],
		FSRoot: Logical(le.Uint64(b[48:])), FSRootGeneration: le.Uint64(b[56:]), FSRootLevel: b[155],
		DevRoot: Logical(le.Uint64(b[64:])), DevRootGeneration: le.Uint64(b[72:]), DevRootLevel: b[156],
		CsumRoot: Logical(le.Uint64(b[80:])), CsumRootGeneration: le.Uint64(b[88:]), CsumRootLevel: b[157],
		TotalBytes: le.Uint64(b[96:]), BytesUsed: le.Uint64(b[104:]), NumDevices: le.Uint64(b[112:]),
	}
}

// validate checks the decoded fields (btrfs_validate_super), sizes first since later checks divide by them.
func (s *Superblock) validate(at uint64) error {
	if err := s.validateSizes(); err != nil {
		return err
	}
	if err := s.validateRoots(); err != nil {
		return err
	}
	return s.validateIdentity(at)
}

func (s *Superblock) validateSizes() error {
	switch {
	case bits.OnesCount32(s.SectorSize) != 1 || s.SectorSize < minSectorSize || s.SectorSize > maxNodeSize:
		return corrupt("superblock", "sectorsize %d is not a power of two from 4096 to 65536", s.SectorSize)
	case bits.OnesCount32(s.NodeSize) != 1 || s.NodeSize < s.SectorSize || s.NodeSize > maxNodeSize:
		return corrupt("superblock", "nodesize %d is not a power of two from %d to 65536", s.NodeSize, s.SectorSize)
	case bits.OnesCount32(s.StripeSize) != 1:
		return corrupt("superblock", "stripesize %d is not a power of two", s.StripeSize)
	case s.BytesUsed < 6*uint64(s.NodeSize):
		return corrupt("superblock", "bytes_used %d is less than six nodes", s.BytesUsed)
	case s.NumDevices == 0 || s.NumDevices > 1<<31:
		return corrupt("superblock", "num_devices %d", s.NumDevices)
	}
	return nil
}

func (s *Superblock) validateRoots() error {
	roots := [...]struct {
		name     string
		at       Logical
		level    uint8
		optional bool
	}{
		{"root", s.Root, s.RootLevel, false},
		{"chunk_root", s.ChunkRoot, s.ChunkRootLevel, false},
		{"log_root", s.LogRoot, s.LogRootLevel, true},
	}
	for _, r := range roots {
		switch {
		case r.level >= maxLevel:
			return corrupt("superblock", "%s_level %d, want less than %d", r.name, r.level, maxLevel)
		case r.at == 0 && !r.optional:
			return corrupt("superblock", "%s is 0", r.name)
		case uint64(r.at)%uint64(s.SectorSize) != 0:
			return corrupt("superblock", "%s %d is not aligned to %d", r.name, r.at, s.SectorSize)
		}
	}
	return nil
}

func (s *Superblock) validateIdentity(at uint64) error {
	switch {
	case s.Bytenr != at:
		return corrupt("superblock", "bytenr %d, read at %d", s.Bytenr, at)
	case s.Dev.FSID != s.TreeFSID():
		return corrupt("superblock", "fsid %s, but the device item says %s", s.TreeFSID(), s.Dev.FSID)
	case s.CompatRO&CompatROBlockGroupTree != 0 && (s.CompatRO&CompatROFreeSpaceTreeValid == 0 || s.Incompat&IncompatNoHoles == 0):
		return corrupt("superblock", "block-group-tree without no-holes and free-space-tree-valid")
	}
	return nil
}

// TreeFSID returns the UUID that tree blocks and device items carry: metadata_uuid after btrfstune -m has
// changed the visible fsid, else the fsid.
func (s *Superblock) TreeFSID() UUID {
	if s.Incompat&IncompatMetadataUUID != 0 {
		return s.MetadataUUID
	}
	return s.FSID
}

// ChunkEntry is a chunk and the logical address at which it starts.
type ChunkEntry struct {
	Logical Logical
	Chunk   Chunk
}

// SysChunks decodes sys_chunk_array, the system chunks that hold the chunk tree (btrfs_read_sys_array).
// There is at least one in the result. Whether they overlap is for the chunk map to say.
func (s *Superblock) SysChunks() ([]ChunkEntry, error) {
	var chunks []ChunkEntry
	for b := s.SysChunkArray; len(b) > 0; {
		at := len(s.SysChunkArray) - len(b)
		if len(b) < KeySize+chunkHeaderSize {
			return nil, corrupt("sys_chunk_array", "%d bytes left at %d hold no chunk", len(b), at)
		}
		key := decodeKey(b)
		if key.ObjectID != FirstChunkTreeObjectID || key.Type != TypeChunkItem {
			return nil, corrupt("sys_chunk_array", "key %s at %d is not of a chunk", key, at)
		}
		b = b[KeySize:]
		size := chunkHeaderSize + stripeSize*int(le.Uint16(b[44:]))
		if size > len(b) {
			return nil, corrupt("sys_chunk_array", "chunk at %d takes %d of %d bytes", at, size, len(b))
		}
		c, err := DecodeChunk(b[:size], Logical(key.Offset), s.SectorSize)
		if err != nil {
			return nil, fmt.Errorf("sys_chunk_array at %d: %w", at, err)
		}
		if !c.IsSystem() {
			return nil, corrupt("sys_chunk_array", "chunk %d has type 0x%x, want system", key.Offset, c.Type)
		}
		chunks = append(chunks, ChunkEntry{Logical: Logical(key.Offset), Chunk: c})
		b = b[size:]
	}
	if len(chunks) == 0 {
		return nil, corrupt("sys_chunk_array", "empty")
	}
	return chunks, nil
}
