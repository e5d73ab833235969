package kernelfs

import "encoding/binary"

// BlockSize is the unit in which content describes itself.
const BlockSize = 4096

const (
	lineSize = 512
	magic    = "BTRX"
)

// Content makes the bytes of files: block i of content id is a pure function of (Seed, id, i),
// and begins with "BTRX", id, i and a check value, so that a block found at a wrong place tells
// where it belongs. Every block and every 512-byte line differs from every other.
type Content struct {
	Seed uint64
	// Noise fills the blocks with random bytes. Without it they compress to some 25 bytes each,
	// which keeps golden images small.
	Noise bool
}

// Block fills b, at most BlockSize bytes, with the start of block i of content id.
func (c Content) Block(id, i uint64, b []byte) {
	var block [BlockSize]byte
	check := mix(mix(c.Seed^mix(id)) ^ i)
	state := check
	for line := 0; line < BlockSize; line += lineSize {
		p := block[line : line+lineSize]
		n := uint64(line / lineSize)
		copy(p, magic)
		binary.LittleEndian.PutUint32(p[4:], uint32(n))
		binary.LittleEndian.PutUint64(p[8:], id)
		binary.LittleEndian.PutUint64(p[16:], i)
		if line == 0 {
			binary.LittleEndian.PutUint64(p[24:], check)
		}
		for at := 32; at < lineSize; at += 8 {
			if c.Noise {
				state += 0x9e3779b97f4a7c15
				binary.LittleEndian.PutUint64(p[at:], mix(state))
			} else {
				binary.LittleEndian.PutUint64(p[at:], (id*31+i*7+n)&0xff*0x0101010101010101)
			}
		}
	}
	copy(b, block[:])
}

// Fill fills p with the bytes of content id from byte off on.
func (c Content) Fill(id uint64, off int64, p []byte) {
	var block [BlockSize]byte
	for len(p) > 0 {
		in := off % BlockSize
		c.Block(id, uint64(off/BlockSize), block[:])
		n := copy(p, block[in:])
		p, off = p[n:], off+int64(n)
	}
}

// mix is the finalizer of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
// generators", 2014).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
