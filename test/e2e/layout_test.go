//go:build linux

package e2e

import (
	"context"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const stripeLen = 64 << 10

// layout is where the blocks of a filesystem lie, by what btrfs-progs prints of its trees and by arithmetic
// that is written here once more: the reader under test is not asked.
type layout struct {
	uuids   []string                // of devid 1, 2, ...
	chunks  []stripedChunk          // by logical address
	extents map[uint64][]fileExtent // by inode, by offset
}

type stripedChunk struct {
	start, length int64
	data          bool
	profile       string // as "RAID5"
	stripes       []place
}

// fileExtent is one extent of a file in the top subvolume, with blocks on the disk.
type fileExtent struct {
	off, length int64 // in the file
	logical     int64 // of a compressed extent its first byte, else that of off
	disk        int64 // bytes on the disk: of a compressed extent all of it
	compressed  bool
	skip        int64 // bytes of the inflated extent in front of off
}

// row is one block and what stands for it: its copies, or the columns of its row of RAID5 or RAID6, the data
// in order, then P, then Q, each at the same place in its stripe.
type row struct {
	columns []place
	data    int // columns of data; 0: columns are copies
}

// spare is how many columns may be lost.
func (r row) spare() int {
	if r.data == 0 {
		return len(r.columns) - 1
	}
	return len(r.columns) - r.data
}

// Lines that btrfs inspect-internal dump-tree prints.
var (
	keyLine     = regexp.MustCompile(`^\titem \d+ key \((\S+) (\S+) (\d+)\)`)
	chunkLine   = regexp.MustCompile(`^\t\tlength (\d+) owner \d+ stripe_len 65536 type (\S+)$`)
	stripeLine  = regexp.MustCompile(`^\t\t\tstripe \d+ devid (\d+) offset (\d+)$`)
	uuidLine    = regexp.MustCompile(`^\t\tuuid (\S+)$`)
	diskLine    = regexp.MustCompile(`^\t\textent data disk byte (\d+) nr (\d+)$`)
	partLine    = regexp.MustCompile(`^\t\textent data offset (\d+) nr (\d+) ram \d+$`)
	packingLine = regexp.MustCompile(`^\t\textent compression ([0-3]) `)
)

// findLayout reads the chunk tree and the top subvolume of an unmounted filesystem.
func findLayout(ctx context.Context, t *testing.T, devices []string) *layout {
	t.Helper()
	l := &layout{extents: make(map[uint64][]fileExtent)}
	for _, tree := range []string{"chunk", "5"} {
		var key []string
		for line := range strings.Lines(must(ctx, t, "btrfs", "inspect-internal", "dump-tree", "-t", tree, devices[0])) {
			line = strings.TrimSuffix(line, "\n")
			if m := keyLine.FindStringSubmatch(line); m != nil {
				key = m[1:]
			} else if key != nil {
				l.take(key, line)
			}
		}
	}
	if len(l.uuids) != len(devices) || len(l.chunks) < 3 || len(l.extents) == 0 {
		t.Fatalf("btrfs inspect-internal dump-tree: understood %d devices, %d chunks, %d files", len(l.uuids), len(l.chunks), len(l.extents))
	}
	return l
}

// take understands a line of an item.
func (l *layout) take(key []string, line string) {
	number := func(s string) int64 {
		n, _ := strconv.ParseInt(s, 10, 64) // digits, by the pattern
		return n
	}
	at := number(key[2])
	switch key[1] {
	case "DEV_ITEM":
		if m := uuidLine.FindStringSubmatch(line); m != nil {
			l.uuids = append(l.uuids, m[1])
		}
	case "CHUNK_ITEM":
		if m := chunkLine.FindStringSubmatch(line); m != nil {
			kind, profile, _ := strings.Cut(m[2], "|")
			l.chunks = append(l.chunks, stripedChunk{start: at, length: number(m[1]), data: kind == "DATA", profile: profile})
		} else if m := stripeLine.FindStringSubmatch(line); m != nil {
			c := &l.chunks[len(l.chunks)-1]
			c.stripes = append(c.stripes, place{int(number(m[1])) - 1, number(m[2])})
		}
	case "EXTENT_DATA":
		inode := uint64(number(key[0]))
		if m := diskLine.FindStringSubmatch(line); m != nil && m[1] != "0" { // 0: a hole
			l.extents[inode] = append(l.extents[inode], fileExtent{off: at, logical: number(m[1]), disk: number(m[2])})
		}
		list := l.extents[inode]
		if len(list) == 0 || list[len(list)-1].off != at {
			return
		}
		x := &list[len(list)-1]
		if m := partLine.FindStringSubmatch(line); m != nil {
			x.skip, x.length = number(m[1]), number(m[2])
		} else if m := packingLine.FindStringSubmatch(line); m != nil {
			if x.compressed = m[1] != "0"; !x.compressed {
				x.logical, x.disk, x.skip = x.logical+x.skip, x.length, 0
			}
		}
	}
}

// chunk gives the chunk that holds a logical address.
func (l *layout) chunk(logical int64) *stripedChunk {
	i := slices.IndexFunc(l.chunks, func(c stripedChunk) bool { return c.start <= logical && logical < c.start+c.length })
	if i < 0 {
		return nil
	}
	return &l.chunks[i]
}

// row gives what stands for the block at a logical address, and which of its columns is the block itself; 0 of
// copies. With nr the number of the stripe:
//
//	RAID10 of f pairs             pair nr%f                             nr/f*64K
//	RAID5/6 of n, d of them data  column i of row nr/d on (nr/d+i)%n    nr/d*64K
func (l *layout) row(logical int64) (r row, own int) {
	c := l.chunk(logical)
	off, n := logical-c.start, int64(len(c.stripes))
	nr, in := off/stripeLen, off%stripeLen
	at := func(stripe, off int64) place {
		s := c.stripes[stripe]
		return place{s.device, s.off + off}
	}
	switch c.profile {
	case "RAID10":
		f := n / 2
		for i := range int64(2) {
			r.columns = append(r.columns, at(nr%f*2+i, nr/f*stripeLen+in))
		}
	case "RAID5", "RAID6":
		d := n - 1
		if c.profile == "RAID6" {
			d--
		}
		r.data = int(d)
		for i := range n {
			r.columns = append(r.columns, at((nr/d+i)%n, nr/d*stripeLen+in))
		}
		own = int(nr % d)
	default:
		for i := range n {
			r.columns = append(r.columns, at(i, off))
		}
	}
	return r, own
}

// survives says whether every block has enough columns without some devices (by index).
func (l *layout) survives(without []int) bool {
	gone := func(stripes []place) (n int) {
		for _, s := range stripes {
			if slices.Contains(without, s.device) {
				n++
			}
		}
		return n
	}
	for _, c := range l.chunks {
		pieces, r := [][]place{c.stripes}, row{columns: c.stripes}
		switch c.profile {
		case "RAID10":
			pieces, r = slices.Collect(slices.Chunk(c.stripes, 2)), row{columns: c.stripes[:2]}
		case "RAID5", "RAID6":
			r, _ = l.row(c.start)
		}
		for _, p := range pieces {
			if gone(p) > r.spare() {
				return false
			}
		}
	}
	return true
}
