package main

import (
	"fmt"
	"strings"

	"github.com/btrexport/btrexport/fsread"
)

// pictureColumns is the width of the picture: each column is this part of the file.
const pictureColumns = 64

// strokes are what a column can be, the quiet ones first: data are seen however little there are of them
// beside a hole. Among data the one that has the most bytes of the column is shown.
var strokes = [...]struct {
	mark byte
	name string
}{
	{'.', "hole"}, {'p', "prealloc"}, {'i', "inline"}, {'#', "plain"}, {'g', "zlib"}, {'l', "lzo"}, {'z', "zstd"},
}

// quiet is how many of the strokes are no data.
const quiet = 2

// stroke finds the stroke of an extent.
func stroke(x *extent) int {
	name := x.name()
	if x.kind == fsread.Inline {
		name = x.kind.String()
	}
	for i := range strokes {
		if strokes[i].name == name {
			return i
		}
	}
	return 0
}

// picture is a file in one line.
type picture struct {
	size    uint64
	shift   uint // offsets are halved so often, that 64 times the size stays in 64 bits
	columns [pictureColumns][len(strokes)]uint64
}

func newPicture(size uint64) *picture {
	p := &picture{size: size}
	for size>>p.shift >= 1<<57 {
		p.shift++
	}
	return p
}

// paint adds an extent. Everything is counted in 64ths of a byte, so that a file of a few bytes has
// columns too: column i is [i*size, (i+1)*size).
func (p *picture) paint(x *extent) {
	up := uint64(1)<<p.shift - 1
	size := (p.size + up) >> p.shift
	from, to := (x.off>>p.shift)*pictureColumns, ((x.off+x.length+up)>>p.shift)*pictureColumns
	s := stroke(x)
	for i := from / size; i < pictureColumns && i*size < to; i++ {
		p.columns[i][s] += min(to, (i+1)*size) - max(from, i*size)
	}
}

// String is a scale, the picture and its legend.
func (p *picture) String() string {
	var line [pictureColumns]byte
	var used [len(strokes)]bool
	for i := range line {
		s := loudest(&p.columns[i])
		line[i], used[s] = strokes[s].mark, true
	}
	var legend []string
	for i := len(strokes) - 1; i >= 0; i-- {
		if used[i] {
			legend = append(legend, fmt.Sprintf("%c %s", strokes[i].mark, strokes[i].name))
		}
	}
	return fmt.Sprintf("%s\n|%s|   %s\n", p.scale(), line[:], strings.Join(legend, "  "))
}

// loudest picks what a column shows.
func loudest(c *[len(strokes)]uint64) int {
	best := 0
	for i := range c {
		switch {
		case c[i] == 0:
		case best < quiet, c[i] > c[best]:
			best = i
		}
	}
	return best
}

// scale has the offset of every eighth column above it, cut to a unit's first letter.
func (p *picture) scale() string {
	const step = pictureColumns / 8
	var b strings.Builder
	for i := range uint64(9) {
		at := p.size/8*i + p.size%8*i/8
		label := strings.ReplaceAll(strings.TrimSuffix(strings.TrimSuffix(iec(at), "iB"), " B"), " ", "")
		fmt.Fprintf(&b, "%-*s", step, label)
	}
	return " " + strings.TrimRight(b.String(), " ")
}
