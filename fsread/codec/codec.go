// Package codec inflates the compressed extents of btrfs: zlib, LZO and zstd.
//
// One extent is one call: its bytes as they lie on the disk go in, at most 128 KiB come out. Everything here
// is pure. What is read is hostile: the output is bounded by what the caller asks for, memory by constants
// and time by the length of the input.
//
// Decoding well is no verification: every fifth flipped byte of a zstd frame gives wrong bytes and no error.
// The caller checks the checksums of the compressed sectors first, and asks another copy both when they are
// wrong and when Inflate fails.
package codec

import (
	"errors"
	"strconv"

	"github.com/klauspost/compress/zstd"
)

// Kind is the on-disk compression of a file extent (btrfs_file_extent_item.compression).
type Kind uint8

// The kinds that the format defines (enum btrfs_compression_type).
const (
	Zlib Kind = 1 // RFC 1950
	LZO  Kind = 2 // LZO1X in segments of one sector each
	Zstd Kind = 3 // one frame, RFC 8878
)

// String returns the name that mount options use, or "unknown-N" for a kind that the format does not define.
func (k Kind) String() string {
	switch k {
	case Zlib:
		return "zlib"
	case LZO:
		return "lzo"
	case Zstd:
		return "zstd"
	}
	return "unknown-" + strconv.Itoa(int(k))
}

// MaxExtent is the largest compressed extent in bytes, on the disk as well as inflated
// (BTRFS_MAX_COMPRESSED, BTRFS_MAX_UNCOMPRESSED).
const MaxExtent = 128 << 10

// slack is the room behind an output that lets decoders copy words instead of bytes. The zstd decoder takes a
// slow path when less than a few hundred bytes of capacity stay behind its output.
const slack = 512

// ErrCorrupt is the kind of every error that an extent's bytes cause, for errors.Is.
var ErrCorrupt = errors.New("corrupt compressed data")

// Error says where a compressed extent is corrupt and how. It is ErrCorrupt.
type Error struct {
	Kind   Kind
	Offset int    // in the compressed bytes, where decoding stopped; for zstd, where its block or frame starts
	Detail string // the rule that is broken, with its values
}

func (e *Error) Error() string {
	return "corrupt " + e.Kind.String() + " extent at byte " + strconv.Itoa(e.Offset) + ": " + e.Detail
}

// Is makes the error ErrCorrupt.
func (e *Error) Is(target error) bool { return target == ErrCorrupt }

// Decoder inflates extents one after the other and reuses its working memory: about 140 KiB, and the state of
// zstd, made when first needed. It is not safe for concurrent use; keep one per worker. It
// has no goroutines and need not be closed. It keeps no reference to the slices that it is given.
type Decoder struct {
	scratch [MaxExtent + slack]byte
	flate   inflater
	zstd    *zstd.Decoder // nil until the first zstd extent
}

// NewDecoder returns a Decoder for all kinds.
func NewDecoder() *Decoder { return new(Decoder) }

// Inflate fills dst, which is ram_bytes long and at most MaxExtent, from src: the extent's bytes on the disk
// with their padding up to the sector, or the bytes of an inline item. sectorSize is the filesystem's, the
// unit of LZO; the other kinds ignore it. It does not allocate once the kind was used, errors aside.
//
// Both wrong lengths occur on healthy filesystems. Output shorter than dst is followed by zeros: the last
// extent of a file may have ram_bytes rounded up. Longer output is cut: newer kernels compress a whole sector
// for an inline extent whose ram_bytes is the file's size.
//
// Every error is an *Error; dst is then undefined.
func (d *Decoder) Inflate(kind Kind, dst, src []byte, sectorSize int) error {
	return d.InflateAt(kind, dst, src, sectorSize, 0)
}

// InflateStrict is Inflate for bytes that no checksum of the filesystem vouches for: it judges all that the format
// has, the adler32 of zlib as well, which Inflate leaves alone as the kernel does.
func (d *Decoder) InflateStrict(kind Kind, dst, src []byte, sectorSize int) error {
	if kind == Zlib && len(dst) <= MaxExtent && len(src) <= MaxExtent {
		return d.zlibStrict(dst, src)
	}
	return d.Inflate(kind, dst, src, sectorSize)
}

// InflateAt is Inflate for a part: dst gets the bytes of the output from offset from on. It costs one segment
// for each sector asked for with LZO, everything up to the end of dst with zlib, and the whole frame with
// zstd. What is not decoded is not judged. from+len(dst) is at most MaxExtent.
func (d *Decoder) InflateAt(kind Kind, dst, src []byte, sectorSize, from int) error {
	if from < 0 || from > MaxExtent || len(dst) > MaxExtent-from {
		return &Error{Kind: kind, Detail: "inflated bytes " + strconv.Itoa(from) + "+" + strconv.Itoa(len(dst)) + " of at most 131072"}
	}
	if len(src) > MaxExtent {
		return &Error{Kind: kind, Detail: strconv.Itoa(len(src)) + " bytes on the disk, at most 131072"}
	}
	switch kind {
	case Zlib:
		return d.zlib(dst, src, from)
	case LZO:
		return d.lzo(dst, src, sectorSize, from)
	case Zstd:
		return d.zstdFrame(dst, src, from)
	}
	return &Error{Kind: kind, Detail: "no such compression"}
}

// window copies the part of out from offset from on to dst, and zeros for what out does not have.
func window(dst, out []byte, from int) {
	n := copy(dst, out[min(from, len(out)):])
	clear(dst[n:])
}
