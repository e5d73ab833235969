package ondisk

import (
	"fmt"
	"math/bits"
)

// Superblock flags (BTRFS_SUPER_FLAG_*).
const (
	SuperWritten          uint64 = 1 << 0
	SuperReloc            uint64 = 1 << 1
	SuperError            uint64 = 1 << 2
	SuperSeeding          uint64 = 1 << 32
	SuperMetadump         uint64 = 1 << 33
	SuperMetadumpV2       uint64 = 1 << 34
	SuperChangingFSID     uint64 = 1 << 35
	SuperChangingFSIDV2   uint64 = 1 << 36
	SuperChangingBGTree   uint64 = 1 << 38
	SuperChangingDataCsum uint64 = 1 << 39
	SuperChangingMetaCsum uint64 = 1 << 40
)

// Incompatible features (BTRFS_FEATURE_INCOMPAT_*): who does not know one must not read.
const (
	IncompatMixedBackref   uint64 = 1 << 0
	IncompatDefaultSubvol  uint64 = 1 << 1
	IncompatMixedGroups    uint64 = 1 << 2
	IncompatCompressLZO    uint64 = 1 << 3
	IncompatCompressZstd   uint64 = 1 << 4
	IncompatBigMetadata    uint64 = 1 << 5
	IncompatExtendedIref   uint64 = 1 << 6
	IncompatRAID56         uint64 = 1 << 7
	IncompatSkinnyMetadata uint64 = 1 << 8
	IncompatNoHoles        uint64 = 1 << 9
	IncompatMetadataUUID   uint64 = 1 << 10
	IncompatRAID1C34       uint64 = 1 << 11
	IncompatZoned          uint64 = 1 << 12
	IncompatExtentTreeV2   uint64 = 1 << 13
	IncompatRaidStripeTree uint64 = 1 << 14
	IncompatSimpleQuota    uint64 = 1 << 16
	IncompatRemapTree      uint64 = 1 << 17
)

// Features that only a writer has to know (BTRFS_FEATURE_COMPAT_RO_*).
const (
	CompatROFreeSpaceTree      uint64 = 1 << 0
	CompatROFreeSpaceTreeValid uint64 = 1 << 1
	CompatROVerity             uint64 = 1 << 2
	CompatROBlockGroupTree     uint64 = 1 << 3
)

// readableIncompat holds the features with which every byte is still found by the rules that this program
// follows. Compressed extents and parity chunks are judged one by one where they are read, not here.
const readableIncompat = IncompatMixedBackref | IncompatDefaultSubvol | IncompatMixedGroups |
	IncompatCompressLZO | IncompatCompressZstd | IncompatBigMetadata | IncompatExtendedIref |
	IncompatRAID56 | IncompatSkinnyMetadata | IncompatNoHoles | IncompatMetadataUUID |
	IncompatRAID1C34 | IncompatRaidStripeTree | IncompatSimpleQuota

// readableFlags go on: a filesystem that recorded an error or that serves as a seed is still readable.
const readableFlags = SuperWritten | SuperReloc | SuperError | SuperSeeding

// Gate refuses a filesystem that this program would read wrongly: an ErrUnsupported which names the flag
// or incompatible feature, or gives its bit when it has no known name. Read-only compatible features are
// ignored, unknown ones too; that is what they are for. A seed device passes: whether the filesystem
// needs others is known only from its chunk tree.
func (s *Superblock) Gate() error {
	if f := s.Flags &^ readableFlags; f != 0 {
		return refuse("superblock flag", f&-f, flagName(f&-f))
	}
	if f := s.Incompat &^ readableIncompat; f != 0 {
		return refuse("incompatible feature", f&-f, incompatName(f&-f))
	}
	return nil
}

func refuse(kind string, bit uint64, name string) error {
	if name == "" {
		return &UnsupportedError{Feature: fmt.Sprintf("%s bit 0x%x", kind, bit), Unknown: true}
	}
	return &UnsupportedError{Feature: kind + " " + name}
}

// Features returns the names of the incompatible and then of the read-only compatible features, each from
// the lowest bit up; "unknown-bit-23" where a bit has no known name.
func (s *Superblock) Features() []string {
	names := featureNames(nil, s.Incompat, incompatName)
	return featureNames(names, s.CompatRO, compatROName)
}

func featureNames(names []string, set uint64, name func(uint64) string) []string {
	for ; set != 0; set &= set - 1 {
		n := name(set & -set)
		if n == "" {
			n = fmt.Sprintf("unknown-bit-%d", bits.TrailingZeros64(set))
		}
		names = append(names, n)
	}
	return names
}

func flagName(bit uint64) string {
	switch bit {
	case SuperMetadump:
		return "METADUMP"
	case SuperMetadumpV2:
		return "METADUMP_V2"
	case SuperChangingFSID:
		return "CHANGING_FSID"
	case SuperChangingFSIDV2:
		return "CHANGING_FSID_V2"
	case SuperChangingBGTree:
		return "CHANGING_BG_TREE"
	case SuperChangingDataCsum:
		return "CHANGING_DATA_CSUM"
	case SuperChangingMetaCsum:
		return "CHANGING_META_CSUM"
	}
	return ""
}

func incompatName(bit uint64) string {
	switch bit {
	case IncompatMixedBackref:
		return "mixed-backref"
	case IncompatDefaultSubvol:
		return "default-subvol"
	case IncompatMixedGroups:
		return "mixed-groups"
	case IncompatCompressLZO:
		return "compress-lzo"
	case IncompatCompressZstd:
		return "compress-zstd"
	case IncompatBigMetadata:
		return "big-metadata"
	case IncompatExtendedIref:
		return "extended-iref"
	case IncompatRAID56:
		return "raid56"
	case IncompatSkinnyMetadata:
		return "skinny-metadata"
	case IncompatNoHoles:
		return "no-holes"
	case IncompatMetadataUUID:
		return "metadata-uuid"
	case IncompatRAID1C34:
		return "raid1c34"
	case IncompatZoned:
		return "zoned"
	case IncompatExtentTreeV2:
		return "extent-tree-v2"
	case IncompatRaidStripeTree:
		return "raid-stripe-tree"
	case IncompatSimpleQuota:
		return "simple-quota"
	case IncompatRemapTree:
		return "remap-tree"
	}
	return ""
}

func compatROName(bit uint64) string {
	switch bit {
	case CompatROFreeSpaceTree:
		return "free-space-tree"
	case CompatROFreeSpaceTreeValid:
		return "free-space-tree-valid"
	case CompatROVerity:
		return "verity"
	case CompatROBlockGroupTree:
		return "block-group-tree"
	}
	return ""
}
