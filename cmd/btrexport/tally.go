package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/btrexport/btrexport/fsread"
)

// tally adds a file's extents up: the summary, the picture and the widths of the columns.
type tally struct {
	size     uint64
	verified bool
	exact    bool
	kinds    map[string]*share // by extent.name
	names    []string          // in the order of their first appearance
	picture  *picture
	columns  *widths
}

// share is what extents of one kind have of a file.
type share struct {
	kind    fsread.Kind
	bytes   uint64 // of the file
	extents int    // references to extents
	spans   []span // on the disk
}

// span is a range on the disk. Two of them may be the same extent: what is there is counted once.
type span struct {
	start, length uint64
	ram           uint64 // decompressed
}

func newTally(size uint64, verified, exact bool) *tally {
	return &tally{size: size, verified: verified, exact: exact, kinds: make(map[string]*share), picture: newPicture(size), columns: newWidths(exact)}
}

func (t *tally) add(x *extent) {
	name := x.name()
	k := t.kinds[name]
	if k == nil {
		k = &share{kind: x.kind}
		t.kinds[name] = k
		t.names = append(t.names, name)
	}
	k.bytes += x.length
	k.extents++
	if x.onDisk > 0 {
		k.addSpan(span{uint64(x.logical), x.onDisk, x.stored.RAMBytes})
	}
	t.picture.paint(x)
	t.columns.fit(x)
}

// addSpan keeps the list short where a file lies in order: the same compressed extent again, or plain
// data that goes on.
func (k *share) addSpan(s span) {
	if last := len(k.spans) - 1; last >= 0 {
		switch l := &k.spans[last]; {
		case l.start == s.start && l.length == s.length:
			return
		case k.kind != fsread.Compressed && l.start+l.length == s.start:
			l.length += s.length
			return
		}
	}
	k.spans = append(k.spans, s)
}

// onDisk counts every byte on the disk once, and what it is decompressed.
func (k *share) onDisk() (bytes, ram uint64) {
	slices.SortFunc(k.spans, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	end := uint64(0)
	for _, s := range k.spans {
		if s.start >= end {
			ram += s.ram
		}
		if from := max(s.start, end); s.start+s.length > from {
			bytes += s.start + s.length - from
			end = s.start + s.length
		}
	}
	return bytes, ram
}

// summary is one line on the whole file.
func (t *tally) summary(path string) string {
	var parts []string
	data := t.data()
	if data != "" {
		parts = append(parts, data)
	}
	for _, name := range t.names {
		k := t.kinds[name]
		switch k.kind {
		case fsread.Inline:
			parts = append(parts, fmt.Sprintf("%s %s", amount(k.bytes, t.exact), name))
		case fsread.Prealloc:
			parts = append(parts, fmt.Sprintf("%s preallocated (%s)", amount(k.bytes, t.exact), count(k.extents, "extent")))
		case fsread.Hole:
			parts = append(parts, fmt.Sprintf("%s of %s", count(k.extents, "hole"), amount(k.bytes, t.exact)))
		}
	}
	if len(parts) == 0 {
		parts = append(parts, "empty")
	}
	if data != "" && !t.verified {
		parts = append(parts, "unverified: no checksums")
	}
	return fmt.Sprintf("%s  %s: %s", shown(path), amount(t.size, t.exact), strings.Join(parts, ", "))
}

// data is what lies in data extents; "" when nothing does.
func (t *tally) data() string {
	var bytes, disk uint64
	extents, plain := 0, 0
	var ratios []string
	for _, name := range t.names {
		k := t.kinds[name]
		if k.kind != fsread.Plain && k.kind != fsread.Compressed {
			continue
		}
		on, ram := k.onDisk()
		bytes, disk, extents = bytes+k.bytes, disk+on, extents+k.extents
		if k.kind == fsread.Plain {
			plain = k.extents
			continue
		}
		ratios = append(ratios, fmt.Sprintf("%s %.1f:1", name, float64(ram)/float64(on)))
	}
	if extents == 0 {
		return ""
	}
	what := append([]string{count(extents, "extent")}, ratios...)
	if plain > 0 && len(ratios) > 0 {
		what = append(what, fmt.Sprintf("%d plain", plain))
	}
	return fmt.Sprintf("%s data in %s on disk (%s)", amount(bytes, t.exact), amount(disk, t.exact), strings.Join(what, ", "))
}

// amount is a size in a sentence.
func amount(n uint64, exact bool) string {
	if exact {
		return decimal(n) + " bytes"
	}
	return iec(n)
}

// count is "1 hole" or "2 holes".
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// widths are those of the columns of a map, but for the last.
type widths [5]int

func newWidths(exact bool) *widths {
	w := &widths{len("FILE OFFSET"), len("LENGTH"), len("prealloc"), len("ON DISK"), len("LOGICAL")}
	if !exact {
		w[1], w[3] = len("1023 KiB"), len("1023 KiB")
	}
	return w
}

// fit makes room for an extent and for pieces of it.
func (w *widths) fit(x *extent) {
	for i, cell := range x.rows(nil, nil, true)[0][:5] {
		if (i != 1 && i != 3) || w[i] != len("1023 KiB") {
			w[i] = max(w[i], len(cell))
		}
	}
	w[4] = max(w[4], len(decimal(uint64(x.logical)+x.onDisk)))
}

func (w *widths) row(cells ...string) string {
	var b strings.Builder
	for i, cell := range cells {
		if i < len(w) {
			cell = fmt.Sprintf("%-*s  ", w[i], cell)
		}
		b.WriteString(cell)
	}
	return strings.TrimRight(b.String(), " ")
}
