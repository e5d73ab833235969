package codec

import (
	"encoding/binary"
	"errors"
	"strconv"

	"github.com/klauspost/compress/zstd"
)

const (
	zstdMagic = 0xFD2FB528
	// maxZstdWindow bounds the window that a frame may ask for: kernels write at most 128 KiB, other writers
	// were seen with more. It costs no memory: the output is the window here, and its capacity bounds it.
	maxZstdWindow = 8 << 20
)

// zstdFrame inflates the one frame that src starts with and ignores the padding behind it, in which the
// decoder would look for another frame. The frame goes to the scratch and is copied from there, for it may be
// longer than dst, and the decoder is slower without room behind its output: measured, that costs what the
// copy does, 2 to 4 %. A frame that inflates to more than MaxExtent is corrupt.
func (d *Decoder) zstdFrame(dst, src []byte, from int) error {
	n, err := zstdFrameLen(src)
	if err != nil {
		return err
	}
	if d.zstd == nil {
		d.zstd, err = zstd.NewReader(nil,
			zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderLowmem(false),
			zstd.WithDecoderMaxWindow(maxZstdWindow),
			zstd.WithDecoderMaxMemory(maxZstdWindow),
			zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			return &Error{Kind: Zstd, Detail: err.Error()}
		}
	}
	out, err := d.zstd.DecodeAll(src[:n], d.scratch[:0])
	switch {
	case errors.Is(err, zstd.ErrDecoderSizeExceeded) || err == nil && len(out) > MaxExtent:
		return &Error{Kind: Zstd, Detail: "frame inflates to more than 131072 bytes"}
	case err != nil:
		return &Error{Kind: Zstd, Detail: err.Error()}
	}
	window(dst, out, from)
	return nil
}

// zstdFrameLen returns the length of the frame that b starts with, from its headers alone (RFC 8878, 3.1.1).
func zstdFrameLen(b []byte) (int, error) {
	at, checksum, err := zstdHeaderLen(b)
	if err != nil {
		return 0, err
	}
	for last := false; !last; {
		if len(b)-at < 3 {
			return 0, &Error{Kind: Zstd, Offset: at, Detail: "block header cut off"}
		}
		h := uint(b[at]) | uint(b[at+1])<<8 | uint(b[at+2])<<16
		last = h&1 != 0
		n := int(h >> 3)
		switch h >> 1 & 3 {
		case 1: // run of one byte
			n = 1
		case 3:
			return 0, &Error{Kind: Zstd, Offset: at, Detail: "reserved block type"}
		}
		if n > len(b)-at-3 {
			return 0, &Error{Kind: Zstd, Offset: at, Detail: "block of " + strconv.Itoa(n) + " bytes, " + strconv.Itoa(len(b)-at-3) + " are left"}
		}
		at += 3 + n
	}
	if checksum > len(b)-at {
		return 0, &Error{Kind: Zstd, Offset: at, Detail: "content checksum cut off"}
	}
	return at + checksum, nil
}

// zstdHeaderLen returns the length of the frame's header and of the checksum behind its last block.
func zstdHeaderLen(b []byte) (header, checksum int, err error) {
	if len(b) < 5 {
		return 0, 0, &Error{Kind: Zstd, Detail: "frame header cut off"}
	}
	if binary.LittleEndian.Uint32(b) != zstdMagic {
		return 0, 0, &Error{Kind: Zstd, Detail: "no zstd frame"}
	}
	desc := b[4]
	header = 5 + [...]int{0, 1, 2, 4}[desc&3] + [...]int{0, 2, 4, 8}[desc>>6]
	single := desc&0x20 != 0
	if !single {
		header++ // the window descriptor
	} else if desc>>6 == 0 {
		header++ // a content size of one byte
	}
	if len(b) < header {
		return 0, 0, &Error{Kind: Zstd, Detail: "frame header cut off"}
	}
	if desc&4 != 0 {
		checksum = 4
	}
	return header, checksum, nil
}
