package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
)

func hole(off, n uint64) extent { return extent{off: off, length: n, kind: fsread.Hole} }

func plain(off, n uint64, at ondisk.Logical) extent {
	return extent{off: off, length: n, kind: fsread.Plain, logical: at, onDisk: (n + 4095) / 4096 * 4096}
}

func squeezed(off, n uint64, by string, at ondisk.Logical, disk, ram uint64) extent {
	return extent{off: off, length: n, kind: fsread.Compressed, compression: by, logical: at, onDisk: disk, stored: ondisk.FileExtent{RAMBytes: ram}}
}

func TestSummary(t *testing.T) {
	prealloc := extent{off: 0, length: 1 << 20, kind: fsread.Prealloc, logical: 1 << 20, onDisk: 1 << 20}
	for _, c := range []struct {
		name       string
		size       uint64
		extents    []extent
		unverified bool
		exact      bool
		want       string
	}{
		{name: "empty", unverified: true, want: "/f  0 B: empty"},
		{name: "one extent", size: 5000, extents: []extent{plain(0, 5000, 8192)}, want: "/f  4.88 KiB: 4.88 KiB data in 8 KiB on disk (1 extent)"},
		{name: "exact", size: 5000, exact: true, extents: []extent{plain(0, 5000, 8192)}, want: "/f  5000 bytes: 5000 bytes data in 8192 bytes on disk (1 extent)"},
		{name: "no checksums", size: 4096, unverified: true, extents: []extent{plain(0, 4096, 8192)},
			want: "/f  4 KiB: 4 KiB data in 4 KiB on disk (1 extent), unverified: no checksums"},
		{name: "no checksums, no data", size: 4096, unverified: true, extents: []extent{hole(0, 4096)}, want: "/f  4 KiB: 1 hole of 4 KiB"},
		{name: "inline", size: 69, extents: []extent{{length: 69, kind: fsread.Inline}}, want: "/f  69 B: 69 B inline"},
		{name: "inline compressed", size: 69, extents: []extent{{length: 69, kind: fsread.Inline, compression: "lzo"}}, want: "/f  69 B: 69 B inline+lzo"},
		{name: "preallocated", size: 1 << 20, extents: []extent{prealloc}, want: "/f  1 MiB: 1 MiB preallocated (1 extent)"},
		{name: "compressed and holes", size: 16 << 20, extents: []extent{hole(0, 1<<20), squeezed(1<<20, 128<<10, "zstd", 1<<30, 12<<10, 128<<10),
			hole(2<<20, 14<<20)}, want: "/f  16 MiB: 128 KiB data in 12 KiB on disk (1 extent, zstd 10.7:1), 2 holes of 15 MiB"},
		{name: "one extent twice, something between", size: 192 << 10, extents: []extent{squeezed(0, 64<<10, "zlib", 1<<30, 32<<10, 128<<10),
			plain(64<<10, 4096, 4096), squeezed(68<<10, 60<<10, "zlib", 1<<30, 32<<10, 128<<10)},
			want: "/f  192 KiB: 128 KiB data in 36 KiB on disk (3 extents, zlib 4.0:1, 1 plain)"},
		{name: "one extent twice, its like between", size: 256 << 10, extents: []extent{squeezed(0, 64<<10, "zlib", 1<<30, 32<<10, 128<<10),
			squeezed(64<<10, 128<<10, "zlib", 1<<31, 32<<10, 128<<10), squeezed(192<<10, 64<<10, "zlib", 1<<30, 32<<10, 128<<10)},
			want: "/f  256 KiB: 256 KiB data in 64 KiB on disk (3 extents, zlib 4.0:1)"},
		{name: "plain data shared with itself", size: 12 << 10, extents: []extent{plain(0, 8192, 8192), plain(8192, 4096, 12<<10)},
			want: "/f  12 KiB: 12 KiB data in 8 KiB on disk (2 extents)"},
		{name: "all at once", size: 24 << 10, extents: []extent{squeezed(0, 8192, "lzo", 1<<20, 4096, 8192), squeezed(8192, 8192, "zstd", 1<<21, 4096, 8192), plain(16<<10, 8192, 4096)},
			want: "/f  24 KiB: 24 KiB data in 16 KiB on disk (3 extents, lzo 2.0:1, zstd 2.0:1, 1 plain)"},
	} {
		tl := newTally(c.size, !c.unverified, c.exact)
		for i := range c.extents {
			tl.add(&c.extents[i])
		}
		if got := tl.summary("/f"); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}

// TestOnDisk counts spans against a naive map of bytes.
func TestOnDisk(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		k := share{kind: fsread.Plain}
		taken := make(map[uint64]bool)
		for range rng.IntN(12) {
			s := span{start: rng.Uint64N(40), length: 1 + rng.Uint64N(9)}
			k.addSpan(s)
			for i := range s.length {
				taken[s.start+i] = true
			}
		}
		given := fmt.Sprint(k.spans)
		if got, _ := k.onDisk(); got != uint64(len(taken)) {
			t.Fatalf("%s: %d bytes, want %d", given, got, len(taken))
		}
	}
}

func TestPicture(t *testing.T) {
	const col = 1 << 20
	line := func(parts ...any) string { // a mark and how often, in turn
		var b strings.Builder
		for i := 0; i < len(parts); i += 2 {
			b.WriteString(strings.Repeat(parts[i].(string), parts[i+1].(int)))
		}
		return b.String()
	}
	for _, c := range []struct {
		name    string
		size    uint64
		extents []extent
		want    string
		legend  string
	}{
		{"each kind", 64 * col, []extent{hole(0, col), plain(col, col, 1), squeezed(2*col, col, "zlib", 1, 1, 1), squeezed(3*col, col, "lzo", 1, 1, 1),
			squeezed(4*col, col, "zstd", 1, 1, 1), {off: 5 * col, length: col, kind: fsread.Prealloc}, hole(6*col, 58*col)}, line(".#glzp", 1, ".", 58),
			"z zstd  l lzo  g zlib  # plain  p prealloc  . hole"},
		{"a sector in a hole is seen", 64 * col, []extent{hole(0, 9*col+4096), plain(9*col+4096, 4096, 1), hole(9*col+8192, 55*col-8192)}, line(".", 9, "#", 1, ".", 54), "# plain  . hole"},
		{"preallocated beside a hole is seen", 64 * col, []extent{{length: 1, kind: fsread.Prealloc}, hole(1, 64*col-1)}, line("p", 1, ".", 63), "p prealloc  . hole"},
		{"the most of a column wins", 64 * col, []extent{plain(0, col/2-1, 1), squeezed(col/2-1, col/2+1, "zstd", 1, 1, 1), squeezed(col, col/2-1, "lzo", 1, 1, 1),
			plain(col+col/2-1, col/2+1, 1), hole(2*col, 62*col)}, line("z#", 1, ".", 62), "z zstd  # plain  . hole"},
		{"an extent over a border", 64 * col, []extent{hole(0, col-1), plain(col-1, 2, 1), hole(col+1, 63*col-1)}, line("##", 1, ".", 62), "# plain  . hole"},
		{"one byte", 1, []extent{{length: 1, kind: fsread.Inline}}, line("i", 64), "i inline"},
		{"three bytes", 3, []extent{hole(0, 1), {off: 1, length: 1, kind: fsread.Inline, compression: "zstd"}, hole(2, 1)}, line(".", 21, "i", 22, ".", 21), "i inline  . hole"},
		{"65 bytes", 65, []extent{plain(0, 1, 1), hole(1, 64)}, line("#", 1, ".", 63), "# plain  . hole"},
		{"the largest file", math.MaxInt64, []extent{hole(0, math.MaxInt64-4096), plain(math.MaxInt64-4096, 4096, 1)}, line(".", 63, "#", 1), "# plain  . hole"},
		{"data at the head of it", math.MaxInt64, []extent{plain(0, 1, 1), hole(1, math.MaxInt64-1)}, line("#", 1, ".", 63), "# plain  . hole"},
	} {
		p := newPicture(c.size)
		for i := range c.extents {
			p.paint(&c.extents[i])
		}
		_, got, _ := strings.Cut(p.String(), "\n")
		if want := "|" + c.want + "|   " + c.legend + "\n"; got != want {
			t.Errorf("%s:\n got %swant %s", c.name, got, want)
		}
	}
}

func TestScale(t *testing.T) {
	for size, want := range map[uint64]string{
		16 << 20:      " 0       2M      4M      6M      8M      10M     12M     14M     16M",
		69:            " 0       8       17      25      34      43      51      60      69",
		math.MaxInt64: " 0       1E      2E      3E      4E      5E      6E      7E      8E",
		1000000:       " 0       122K    244K    366K    488K    610K    732K    854K    977K",
		1023 << 10:    " 0       128K    256K    384K    512K    639K    767K    895K    1023K",
	} {
		if got := newPicture(size).scale(); got != want {
			t.Errorf("%d:\n got %q\nwant %q", size, got, want)
		}
	}
}

func TestExtentRows(t *testing.T) {
	one := []piece{{length: 8192, logical: 4096, copies: []volume.Copy{{DevID: 1, Physical: 5}, {DevID: 2, Physical: 6, Missing: true}}}}
	two := append(one[:1:1], piece{off: 8192, length: 4096, logical: 12288, copies: []volume.Copy{{DevID: 3, Physical: 7}}})
	x := plain(1<<20, 10000, 4096)
	z := squeezed(0, 4096, "zstd", 4096, 12288, 128<<10)
	h := hole(0, 3<<20)
	for _, c := range []struct {
		name   string
		x      *extent
		pieces []piece
		err    error
		exact  bool
		want   string // cells joined by |, rows by newline
	}{
		{name: "hole", x: &h, want: "0|3 MiB|hole|||"},
		{name: "one piece", x: &x, pieces: one, want: "1048576|9.77 KiB|plain|12 KiB|4096|1@5  2@6(missing)"},
		{name: "exact", x: &x, pieces: one, exact: true, want: "1048576|10000|plain|12288|4096|1@5  2@6(missing)"},
		{name: "two pieces", x: &z, pieces: two, want: "0|4 KiB|zstd|12 KiB|4096|in 2 pieces:\n  +0|||8 KiB|4096|1@5  2@6(missing)\n  +8192|||4 KiB|12288|3@7"},
		{name: "nowhere", x: &x, err: volume.ErrUnmapped, want: "1048576|9.77 KiB|plain|12 KiB|4096|unknown: no chunk maps this address"},
		{name: "partly nowhere", x: &x, pieces: one, err: volume.ErrUnmapped,
			want: "1048576|9.77 KiB|plain|12 KiB|4096|unknown: no chunk maps this address\n  +0|||8 KiB|4096|1@5  2@6(missing)"},
	} {
		var rows []string
		for _, r := range c.x.rows(c.pieces, c.err, c.exact) {
			rows = append(rows, strings.Join(r[:], "|"))
		}
		if got := strings.Join(rows, "\n"); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}
