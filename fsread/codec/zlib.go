package codec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/adler32"
	"io"

	"github.com/klauspost/compress/flate"
)

// zlibHeader is the length of the header of RFC 1950: the method and window byte, and the flag byte.
const zlibHeader = 2

// zlib inflates an RFC 1950 stream up to the end of dst or of the stream. The adler32 behind the stream is not
// looked at: the kernel skips it too (fs/btrfs/zlib.c, zlib_decompress_bio), so it reads extents whose adler32
// is wrong or cut off, and the checksums of the sectors cover the same bytes. Nor is the padding behind it.
// strict: it is looked at, and whole.
func (d *Decoder) zlib(dst, src []byte, from int, strict bool) error {
	if err := checkZlibHeader(src); err != nil {
		return err
	}
	out := dst
	if from > 0 {
		out = d.scratch[:from+len(dst)]
	}
	d.in.Reset(src[zlibHeader:])
	defer d.in.Reset(nil)
	if d.flate == nil {
		d.flate = flate.NewReader(&d.in).(inflater)
	} else if err := d.flate.Reset(&d.in, nil); err != nil {
		return &Error{Kind: Zlib, Detail: err.Error()}
	}
	n, err := fill(d.flate, out)
	if err != nil {
		return &Error{Kind: Zlib, Offset: len(src) - d.in.Len(), Detail: err.Error()}
	}
	if strict {
		if err := d.checkAdler(src, out[:n]); err != nil {
			return err
		}
	}
	if from > 0 {
		window(dst, out[:n], from)
	} else {
		clear(dst[n:])
	}
	return nil
}

// checkAdler goes on to the end of the stream, of which out is the beginning, and holds all of it against the
// adler32 behind it.
func (d *Decoder) checkAdler(src, out []byte) error {
	sum := adler32.New()
	sum.Write(out)
	for left := MaxExtent + 1 - len(out); ; {
		if left <= 0 {
			return &Error{Kind: Zlib, Detail: "more than 131072 bytes"}
		}
		n, err := d.flate.Read(d.scratch[:left])
		sum.Write(d.scratch[:n])
		left -= n
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return &Error{Kind: Zlib, Offset: len(src) - d.in.Len(), Detail: err.Error()}
		}
	}
	at := len(src) - d.in.Len()
	if d.in.Len() < sum.Size() {
		return &Error{Kind: Zlib, Offset: at, Detail: "adler32 cut off"}
	}
	if want := binary.BigEndian.Uint32(src[at:]); want != sum.Sum32() {
		return &Error{Kind: Zlib, Offset: at, Detail: fmt.Sprintf("adler32 is %08x, want %08x", sum.Sum32(), want)}
	}
	return nil
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

// fill reads until p is full or the stream has ended, and returns the bytes read. Unlike io.ReadFull it takes
// a stream that ends for what it is, and one that is cut off for an error.
func fill(r io.Reader, p []byte) (int, error) {
	n := 0
	for n < len(p) {
		m, err := r.Read(p[n:])
		n += m
		switch {
		case n == len(p) || errors.Is(err, io.EOF):
			return n, nil
		case errors.Is(err, io.ErrUnexpectedEOF):
			return n, errCutOff
		case err != nil:
			return n, err
		}
	}
	return n, nil
}

// errCutOff is a deflate stream without its end.
var errCutOff = errors.New("stream cut off")
