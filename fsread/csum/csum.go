// Package csum computes the checksums that btrfs keeps of its blocks.
//
// The superblock names one [Type] for the whole filesystem: it covers superblocks, tree blocks and the
// sectors of files alike. Package ondisk checks superblocks and tree blocks with it, package volume the
// sectors. Everything here is pure and may be called concurrently.
package csum

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash/crc32"
	"strconv"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/crypto/blake2b"
)

// Type is the on-disk csum_type (btrfs_super_block.csum_type). The set is closed: a value that is not one
// of the constants is unknown, has Size 0 and is not Supported.
type Type uint16

// The types that the format defines (enum btrfs_csum_type).
const (
	CRC32C   Type = 0 // Castagnoli, stored little-endian
	XXHash64 Type = 1 // XXH64 with seed 0, stored little-endian
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

// Slow reports whether a sum takes about as long as a fast device takes to deliver the bytes.
func (t Type) Slow() bool { return t == SHA256 || t == BLAKE2b }

// Supported reports whether Sum and Match can compute the type: every one that the format defines.
func (t Type) Supported() bool { return t.Size() > 0 }

// Sum stores the checksum of b in dst as it stands on the disk, the rest of dst zero. It does not
// allocate. The sum of a type that is not Supported is all zeros: callers ask Supported first.
func (t Type) Sum(dst *[MaxSize]byte, b []byte) {
	switch t {
	case SHA256:
		*dst = sha256.Sum256(b)
		return
	case BLAKE2b:
		*dst = blake2b.Sum256(b)
		return
	}
	*dst = [MaxSize]byte{}
	switch t {
	case CRC32C:
		binary.LittleEndian.PutUint32(dst[:], crc32.Checksum(b, castagnoli()))
	case XXHash64:
		binary.LittleEndian.PutUint64(dst[:], xxhash.Sum64(b))
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
