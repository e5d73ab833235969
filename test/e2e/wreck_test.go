//go:build linux

package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// wreck is a filesystem of which the test ruins columns, and knows of each block what that means.
type wreck struct {
	*copies
	*layout
	rng   *rand.Rand
	files []*file
	hurt  map[place]bool // sectors of data that are not what they were
}

// file is a regular file, what it holds and where.
type file struct {
	served
	extents []fileExtent
	sums    bool // its blocks have checksums
}

// makeWreck makes a filesystem with files of all kinds, and unmounts it.
func makeWreck(ctx context.Context, t *testing.T, rng *rand.Rand, profile string, devices int) *wreck {
	t.Helper()
	o := kernelfs.Options{Devices: devices, DeviceSize: 512 << 20, Data: profile, Metadata: profile, Nodesize: []int{4096, 16384, 65536}[rng.IntN(3)]}
	k := makeTruth(ctx, t, o, func(tree *kernelfs.Tree) {
		tree.Random(rng.Uint64(), kernelfs.RandomOptions{Ops: 60, MaxFile: 1 << 20})
		tree.Fragment("fragments", 200, rng.Uint64())
		tree.Plain(victim, 2<<20+rng.Int64N(5000))
		tree.NoCOW(bare)
		tree.Plain(bare, 1<<20)
		tree.Sync()
		fillCompressed(t, tree, rng)
	})
	w := &wreck{rng: rng, hurt: make(map[place]bool)}
	w.layout = findLayout(ctx, t, k.fs.Loops())
	for i, e := range k.regular() {
		f := &file{served: served{name: fmt.Sprint(i), path: "/" + string(e.Path), want: k.read(t, e.Path)}, sums: !e.NoCOW, extents: w.extents[e.Ino]}
		w.files = append(w.files, f)
	}
	k.unmount(t)
	w.copies = findCopies(t, k.fs.Images(), o.Nodesize)
	for _, f := range w.files {
		w.checkLayout(t, f)
	}
	t.Logf("%s over %d devices, nodesize %d: %d files", profile, devices, o.Nodesize, len(w.files))
	return w
}

const (
	bare     = "bare"     // a file without checksums
	squeezed = "squeezed" // a file of compressed extents, most of several sectors
)

func fillCompressed(t *testing.T, tree *kernelfs.Tree, rng *rand.Rand) {
	t.Helper()
	how := "compress-force=" + []string{"zlib", "lzo", "zstd"}[rng.IntN(3)]
	if err := unix.Mount("", tree.Root(), "", unix.MS_REMOUNT, how); err != nil {
		t.Errorf("remount with %s: %v", how, err)
		return
	}
	soft := kernelfs.NewTree(t.Context(), tree.Root(), kernelfs.Content{Seed: 9})
	soft.Plain(squeezed, 1<<20)
	if err := soft.Err(); err != nil {
		t.Error(err)
	}
	for off := int64(0); off < 1<<20; off += 128 << 10 {
		tree.WriteAt(squeezed, off+rng.Int64N(64<<10), 4096+rng.Int64N(48<<10)) // does not shrink
	}
	tree.Sync()
}

// checkLayout holds a file's blocks against what the layout says: the block itself or every copy of it, and of
// RAID5 and RAID6 that P is the data's sum.
func (w *wreck) checkLayout(t *testing.T, f *file) {
	t.Helper()
	for _, x := range f.extents {
		for at := int64(0); at < x.disk; at += sector {
			r, own := w.row(x.logical + at)
			var columns [][]byte
			for _, p := range r.columns {
				columns = append(columns, w.at(t, p, sector))
			}
			if r.data > 0 {
				sum := make([]byte, sector)
				for _, c := range columns[:r.data+1] {
					for i := range sum {
						sum[i] ^= c[i]
					}
				}
				if !bytes.Equal(sum, make([]byte, sector)) {
					t.Fatalf("%s offset %d: P of row %+v is not the sum of the data", f.path, x.off+at, r)
				}
				columns = columns[own : own+1]
			}
			for _, c := range columns {
				if want := f.block(x.off + at); !x.compressed && !bytes.HasPrefix(c, want) {
					t.Fatalf("%s offset %d: not where the layout says, %+v: %s", f.path, x.off+at, r, diff(c[:len(want)], want))
				}
			}
		}
	}
}

// block is the content of the file's block at off, up to the file's end.
func (f *file) block(off int64) []byte {
	n := int64(len(f.want))
	return f.want[min(off, n):min(off+sector, n)]
}

func (w *wreck) at(t *testing.T, p place, n int) []byte {
	t.Helper()
	b, err := w.read(p, n)
	if err != nil {
		t.Fatalf("%+v: %v", p, err)
	}
	return b
}

// dataRows lists the rows of every sector of the files, each once, in a stable order, and the columns in them
// that have no checksum: those must be kept.
func (w *wreck) dataRows() (rows []row, kept map[place]bool) {
	kept = make(map[place]bool)
	seen := make(map[place]row)
	for _, f := range w.files {
		for _, x := range f.extents {
			for at := int64(0); at < x.disk; at += sector {
				r, own := w.row(x.logical + at)
				seen[r.columns[0]] = r
				for i, p := range r.columns {
					if !f.sums && (r.data == 0 || i == own) {
						kept[p] = true
					}
				}
			}
		}
	}
	return sorted(seen), kept
}

func sorted(rows map[place]row) []row {
	list := slices.Collect(maps.Values(rows))
	slices.SortFunc(list, func(a, b row) int {
		return cmp.Or(cmp.Compare(a.columns[0].device, b.columns[0].device), cmp.Compare(a.columns[0].off, b.columns[0].off))
	})
	return list
}

// hurtSectors ruins up to as many columns as are to spare of a third of the files' sectors, none of which is
// without a checksum. It returns how many.
func (w *wreck) hurtSectors(t *testing.T) int {
	t.Helper()
	rows, kept := w.dataRows()
	var list []place
	for _, r := range rows {
		if w.rng.IntN(3) == 0 {
			list = append(list, w.some(r, kept, 1+w.rng.IntN(r.spare()))...)
		}
	}
	w.ruinAll(t, list, sector)
	for _, p := range list {
		w.hurt[p] = true
	}
	if len(list) < 40 {
		t.Fatalf("found %d columns to ruin: the test proves nothing", len(list))
	}
	return len(list)
}

// some chooses up to n columns of a row, but none of those kept.
func (w *wreck) some(r row, kept map[place]bool, n int) []place {
	var list []place
	for _, i := range w.rng.Perm(len(r.columns)) {
		if p := r.columns[i]; len(list) < n && !kept[p] {
			list = append(list, p)
		}
	}
	return list
}

// hurtNodes ruins up to as many columns as are to spare of every tree block. It returns how many of each device.
func (w *wreck) hurtNodes(t *testing.T) []int {
	t.Helper()
	rows := make(map[place]row)
	for _, found := range w.tree {
		for _, p := range found {
			// struct btrfs_header: bytenr u64 @48. What lies elsewhere is stale, or parity that looks like its data.
			logical := int64(binary.LittleEndian.Uint64(w.at(t, p, w.node)[48:]))
			if c := w.chunk(logical); c == nil || c.data {
				continue
			}
			if r, own := w.row(logical); r.spare() > 0 && (r.data == 0 && slices.Contains(r.columns, p) || r.data > 0 && r.columns[own] == p) {
				rows[r.columns[0]] = r
			}
		}
	}
	var list []place
	for _, r := range sorted(rows) {
		list = append(list, w.some(r, nil, 1+w.rng.IntN(r.spare()))...)
	}
	w.ruinAll(t, list, w.node)
	if len(list) < 4 {
		t.Fatalf("found %d columns of tree blocks to ruin: the test proves nothing", len(list))
	}
	hurt := make([]int, len(w.images))
	for _, p := range list {
		hurt[p.device]++
	}
	return hurt
}

// ruinAll changes every place of n bytes: alone, or by changing places with another of its device.
func (w *wreck) ruinAll(t *testing.T, list []place, n int) {
	t.Helper()
	list = slices.Clone(list)
	w.rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	waiting := make(map[int]place) // by device: to change places with the next
	for _, p := range list {
		q, paired := waiting[p.device]
		switch {
		case paired:
			delete(waiting, p.device)
			w.exchange(t, p, q, n)
		case w.rng.IntN(4) == 0:
			waiting[p.device] = p
		default:
			w.change(t, p, n)
		}
	}
	for _, d := range slices.Sorted(maps.Keys(waiting)) {
		w.change(t, waiting[d], n)
	}
}

// change ruins a place; what was zero already is not left as it was.
func (w *wreck) change(t *testing.T, p place, n int) {
	t.Helper()
	for before := w.at(t, p, n); bytes.Equal(before, w.at(t, p, n)); {
		if err := w.ruin(p, n, w.rng); err != nil {
			t.Fatal(err)
		}
	}
}

func (w *wreck) exchange(t *testing.T, p, q place, n int) {
	t.Helper()
	a, b := w.at(t, p, n), w.at(t, q, n)
	if bytes.Equal(a, b) {
		w.change(t, p, n)
		w.change(t, q, n)
		return
	}
	if err := errors.Join(w.write(p, b), w.write(q, a)); err != nil {
		t.Fatal(err)
	}
}

// lose ruins more columns than are to spare for a few blocks of the victim, and for one that is compressed. It
// returns how many.
func (w *wreck) lose(t *testing.T) int {
	t.Helper()
	_, kept := w.dataRows()
	n := 0
	for _, c := range []struct {
		path   string
		blocks int
	}{{victim, 12}, {squeezed, 2}} {
		f := w.file(c.path)
		for range c.blocks {
			x := f.extents[w.rng.IntN(len(f.extents))]
			n += w.loseBlock(t, x.logical+w.rng.Int64N(x.disk/sector)*sector, kept)
		}
	}
	return n
}

// loseBlock ruins the block and one column more of its row than can be spared, or as many as have checksums.
func (w *wreck) loseBlock(t *testing.T, logical int64, kept map[place]bool) int {
	t.Helper()
	r, own := w.row(logical)
	var list []place
	bad := 0
	for _, p := range r.columns {
		if w.hurt[p] {
			bad++
		}
	}
	for _, i := range append([]int{own}, w.rng.Perm(len(r.columns))...) {
		if p := r.columns[i]; bad <= r.spare() && !w.hurt[p] && !kept[p] {
			list, w.hurt[p] = append(list, p), true
			bad++
		}
	}
	w.ruinAll(t, list, sector)
	return len(list)
}

func (w *wreck) file(path string) *file {
	return w.files[slices.IndexFunc(w.files, func(f *file) bool { return f.path == "/"+path })]
}

// devices are the images but those that are gone, in random order, each behind -d.
func (w *wreck) devices(gone []int) []string {
	var list []string
	for i, image := range w.images {
		if !slices.Contains(gone, i) {
			list = append(list, image)
		}
	}
	return shuffled(w.rng, list)
}

// blocks gives the offsets of those blocks of a file whose own column is on a device, and that are wanted.
// Compressed ones have no place of their own.
func (w *wreck) blocks(f *file, device int, wanted func(r row, own int) bool) (offs []int) {
	for _, x := range f.extents {
		for at := int64(0); at < x.disk && !x.compressed && x.off+at < int64(len(f.want)); at += sector {
			if r, own := w.row(x.logical + at); r.columns[own].device == device && wanted(r, own) {
				offs = append(offs, int(x.off+at))
			}
		}
	}
	return offs
}

// fate says of a block whether its own column is bad, of copies the first, and whether it is lost, when some
// devices are gone.
func (w *wreck) fate(logical int64, gone []int) (bad, lost bool) {
	r, own := w.row(logical)
	n := 0
	for i, p := range r.columns {
		if w.hurt[p] || slices.Contains(gone, p.device) {
			n++
			bad = bad || i == own
		}
	}
	return bad, n > r.spare() && (bad || r.data == 0)
}

// firstLost gives the first block of a plain file that is lost.
func (w *wreck) firstLost(f *file) (off, logical int64) {
	for _, x := range f.extents { // by offset
		for at := int64(0); at < x.disk; at += sector {
			if _, lost := w.fate(x.logical+at, nil); lost {
				return x.off + at, x.logical + at
			}
		}
	}
	return -1, 0
}

// describe says where a block of the file lies, and which columns of its row are ruined.
func (w *wreck) describe(f *file, off int) string {
	for _, x := range f.extents {
		if at := int64(off)/sector*sector - x.off; 0 <= at && at < x.length && !x.compressed {
			r, own := w.row(x.logical + at)
			s := fmt.Sprintf("column %d of %+v, ruined:", own, r)
			for i, p := range r.columns {
				if w.hurt[p] {
					s += fmt.Sprintf(" %d", i)
				}
			}
			return s
		}
	}
	return "compressed, or not on the disk"
}
