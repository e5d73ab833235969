// Package csum computes the checksums that btrfs keeps of its blocks.
//
// The superblock names one [Type] for the whole filesystem: it covers superblocks, tree blocks and the
// sectors of files alike. Package ondisk checks superblocks and tree blocks with it, package volume the
// sectors. Everything here is pure and may be called concurrently. Only crc32c is computed so far; the
// other types are known by name and size, so that they can be refused by name.
package csum

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"strconv"
)

// Type is the on-disk csum_type (btrfs_super_block.csum_type). The set is closed: a value that is not one
// of the constants is unknown, has Size 0 and is not Supported.
type Type uint16

// The types that the format defines (enum btrfs_csum_type).
const (
	CRC32C   Type = 0 // Castagnoli, stored little-endian
	XXHash64 Type = 1
	SHA256   Type = 2
	BLAKE2b  Type = 3 // digest length 32, no key
)

// MaxSize is the room in bytes that superblocks and tree blocks reserve for a checksum of any type.
const MaxSize = 32

// String returns the name that btrfs-progs uses, or "unknown-N" for a type that the format does not define.
func (t Type) String() string {
	switch t {
	case CRC32C:
		return "crc32c"
	case XXHash64:
		return "xxhash64"
	case SHA256:
		return "sha256"
	case BLAKE2b:
		return "blake2b"
	}
	return "unknown-" + strconv.Itoa(int(t))
}

// Size returns the bytes that one sum takes in the checksum tree, and 0 for an unknown type.
func (t Type) Size() int {
	switch t {
	case CRC32C:
		return 4
	case XXHash64:
		return 8
	case SHA256, BLAKE2b:
		return 32
	}
	return 0
}

// Supported reports whether Sum and Match can compute the type.
func (t Type) Supported() bool { return t == CRC32C }

// Sum stores the checksum of b in dst as it stands on the disk, the rest of dst zero. It does not
// allocate. The sum of a type that is not Supported is all zeros: callers ask Supported first.
func (t Type) Sum(dst *[MaxSize]byte, b []byte) {
	*dst = [MaxSize]byte{}
	if t == CRC32C {
		binary.LittleEndian.PutUint32(dst[:], crc32.Checksum(b, castagnoli()))
	}
}

// Match reports whether the first Size bytes of want are the checksum of b. It does not allocate. It is
// false when want is shorter than that and when the type is not Supported: nothing passes unverified.
func (t Type) Match(want, b []byte) bool {
	if !t.Supported() || len(want) < t.Size() {
		return false
	}
	var got [MaxSize]byte
	t.Sum(&got, b)
	return bytes.Equal(want[:t.Size()], got[:t.Size()])
}

// castagnoli returns the table that hash/crc32 shares and for which it uses the CPU's instruction.
func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }
