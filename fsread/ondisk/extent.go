package ondisk

import (
	"fmt"
	"math"
	"slices"
)

const (
	extentInlineHeaderSize = 21
	extentItemSize         = 53
)

// MaxCompressed is the largest compressed extent in bytes, on the disk as well as decompressed
// (BTRFS_MAX_COMPRESSED, BTRFS_MAX_UNCOMPRESSED). It bounds what decompressing one may cost.
const MaxCompressed = 128 << 10

// Values of FileExtent.Type (BTRFS_FILE_EXTENT_*).
const (
	ExtentInline   uint8 = 0 // the bytes are in the item
	ExtentRegular  uint8 = 1
	ExtentPrealloc uint8 = 2 // allocated and never written: zeros, whatever the disk holds
)

// Values of FileExtent.Compression (BTRFS_COMPRESS_*).
const (
	CompressNone uint8 = 0
	CompressZlib uint8 = 1
	CompressLZO  uint8 = 2
	CompressZstd uint8 = 3
)

// FileExtent is struct btrfs_file_extent_item: where a range of a file lies.
type FileExtent struct {
	Generation uint64
	// RAMBytes is the size decompressed, at most MaxCompressed for a compressed extent. For an
	// uncompressed one that is not inline it is not validated, since kernels left it wrong, and means nothing.
	RAMBytes    uint64
	Compression uint8 // Compress*
	Type        uint8 // Extent*

	Inline []byte // the payload of ExtentInline, as stored; aliases the item

	// The rest is zero for ExtentInline.
	DiskBytenr   Logical // 0: a hole
	DiskNumBytes uint64  // of the whole extent on the disk; at most MaxCompressed when compressed
	Offset       uint64  // where the file's bytes start in the extent, decompressed
	NumBytes     uint64  // bytes of the file; never 0
}

// DecodeFileExtent decodes and validates the payload of the EXTENT_DATA item at fileOffset
// (check_extent_data_item). All sizes of what it accepts may be added to their offsets without overflow.
// The error is ErrCorrupt. A good item costs no allocation.
//
// struct btrfs_file_extent_item, 53 bytes: generation u64 @0, ram_bytes u64 @8, compression u8 @16,
// encryption u8 @17, other_encoding u16 @18, type u8 @20, then inline data, or disk_bytenr u64 @21,
// disk_num_bytes u64 @29, offset u64 @37, num_bytes u64 @45.
func DecodeFileExtent(item []byte, fileOffset uint64, sectorSize uint32) (FileExtent, error) {
	if len(item) < extentInlineHeaderSize {
		return FileExtent{}, corruptExtent(fileOffset, "%d bytes", len(item))
	}
	x := FileExtent{
		Generation:  le.Uint64(item),
		RAMBytes:    le.Uint64(item[8:]),
		Compression: item[16],
		Type:        item[20],
	}
	switch {
	case fileOffset&uint64(sectorSize-1) != 0:
		return FileExtent{}, corruptExtent(fileOffset, "not aligned to %d", sectorSize)
	case x.Type > ExtentPrealloc:
		return FileExtent{}, corruptExtent(fileOffset, "type %d", x.Type)
	case x.Compression > CompressZstd:
		return FileExtent{}, corruptExtent(fileOffset, "compression %d", x.Compression)
	case item[17] != 0:
		return FileExtent{}, corruptExtent(fileOffset, "encryption %d", item[17])
	}
	if x.Type == ExtentInline {
		x.Inline = slices.Clip(item[extentInlineHeaderSize:])
		if err := x.checkInline(fileOffset); err != nil {
			return FileExtent{}, err
		}
		return x, nil
	}
	if len(item) != extentItemSize {
		return FileExtent{}, corruptExtent(fileOffset, "%d bytes, want %d", len(item), extentItemSize)
	}
	x.DiskBytenr = Logical(le.Uint64(item[21:]))
	x.DiskNumBytes = le.Uint64(item[29:])
	x.Offset = le.Uint64(item[37:])
	x.NumBytes = le.Uint64(item[45:])
	if err := x.checkRange(fileOffset, uint64(sectorSize-1)); err != nil {
		return FileExtent{}, err
	}
	if err := x.checkBacking(fileOffset, uint64(sectorSize-1)); err != nil {
		return FileExtent{}, err
	}
	return x, nil
}

// Span returns the bytes of the file that the extent covers: NumBytes, and for inline data their size
// rounded up to a sector (btrfs_file_extent_end).
func (x *FileExtent) Span(sectorSize uint32) uint64 {
	if x.Type == ExtentInline {
		mask := uint64(sectorSize - 1)
		return (x.RAMBytes + mask) &^ mask
	}
	return x.NumBytes
}

func (x *FileExtent) checkInline(fileOffset uint64) error {
	switch {
	case fileOffset != 0:
		return corruptExtent(fileOffset, "inline, but not at 0")
	case x.Compression == CompressNone && x.RAMBytes != uint64(len(x.Inline)):
		return corruptExtent(fileOffset, "ram_bytes %d, %d bytes inline", x.RAMBytes, len(x.Inline))
	case x.Compression != CompressNone && x.RAMBytes > MaxCompressed:
		return corruptExtent(fileOffset, "ram_bytes %d, compressed inline", x.RAMBytes)
	}
	return nil
}

// checkRange checks alignment and that no sum overflows. An extent without bytes would turn its range into
// a hole, so it is refused although the kernel lets it pass.
func (x *FileExtent) checkRange(fileOffset, mask uint64) error {
	switch {
	case (uint64(x.DiskBytenr)|x.DiskNumBytes|x.Offset|x.NumBytes)&mask != 0:
		return corruptExtent(fileOffset, "disk_bytenr %d, disk_num_bytes %d, offset %d, num_bytes %d: not aligned to %d",
			x.DiskBytenr, x.DiskNumBytes, x.Offset, x.NumBytes, mask+1)
	case x.NumBytes == 0:
		return corruptExtent(fileOffset, "num_bytes 0")
	case fileOffset > math.MaxUint64-x.NumBytes:
		return corruptExtent(fileOffset, "num_bytes %d end past 2^64", x.NumBytes)
	case x.Offset > math.MaxUint64-x.NumBytes:
		return corruptExtent(fileOffset, "offset %d, num_bytes %d", x.Offset, x.NumBytes)
	case uint64(x.DiskBytenr) > math.MaxUint64-x.DiskNumBytes:
		return corruptExtent(fileOffset, "disk_bytenr %d, disk_num_bytes %d end past 2^64", x.DiskBytenr, x.DiskNumBytes)
	}
	return nil
}

// checkBacking checks that the bytes asked for are inside the extent, where there is one to be read.
func (x *FileExtent) checkBacking(fileOffset, mask uint64) error {
	if x.DiskBytenr == 0 || x.Type == ExtentPrealloc {
		return nil
	}
	if x.Compression == CompressNone {
		if x.Offset+x.NumBytes > x.DiskNumBytes {
			return corruptExtent(fileOffset, "offset %d, num_bytes %d, disk_num_bytes %d", x.Offset, x.NumBytes, x.DiskNumBytes)
		}
		return nil
	}
	switch {
	case x.DiskNumBytes == 0 || x.DiskNumBytes > MaxCompressed:
		return corruptExtent(fileOffset, "compressed, disk_num_bytes %d", x.DiskNumBytes)
	case x.RAMBytes&mask != 0 || x.RAMBytes > MaxCompressed:
		return corruptExtent(fileOffset, "compressed, ram_bytes %d", x.RAMBytes)
	case x.Offset+x.NumBytes > x.RAMBytes:
		return corruptExtent(fileOffset, "compressed, offset %d, num_bytes %d, ram_bytes %d", x.Offset, x.NumBytes, x.RAMBytes)
	}
	return nil
}

func corruptExtent(fileOffset uint64, format string, args ...any) error {
	return corrupt(fmt.Sprintf("file extent at %d", fileOffset), format, args...)
}
