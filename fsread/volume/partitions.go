package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/devio/parttable"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// maxOffered bounds how many partitions the error about a whole disk names.
const maxOffered = 4

// noFilesystem is the error of a device that holds no superblock; of a whole disk it says which partition does.
func noFilesystem(ctx context.Context, pool *devio.Pool, d Device) error {
	return fmt.Errorf("open %s: %w at 64 KiB, 64 MiB or 256 GiB (%s)", d.Name(), ErrNoFilesystem, elsewhere(ctx, pool, d))
}

// elsewhere looks for btrfs on the partitions of a disk. What can't be read ends the search: it is a courtesy of an error.
func elsewhere(ctx context.Context, pool *devio.Pool, d Device) string {
	parts, err := parttable.Read(func(p []byte, off uint64) error { return readAt(ctx, pool, d, p, off) }, d.Size())
	if err != nil {
		return "is it the right device? a partitioned disk has its filesystems on partitions"
	}
	var offers []string
	more := 0
	for _, p := range parts {
		switch {
		case !holdsBtrfs(ctx, pool, d, p):
		case len(offers) == maxOffered:
			more++
		default:
			offers = append(offers, fmt.Sprintf("partition %d at offset %d holds btrfs: use -d %s", p.Number, p.Start, inside(d, p.Start)))
		}
	}
	if more > 0 {
		offers = append(offers, fmt.Sprintf("and %d more do", more))
	}
	if len(offers) == 0 {
		return fmt.Sprintf("it is a partitioned disk, and no partition of %d holds btrfs: is it the right device?", len(parts))
	}
	return "is it a partitioned disk? " + strings.Join(offers, "; ")
}

// inside names what begins at an offset of d.
func inside(d Device, offset uint64) string {
	if q, ok := d.(interface{ At(uint64) string }); ok {
		return q.At(offset)
	}
	return fmt.Sprintf("%s@%d", d.Name(), offset)
}

func holdsBtrfs(ctx context.Context, pool *devio.Pool, d Device, p parttable.Partition) bool {
	at := ondisk.SuperblockOffsets()[0]
	if p.Size < at+ondisk.SuperblockSize {
		return false
	}
	b := make([]byte, ondisk.SuperblockSize)
	if err := readAt(ctx, pool, d, b, p.Start+at); err != nil {
		return false
	}
	_, err := ondisk.DecodeSuperblock(b, at)
	return !errors.Is(err, ondisk.ErrNoMagic)
}

// readAt reads bytes wherever they lie; the device's alignment is seen to. A read that O_DIRECT wants to reach over
// the end of a file brings what there is.
func readAt(ctx context.Context, pool *devio.Pool, d Device, p []byte, off uint64) error {
	mask := uint64(d.Align()) - 1
	skip := off & mask
	n := (skip + uint64(len(p)) + mask) &^ mask
	b, err := readSome(ctx, pool, d, devio.Physical(off-skip), int(n))
	if uint64(len(b)) >= skip+uint64(len(p)) && (err == nil || errors.Is(err, io.ErrUnexpectedEOF)) {
		copy(p, b[skip:])
		return nil
	}
	return err
}
