package fsread

import (
	"fmt"
	"slices"
	"strings"

	"github.com/btrexport/btrexport/fsread/btree"
	"github.com/btrexport/btrexport/fsread/csum"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
)

// sums are the checksums of sectors, and whether each is there.
type sums struct {
	b    []byte // csum.Type.Size() each
	have []bool
}

func (s *sums) reset() { s.b, s.have = s.b[:0], s.have[:0] }

// grow adds n sectors that have no checksum yet.
func (s *sums) grow(n, size int) {
	s.b = extend(s.b, n*size)
	for range n {
		s.have = append(s.have, false)
	}
}

// appendFrom adds the checksums of n sectors of o, from the first-th on; none where o has none.
func (s *sums) appendFrom(o *sums, first, n int) {
	size := 0
	if len(o.have) > 0 {
		size = len(o.b) / len(o.have)
	}
	s.b = append(s.b, o.b[first*size:(first+n)*size]...)
	s.have = append(s.have, o.have[first:first+n]...)
}

// check holds a sector against the i-th checksum. Errors: volume.ErrNoChecksum; *ChecksumError.
func (s *sums) check(t csum.Type, i int, b []byte) error {
	if !s.have[i] {
		return volume.ErrNoChecksum
	}
	want := s.b[i*t.Size():][:t.Size()]
	if t.Match(want, b) {
		return nil
	}
	var got [32]byte
	t.Sum(&got, b)
	return &ChecksumError{Type: t, Got: slices.Clone(got[:t.Size()]), Want: slices.Clone(want)}
}

// judge tells which columns of a parity row are wrong, by the checksum tree.
type judge struct{ fs *FS }

// Bad says whether a sector of b has a checksum that it does not match. Where the tree can't be read nothing is.
func (j judge) Bad(logical ondisk.Logical, b []byte) bool {
	fs := j.fs
	ss := int(fs.super.SectorSize)
	var s sums
	var cur btree.Cursor
	if err := fs.appendSums(fs.life, &cur, &s, logical, len(b)/ss); err != nil {
		return false
	}
	for i := range s.have {
		if s.have[i] && s.check(fs.super.CsumType, i, b[i*ss:][:ss]) != nil {
			return true
		}
	}
	return false
}

// sumWindow collects the checksums of the sectors at logical [from, to) into sums, from the first-th on.
type sumWindow struct {
	sums     *sums
	first    int
	from, to uint64
	size     int    // bytes of a checksum
	sector   uint64 // bytes of a sector
}

// take copies what an item holds of the window; false when no later item holds more.
func (w *sumWindow) take(k ondisk.Key, item []byte) (more bool) {
	if k.ObjectID != ondisk.CsumObjectID || k.Type != ondisk.TypeExtentCsum {
		return k.Compare(ondisk.Key{ObjectID: ondisk.CsumObjectID, Type: ondisk.TypeExtentCsum}) < 0
	}
	end := k.Offset + uint64(len(item)/w.size)*w.sector
	lo, hi := max(w.from, k.Offset), min(w.to, end)
	if lo < hi {
		at, n := w.first+int((lo-w.from)/w.sector), int((hi-lo)/w.sector)
		skip := int((lo - k.Offset) / w.sector)
		copy(w.sums.b[at*w.size:(at+n)*w.size], item[skip*w.size:(skip+n)*w.size])
		for i := at; i < at+n; i++ {
			w.sums.have[i] = true
		}
	}
	return end < w.to
}

// extend lengthens b by n bytes of any content.
func extend(b []byte, n int) []byte {
	if cap(b)-len(b) >= n {
		return b[:len(b)+n]
	}
	return append(b, make([]byte, n)...)
}

// ChecksumError is a block whose bytes are not those that its checksum was made of.
type ChecksumError struct {
	Type      csum.Type
	Got, Want []byte
}

func (e *ChecksumError) Error() string {
	return fmt.Sprintf("%s is %s, want %s", e.Type, hexLE(e.Got), hexLE(e.Want))
}

func (e *ChecksumError) Unwrap() error { return ondisk.ErrChecksum }

// hexLE prints a checksum as the number that it is on the disk: little-endian.
func hexLE(b []byte) string {
	var s strings.Builder
	for i := len(b) - 1; i >= 0; i-- {
		fmt.Fprintf(&s, "%02x", b[i])
	}
	return s.String()
}
