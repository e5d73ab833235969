package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// readWhole copies a file of the top level into memory.
func readWhole(t *testing.T, sv *fsread.Subvolume, path string) []byte {
	t.Helper()
	f, err := sv.OpenFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	var m memory
	if _, err := copyFile(t.Context(), f, &m, nil, ignore); err != nil {
		t.Fatal(err)
	}
	return m.b
}

// copyAround copies a file without what is lost of it, whole and in small reads, and holds all else against the
// truth. It gives what was lost.
func copyAround(t *testing.T, sv *fsread.Subvolume, path string, truth []byte, fill byte) *losses {
	t.Helper()
	f, err := sv.OpenFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	var first *losses
	for _, chunk := range []uint64{copyChunk, 3 * 4096} {
		lost := &losses{fill: fill}
		var m memory
		var told uint64
		c := copier{ctx: t.Context(), file: f, to: &m, chunk: chunk, depth: 3, lost: lost, read: func(n uint64) { told += n }}
		done, err := c.run()
		if err != nil || !m.ended || done.Bytes != uint64(len(truth)) {
			t.Fatalf("%+v, ended %v, error %v", done, m.ended, err)
		}
		todo, err := dataBytes(t.Context(), f, func(*fsread.LayoutError) error { return nil })
		if err != nil || todo != told {
			t.Errorf("%d bytes to read, %d told, error %v", todo, told, err)
		}
		want := bytes.Clone(truth)
		for _, p := range lost.list {
			copy(want[p.off:p.off+p.n], bytes.Repeat([]byte{fill}, int(p.n)))
		}
		if !bytes.Equal(m.b, want) {
			t.Errorf("wrong bytes outside of %+v", lost.list)
		}
		if first == nil {
			first = lost
		} else if first.bytes != lost.bytes || first.ranges != lost.ranges {
			t.Errorf("small reads lost %d bytes in %d ranges, large ones %d in %d", lost.bytes, lost.ranges, first.bytes, first.ranges)
		}
	}
	return first
}

// TestSkipLostData goes on around blocks that no copy has, each run of them one range.
func TestSkipLostData(t *testing.T) {
	for _, fill := range []byte{0, 0xee} {
		img := fsreadtest.Load(t, "raid1-2")
		fs, sv := openImage(t, img)
		truth := readWhole(t, sv, "/rows/rows-0")
		f, err := sv.OpenFile(t.Context(), "/rows/rows-0")
		if err != nil {
			t.Fatal(err)
		}
		var want []lostPart
		if err := f.Extents(t.Context(), 0, func(s fsread.Segment) error {
			if s.Kind != fsread.Plain || s.Len < 6*4096 || len(want) > 0 {
				return nil
			}
			want = []lostPart{{off: s.Off + 4096, n: 2 * 4096}, {off: s.Off + 4*4096, n: 4096}}
			for _, p := range want {
				if err := ruinAll(fs, s.Logical+ondisk.Logical(p.off-s.Off), int(p.n)); err != nil {
					return err
				}
			}
			return nil
		}); err != nil || len(want) == 0 {
			t.Fatalf("ruined %v, error %v", want, err)
		}
		lost := copyAround(t, sv, "/rows/rows-0", truth, fill)
		if len(lost.list) != 2 || lost.bytes != 3*4096 {
			t.Fatalf("got %+v, want %v", lost, want)
		}
		for i, p := range lost.list {
			if p.off != want[i].off || p.n != want[i].n || !strings.HasPrefix(p.cause, "no good copy: devid ") {
				t.Errorf("got %+v, want %v", p, want[i])
			}
		}
	}
}

// TestSkipLostCompressed loses one block of a compressed extent, and all that the file has of it.
func TestSkipLostCompressed(t *testing.T) {
	img := fsreadtest.Load(t, "zstd")
	fs, sv := openImage(t, img)
	const path = "/zoo/bookends"
	truth := readWhole(t, sv, path)
	f, err := sv.OpenFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	var extent ondisk.Logical
	var want uint64
	if err := f.Extents(t.Context(), 0, func(s fsread.Segment) error {
		if s.Kind != fsread.Compressed || s.Extent.Type == ondisk.ExtentInline || (extent != 0 && s.Extent.DiskBytenr != extent) {
			return nil
		}
		extent = s.Extent.DiskBytenr
		want += min(s.Off+s.Len, f.Size()) - s.Off
		return ruinAll(fs, extent, 4096)
	}); err != nil || want == 0 {
		t.Fatalf("ruined %d bytes, error %v", want, err)
	}
	img2 := &fsreadtest.Image{Manifest: img.Manifest, Devices: img.Devices}
	_, again := openImage(t, img2) // the first one has the extent in its cache
	if lost := copyAround(t, again, path, truth, 0x55); lost.bytes != want {
		t.Errorf("lost %+v, want the %d bytes of the extent at %d", lost.list, want, extent)
	}
}

// TestSkipLostTrees loses tree blocks that say where a file lies, or what its checksums are: what they alone know is
// lost, and nothing else.
func TestSkipLostTrees(t *testing.T) {
	const path, ino = "/shared", 258
	extents := func(level uint8) func(treeBlock) bool {
		return func(b treeBlock) bool {
			return b.owner == ondisk.TreeFS && b.level == level && b.first.ObjectID == ino && b.first.Type == ondisk.TypeExtentData &&
				(level > 0 || b.last.ObjectID == ino && b.last.Type == ondisk.TypeExtentData)
		}
	}
	sums := func(b treeBlock) bool { return b.owner == ondisk.TreeCsum && b.level == 0 }
	for _, c := range []struct {
		name   string
		of     func(treeBlock) bool
		places []int // of those, in the order of their keys; negative: from the end
		ranges int   // 0: any number
	}{
		{"one leaf of extents", extents(0), []int{40}, 1},
		{"two leaves apart", extents(0), []int{20, 60}, 2},
		{"two leaves side by side", extents(0), []int{50, 51}, 1},
		{"the last leaf", extents(0), []int{-1}, 1},
		{"a node of extents", extents(1), []int{0}, 1},
		{"a leaf of checksums", sums, []int{1}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			img := fsreadtest.Load(t, "deep")
			_, sv := openImage(t, img)
			truth := readWhole(t, sv, path)
			blocks := treeBlocks(t, img.Devices[0], c.of)
			for _, i := range c.places {
				b := blocks[(i+len(blocks))%len(blocks)]
				if err := overwrite(img.Devices[0], b.at, make([]byte, 4096)); err != nil {
					t.Fatal(err)
				}
			}
			_, again := openImage(t, img)
			lost := copyAround(t, again, path, truth, byte(c.ranges))
			if lost.bytes == 0 || lost.bytes >= uint64(len(truth)) || (c.ranges > 0 && lost.ranges != c.ranges) {
				t.Errorf("%d of %d bytes lost in %d ranges, want %d ranges", lost.bytes, len(truth), lost.ranges, c.ranges)
			}
			f, err := again.OpenFile(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := copyFile(t.Context(), f, &memory{}, nil, ignore); err == nil {
				t.Error("without losses to go on with, the copy did not fail")
			}
		})
	}
}

// treeBlock is a tree block found on a device of 4 KiB nodes.
type treeBlock struct {
	at          int64
	owner       uint64
	level       uint8
	first, last ondisk.Key // last of a leaf alone
}

// treeBlocks looks through a device for tree blocks that fit, in the order of their first keys.
func treeBlocks(t *testing.T, path string, fits func(treeBlock) bool) []treeBlock {
	t.Helper()
	disk, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	key := func(b []byte) ondisk.Key {
		return ondisk.Key{ObjectID: le.Uint64(b), Type: b[8], Offset: le.Uint64(b[9:])}
	}
	fsid := disk[64<<10+32 : 64<<10+48]
	var out []treeBlock
	for at := 128 << 10; at+4096 <= len(disk); at += 4096 {
		b := disk[at : at+4096]
		n := int(le.Uint32(b[96:]))
		if !bytes.Equal(b[32:48], fsid) || n == 0 || n > 150 {
			continue
		}
		x := treeBlock{at: int64(at), owner: le.Uint64(b[88:]), level: b[100], first: key(b[101:])}
		if x.level == 0 {
			x.last = key(b[101+25*(n-1):])
		}
		if fits(x) {
			out = append(out, x)
		}
	}
	slices.SortFunc(out, func(a, b treeBlock) int { return a.first.Compare(b.first) })
	if len(out) == 0 {
		t.Fatal("no such tree block")
	}
	return out
}

func overwrite(path string, at int64, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(b, at)
	return err
}

// TestLossesAreJoined keeps one range for what touches, and counts what it does not list.
func TestLossesAreJoined(t *testing.T) {
	var l losses
	for i := range uint64(maxLostListed + 3) {
		l.add(i*8192, 2048, fmt.Sprint(i))
		l.add(i*8192+2048, 2048, "x")
	}
	if l.ranges != maxLostListed+3 || len(l.list) != maxLostListed || l.bytes != 4096*(maxLostListed+3) {
		t.Fatalf("%d ranges, %d listed, %d bytes", l.ranges, len(l.list), l.bytes)
	}
	if got, want := l.list[maxLostListed-1], (lostPart{(maxLostListed - 1) * 8192, 4096, fmt.Sprint(maxLostListed - 1)}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	var text bytes.Buffer
	if err := l.print("/f", nil, &text); err != nil || !strings.HasSuffix(text.String(), "\nlost: /f: 3 more ranges\n") {
		t.Errorf("error %v, printed …%s", err, text.String()[text.Len()-60:])
	}
}
