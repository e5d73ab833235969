package codec

import (
	"encoding/binary"
	"fmt"
	"hash/adler32"
)

// zlibHeader is the length of the header of RFC 1950: the method and window byte, and the flag byte.
const zlibHeader = 2

// zlib inflates an RFC 1950 stream up to the end of dst or of the stream. The adler32 behind the stream is not
// looked at: the kernel skips it too (fs/btrfs/zlib.c, zlib_decompress_bio), so it reads extents whose adler32
// is wrong or cut off, and the checksums of the sectors cover the same bytes. Nor is the padding behind it.
func (d *Decoder) zlib(dst, src []byte, from int) error {
	if from == 0 {
		n, err := d.deflate(dst, src)
		if err == nil {
			clear(dst[n:])
		}
		return err
	}
	out := d.scratch[:from+len(dst)]
	n, err := d.deflate(out, src)
	if err == nil {
		window(dst, out[:n], from)
	}
	return err
}

// zlibStrict inflates the whole stream, whatever of it dst takes, and looks at the adler32 behind it.
func (d *Decoder) zlibStrict(dst, src []byte) error {
	out := d.scratch[:MaxExtent+1]
	n, err := d.deflate(out, src)
	if err != nil {
		return err
	}
	if n > MaxExtent {
		return &Error{Kind: Zlib, Detail: "more than 131072 bytes"}
	}
	at := zlibHeader + d.flate.at
	if len(src)-at < adler32.Size {
		return &Error{Kind: Zlib, Offset: at, Detail: "adler32 cut off"}
	}
	if want, got := binary.BigEndian.Uint32(src[at:]), adler32.Checksum(out[:n]); got != want {
		return &Error{Kind: Zlib, Offset: at, Detail: fmt.Sprintf("adler32 is %08x, want %08x", got, want)}
	}
	window(dst, out[:n], 0)
	return nil
}

// deflate inflates the stream behind the header until out is full or the stream ends, and returns the bytes.
func (d *Decoder) deflate(out, src []byte) (int, error) {
	if err := checkZlibHeader(src); err != nil {
		return 0, err
	}
	n, err := d.flate.inflate(out, src[zlibHeader:])
	if err != nil {
		return 0, &Error{Kind: Zlib, Offset: zlibHeader + d.flate.at, Detail: err.Error()}
	}
	return n, nil
}

// checkZlibHeader refuses what is no zlib stream, and a preset dictionary, which btrfs never uses.
func checkZlibHeader(src []byte) error {
	switch {
	case len(src) < zlibHeader:
		return &Error{Kind: Zlib, Detail: "header cut off"}
	case src[0]&0x0F != 8 || src[0]>>4 > 7 || (uint(src[0])<<8|uint(src[1]))%31 != 0:
		return &Error{Kind: Zlib, Detail: "no zlib header"}
	case src[1]&0x20 != 0:
		return &Error{Kind: Zlib, Offset: 1, Detail: "preset dictionary"}
	}
	return nil
}
