package imagepack

import (
	"bytes"
	"fmt"
	"io"
)

const (
	block = 4096       // unit of holes
	chunk = 64 * block // unit of reading
)

// sparseFile is what writeSparse needs of an *os.File.
type sparseFile interface {
	io.WriterAt
	Truncate(size int64) error
}

// writeSparse writes size bytes of data into the empty file f, which gets holes in place of blocks
// that are all zero. buf is scratch space of whole blocks.
func writeSparse(f sparseFile, data io.Reader, size int64, buf []byte) error {
	for off := int64(0); off < size; {
		n, err := io.ReadFull(data, buf[:min(int64(len(buf)), size-off)])
		if err != nil {
			return fmt.Errorf("data at offset %d: %w", off, err)
		}
		if err := writeBlocks(f, buf[:n], off); err != nil {
			return err
		}
		off += int64(n)
	}
	return f.Truncate(size)
}

// writeBlocks writes the runs of blocks in b that are not zero; b belongs at off.
func writeBlocks(f sparseFile, b []byte, off int64) error {
	for at := 0; at < len(b); {
		end := at
		for end < len(b) && !isZero(b[end:min(end+block, len(b))]) {
			end = min(end+block, len(b))
		}
		if end == at {
			at = min(at+block, len(b))
			continue
		}
		if _, err := f.WriteAt(b[at:end], off+int64(at)); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// isZero reports whether every byte of b is 0: the first is, and each equals its neighbour.
func isZero(b []byte) bool {
	return b[0] == 0 && bytes.Equal(b[:len(b)-1], b[1:])
}
