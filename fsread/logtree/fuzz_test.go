package logtree

import (
	"errors"
	"fmt"
	"testing"

	"github.com/btrexport/btrexport/fsread/btree"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// script makes items from bytes: a tree's worth of well-formed items of small numbers, so that they meet,
// and some of raw bytes.
type script struct{ b []byte }

func (s *script) next() uint64 {
	if len(s.b) == 0 {
		return 0
	}
	v := s.b[0]
	s.b = s.b[1:]
	return uint64(v)
}

// number is most often small, and at times at the end of all numbers.
func (s *script) number() uint64 {
	if n := s.next(); n < 240 {
		return n % 16
	}
	return ^(s.next() % 4)
}

func (s *script) items() items {
	m := make(items)
	for n := 0; len(s.b) > 0 && n < 200; n++ {
		ino, off := top+s.next()%8, s.number()
		name := fmt.Sprintf("n%d", s.next()%6)
		switch s.next() % 10 {
		case 0:
			mode := []uint32{modeDir, modeRegular, 0o120000}[s.next()%3]
			m.replace(ino, ondisk.TypeInodeItem, 0)
			m.inode(ino, mode|0o644, s.number()*1000, uint32(s.next()%3), s.next()%2)
		case 1:
			m.replace(ino, ondisk.TypeDirIndex, off)
			m.index(ino, off, name, top+s.next()%9)
		case 2:
			m.ref(ino, off, name, top+s.next()%8)
		case 3:
			m.extref(ino, off, name, top+s.next()%8)
		case 4:
			m.replace(ino, ondisk.TypeDirLogIndex, off)
			m.dirLog(ino, off, s.number())
		case 5:
			m.replace(ino, ondisk.TypeExtentData, off*sector)
			m.extent(ino, off*sector, ondisk.Logical(s.next()<<20), 16*sector, s.next()%8*sector, (1+s.next()%8)*sector)
		case 6:
			m.replace(ino, ondisk.TypeExtentData, 0)
			m.inline(ino, "text"[:s.next()%5])
		case 7:
			m.replace(ondisk.CsumObjectID, ondisk.TypeExtentCsum, off*sector)
			m.csum(off<<20, "0000111122223333"[:4*(s.next()%5)])
		case 8:
			m.name(ino, off, name, top+s.next()%8)
		case 9:
			typ, n := uint8(s.next()), int(s.next())
			n = min(n, len(s.b))
			m.put(ino, typ, off, s.b[:n])
			s.b = s.b[n:]
		}
	}
	for k, item := range m {
		if len(item) > 500 { // five fit a leaf
			m[k] = item[:500]
		}
	}
	return m
}

func (m items) replace(ino uint64, typ uint8, off uint64) {
	delete(m, ondisk.Key{ObjectID: ino, Type: typ, Offset: off})
}

// FuzzLogOverlay replays logs that may hold anything over a subvolume that may hold anything: a result
// within the limit whose tree can be walked in order, or an error of a known kind.
func FuzzLogOverlay(f *testing.F) {
	f.Add([]byte{}, []byte{0, 0, 0, 0, 0, 1, 1, 1})
	f.Add([]byte{0, 0, 0, 0, 0, 3, 1, 1, 1, 0, 0, 0, 1, 3, 1, 1, 0, 2, 1, 8, 1}, []byte{1, 0, 0, 0, 1, 3, 1, 1, 0, 3, 2, 2, 1})
	f.Add([]byte{1, 0, 0, 0, 1, 9, 1, 1, 1, 0, 0, 5, 2, 2, 7}, []byte{1, 0, 0, 0, 1, 9, 1, 1, 1, 3, 0, 5, 1, 2, 3, 0, 1, 0, 7, 4})
	f.Add([]byte{0, 0, 0, 0, 0, 3, 1, 1}, []byte{0, 0, 0, 0, 0, 3, 1, 1, 0, 240, 0, 4, 250, 0})
	f.Fuzz(func(t *testing.T, base, log []byte) {
		d := newDisk(t)
		b := (&script{base}).items()
		if len(b) == 0 {
			b.dir(top, 0)
		}
		in := d.input(b, (&script{log}).items())
		in.MaxBytes = 64 << 10
		res, err := Replay(t.Context(), in)
		var large *btree.TooLargeError
		if err != nil {
			if !errors.Is(err, ondisk.ErrCorrupt) && !errors.As(err, &large) {
				t.Fatalf("an error of no known kind: %v", err)
			}
			return
		}
		if res.Bytes > 2*in.MaxBytes {
			t.Fatalf("%d bytes, the limit is %d", res.Bytes, in.MaxBytes)
		}
		last := ondisk.Key{}
		if err := in.Tree.With(res.Overlay).All(t.Context(), ondisk.Key{}, func(k ondisk.Key, _ []byte) (bool, error) {
			if k.Compare(last) <= 0 {
				t.Fatalf("%s after %s", k, last)
			}
			last = k
			return true, nil
		}); err != nil && !errors.Is(err, ondisk.ErrCorrupt) {
			t.Fatal(err)
		}
		if _, err := OverlayCsums(t.Context(), in.Tree, sector, in.CsumSize, res.Csums, 1<<20); err != nil && !errors.Is(err, ondisk.ErrCorrupt) {
			t.Fatal(err)
		}
	})
}
