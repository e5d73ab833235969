package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
)

// maxPieces bounds the pieces of one extent: 4 GiB in stripes of 64 KiB, many times what a kernel writes.
const maxPieces = 1 << 16

// extent is one row of a file's map.
type extent struct {
	off, length uint64 // in the file; length ends with the file
	kind        fsread.Kind
	compression string         // zlib, lzo, zstd or ""
	logical     ondisk.Logical // of what lies on the disk; 0 where nothing does
	onDisk      uint64         // bytes of one copy: the whole extent where it is compressed
	stored      ondisk.FileExtent
}

// newExtent takes a segment of a walk that began at the start of the file, so that it begins where its
// extent does.
func newExtent(s *fsread.Segment, size uint64) extent {
	x := extent{off: s.Off, length: min(s.Len, size-s.Off), kind: s.Kind, stored: s.Extent}
	if s.Kind != fsread.Hole {
		x.compression = compressionName(s.Extent.Compression)
	}
	switch {
	case s.Kind == fsread.Compressed && s.Extent.Type == ondisk.ExtentInline:
		x.kind = fsread.Inline
	case s.Kind == fsread.Compressed:
		x.logical, x.onDisk = s.Extent.DiskBytenr, s.Extent.DiskNumBytes
	case s.Kind == fsread.Plain:
		x.logical, x.onDisk = s.Logical, s.Len
	case s.Kind == fsread.Prealloc && s.Extent.DiskBytenr != 0:
		x.logical, x.onDisk = s.Extent.DiskBytenr+ondisk.Logical(s.Extent.Offset), s.Len
	}
	return x
}

func compressionName(c uint8) string {
	switch c {
	case ondisk.CompressZlib:
		return "zlib"
	case ondisk.CompressLZO:
		return "lzo"
	case ondisk.CompressZstd:
		return "zstd"
	}
	return ""
}

// hasChecksums says whether the bytes have checksums of their own, if the file has any.
func (x *extent) hasChecksums() bool { return x.kind == fsread.Plain || x.kind == fsread.Compressed }

// name is the kind for people: a compressed extent is called by its compression.
func (x *extent) name() string {
	switch {
	case x.kind == fsread.Compressed:
		return x.compression
	case x.compression != "":
		return x.kind.String() + "+" + x.compression
	}
	return x.kind.String()
}

// piece is a part of an extent that lies in one piece on every device that has it.
type piece struct {
	off     uint64 // in the extent's part on the disk
	length  uint64
	logical ondisk.Logical
	copies  []volume.Copy
}

// locate splits a logical range where a copy of it goes on elsewhere. On an error the pieces before it
// are given.
func locate(logical ondisk.Logical, n uint64, copies copiesFunc) ([]piece, error) {
	var out []piece
	for off := uint64(0); off < n; {
		all, err := copies(logical + ondisk.Logical(off))
		if err != nil {
			return out, err
		}
		p := piece{off: off, length: n - off, logical: logical + ondisk.Logical(off), copies: all}
		for _, c := range all {
			p.length = min(p.length, c.Len)
		}
		if p.length == 0 || len(out) == maxPieces {
			return out, fmt.Errorf("extent of %d bytes at logical %d: %w: more than %d pieces", n, logical, ondisk.ErrCorrupt, maxPieces)
		}
		off += p.length
		if last := len(out) - 1; last >= 0 && out[last].goesOn(&p) {
			out[last].length += p.length
			continue
		}
		out = append(out, p)
	}
	return out, nil
}

// goesOn says whether q begins on every device where p ends.
func (p *piece) goesOn(q *piece) bool {
	if len(p.copies) != len(q.copies) {
		return false
	}
	for i, c := range p.copies {
		if d := q.copies[i]; c.DevID != d.DevID || c.Parity != d.Parity || uint64(c.Physical)+p.length != uint64(d.Physical) {
			return false
		}
	}
	return true
}

// places lists the copies as devid@physical, and columns of parity as P:devid@physical.
func (p *piece) places() string {
	var out []string
	for _, c := range p.copies {
		s := fmt.Sprintf("%d@%d", c.DevID, c.Physical)
		if c.Parity != "" {
			s = c.Parity + ":" + s
		}
		if c.Missing {
			s += "(missing)"
		}
		out = append(out, s)
	}
	return strings.Join(out, "  ")
}

// rows are the extent's cells: one row, and one for each piece below it when there are several.
func (x *extent) rows(pieces []piece, err error, exact bool) [][6]string {
	first := [6]string{decimal(x.off), size(x.length, exact), x.name()}
	if x.onDisk == 0 {
		return [][6]string{first}
	}
	first[3], first[4] = size(x.onDisk, exact), decimal(uint64(x.logical))
	if err == nil && len(pieces) == 1 {
		first[5] = pieces[0].places()
		return [][6]string{first}
	}
	first[5] = fmt.Sprintf("in %d pieces:", len(pieces))
	if err != nil {
		first[5] = "unknown: " + printable(err.Error())
	}
	out := [][6]string{first}
	for i := range pieces {
		p := &pieces[i]
		out = append(out, [6]string{"  +" + decimal(p.off), "", "", size(p.length, exact), decimal(uint64(p.logical)), p.places()})
	}
	return out
}

func decimal(n uint64) string { return strconv.FormatUint(n, 10) }

// extentJSON is one extent as --json has it. All numbers are bytes, but for mirror and devid.
type extentJSON struct {
	Offset      uint64         `json:"offset"` // in the file
	Length      uint64         `json:"length"`
	Kind        string         `json:"kind"` // hole, prealloc, inline, plain or compressed
	Compression string         `json:"compression,omitempty"`
	Verified    bool           `json:"verified"` // false: there are no checksums of it
	Logical     ondisk.Logical `json:"logical,omitempty"`
	OnDisk      uint64         `json:"disk_bytes,omitempty"` // of each copy
	Extent      *storedJSON    `json:"extent,omitempty"`
	Copies      []copyJSON     `json:"copies,omitempty"`
	Error       string         `json:"error,omitempty"` // why copies are not all there are
}

// storedJSON is the whole extent that the file has a part of.
type storedJSON struct {
	Logical      ondisk.Logical `json:"logical"`
	Bytes        uint64         `json:"bytes"`
	Decompressed uint64         `json:"decompressed_bytes,omitempty"` // of a compressed one
	Offset       uint64         `json:"offset"`                       // of the file's part, decompressed
}

// copyJSON is one copy of one piece of an extent, or a column of the parity that covers it.
type copyJSON struct {
	Mirror   volume.Mirror  `json:"mirror"`
	Offset   uint64         `json:"offset"` // in the extent's disk_bytes
	Length   uint64         `json:"length"`
	Logical  ondisk.Logical `json:"logical"`
	DevID    uint64         `json:"devid"`
	Device   string         `json:"device,omitempty"`
	Physical uint64         `json:"physical"`
	Missing  bool           `json:"missing,omitempty"`
	Parity   string         `json:"parity,omitempty"` // P or Q: a column to rebuild from, mirror 0
}

func (x *extent) object(pieces []piece, verified bool, err error) extentJSON {
	o := extentJSON{Offset: x.off, Length: x.length, Kind: x.kind.String(), Compression: x.compression, Verified: verified,
		Logical: x.logical, OnDisk: x.onDisk}
	if !x.hasChecksums() {
		o.Verified = true // by the checksum of the tree block that says so
	}
	if x.onDisk == 0 {
		return o
	}
	o.Extent = &storedJSON{Logical: x.stored.DiskBytenr, Bytes: x.stored.DiskNumBytes, Offset: x.stored.Offset}
	if x.kind == fsread.Compressed {
		o.Extent.Decompressed = x.stored.RAMBytes
	}
	for _, p := range pieces {
		for _, c := range p.copies {
			j := copyJSON{Mirror: c.Mirror, Offset: p.off, Length: p.length, Logical: p.logical, DevID: uint64(c.DevID),
				Physical: uint64(c.Physical), Missing: c.Missing, Parity: c.Parity}
			if !c.Missing {
				j.Device = c.Name
			}
			o.Copies = append(o.Copies, j)
		}
	}
	if err != nil {
		o.Error = err.Error()
	}
	return o
}
