// Package parttabletest writes partition tables for tests, byte by byte.
package parttabletest

import (
	"encoding/binary"
	"hash/crc32"
	"slices"
)

// Part is a partition to write: where it begins and how long it is, in sectors.
type Part [2]uint64

const (
	sector   = 512
	linux    = 0x83
	extended = 0x05
)

var le = binary.LittleEndian

func put(b []byte, i int, kind byte, start, length uint64) {
	e := b[446+16*i:]
	e[4] = kind
	le.PutUint32(e[8:], uint32(start))
	le.PutUint32(e[12:], uint32(length))
	b[510], b[511] = 0x55, 0xaa
}

// MBR writes up to three primary partitions and, in an extended fourth, logical ones. The link of each of those is
// written into the sector before it.
func MBR(disk []byte, primary, logical []Part) {
	for i, p := range primary {
		put(disk, i, linux, p[0], p[1])
	}
	if len(logical) == 0 {
		return
	}
	first := logical[0][0] - 1
	last := logical[len(logical)-1]
	put(disk, 3, extended, first, last[0]+last[1]-first)
	for i, p := range logical {
		link := disk[(p[0]-1)*sector:]
		put(link, 0, linux, 1, p[1])
		if i+1 < len(logical) {
			put(link, 1, extended, logical[i+1][0]-1-first, logical[i+1][1]+1)
		}
	}
}

// entries is how many a GPT has room for, of entrySize bytes each.
const entries, entrySize = 128, 128

// GPT writes a protective MBR, a table and its copy at the end of the disk, whose sectors have size bytes.
func GPT(disk []byte, size uint64, parts []Part) {
	sectors := uint64(len(disk)) / size
	put(disk, 0, 0xee, 1, sectors-1)
	array := make([]byte, entries*entrySize)
	for i, p := range parts {
		e := array[i*entrySize:]
		copy(e, "\xaf\x3d\xc6\x0f\x83\x84\x72\x47\x8e\x79\x3d\x69\xd8\x47\x7d\xe4") // Linux filesystem
		e[16] = byte(i + 1)
		le.PutUint64(e[32:], p[0])
		le.PutUint64(e[40:], p[0]+p[1]-1)
	}
	n := (uint64(len(array)) + size - 1) / size
	copy(disk[2*size:], array)
	header(disk, size, 1, sectors-1, 2, array)
	copy(disk[(sectors-1-n)*size:], array)
	header(disk, size, sectors-1, 1, sectors-1-n, array)
}

func header(disk []byte, size, own, other, at uint64, array []byte) {
	h := disk[own*size:][:92]
	copy(h, "EFI PART\x00\x00\x01\x00")
	le.PutUint32(h[12:], 92)
	le.PutUint64(h[24:], own)
	le.PutUint64(h[32:], other)
	le.PutUint64(h[72:], at)
	le.PutUint32(h[80:], entries)
	le.PutUint32(h[84:], entrySize)
	le.PutUint32(h[88:], crc32.ChecksumIEEE(array))
	sum := slices.Clone(h)
	clear(sum[16:20])
	le.PutUint32(h[16:], crc32.ChecksumIEEE(sum))
}
