package codec

import (
	"encoding/binary"
	"fmt"
)

// lzoLen is the size of the length fields of LZO's framing, the total as well as a segment's.
const lzoLen = 4

// lzo inflates a chain of LZO1X segments (fs/btrfs/lzo.c): LE32 total length including itself, then for each
// sector LE32 length and payload. A length never straddles a sector of src: where less than its 4 bytes are
// left, the sector ends with padding. A segment inflates to one sector, the last one to at most that. Nothing
// behind total is looked at.
func (d *Decoder) lzo(dst, src []byte, sectorSize, from int) error {
	if sectorSize < 512 || sectorSize > 64<<10 || sectorSize&(sectorSize-1) != 0 {
		return lzoError(0, "sector size %d", sectorSize)
	}
	total, err := lzoTotal(src, sectorSize)
	if err != nil {
		return err
	}
	src = src[:total]
	to := from + len(dst)
	end := from // of the output that stands in dst
	for at, pos := lzoLen, 0; at < total && pos < to; pos += sectorSize {
		start, stop, err := lzoSegment(src, at, sectorSize)
		if err != nil {
			return err
		}
		at = lzoNext(stop, sectorSize)
		if pos+sectorSize <= from {
			continue
		}
		n, err := d.lzoSegmentInto(dst, src, start, stop, pos-from, sectorSize)
		if err != nil {
			return err
		}
		if n < sectorSize && at < total {
			return lzoError(start, "segment inflates to %d of %d bytes and is not the last", n, sectorSize)
		}
		end = min(pos+n, to)
	}
	clear(dst[max(end-from, 0):])
	return nil
}

// lzoTotal returns the length of the chain. Its last byte lies in the last sector of src, as the kernel
// demands (lzo_decompress_bio): a shorter total would end the output early without another sign.
func lzoTotal(src []byte, sectorSize int) (int, error) {
	if len(src) < lzoLen {
		return 0, lzoError(0, "total length cut off")
	}
	total := binary.LittleEndian.Uint32(src)
	switch {
	case uint64(total) > uint64(len(src)):
		return 0, lzoError(0, "total length %d of %d bytes", total, len(src))
	case total <= 2*lzoLen:
		return 0, lzoError(0, "total length %d, no segment", total)
	case len(src)-int(total) >= sectorSize:
		return 0, lzoError(0, "total length %d, extent has %d bytes", total, len(src))
	}
	return int(total), nil
}

// lzoSegment returns where the payload of the segment whose length stands at lies in src.
func lzoSegment(src []byte, at, sectorSize int) (start, stop int, err error) {
	if len(src)-at < lzoLen {
		return 0, 0, lzoError(at, "segment length cut off")
	}
	n := binary.LittleEndian.Uint32(src[at:])
	start = at + lzoLen
	if uint64(n) > uint64(len(src)-start) {
		return 0, 0, lzoError(at, "segment of %d bytes, %d are left", n, len(src)-start)
	}
	return start, start + int(n), nil
}

// lzoNext returns where the next segment's length stands, after a payload that ends at stop.
func lzoNext(stop, sectorSize int) int {
	if left := sectorSize - stop&(sectorSize-1); left < lzoLen {
		return stop + left
	}
	return stop
}

// lzoSegmentInto inflates the payload src[start:stop], whose output belongs at rel in dst, and returns the
// length of that output. It goes straight to dst where dst has room for it and for the decoder's slack,
// which the next segment or the zeros behind the last overwrite; else by way of the scratch.
func (d *Decoder) lzoSegmentInto(dst, src []byte, start, stop, rel, sectorSize int) (int, error) {
	if rel >= 0 && len(dst)-rel >= sectorSize+lzo1xSlack {
		return lzo1x(dst[rel:], sectorSize, src, start, stop)
	}
	n, err := lzo1x(d.scratch[:], sectorSize, src, start, stop)
	if err != nil {
		return 0, err
	}
	if skip := max(-rel, 0); skip < n {
		copy(dst[rel+skip:], d.scratch[skip:n])
	}
	return n, nil
}

func lzoError(at int, format string, args ...any) error {
	return &Error{Kind: LZO, Offset: at, Detail: fmt.Sprintf(format, args...)}
}
