// Package parttable reads partition tables: GPT, and MBR with logical partitions in an extended one. It tells where
// partitions begin, so that who names a whole disk can be told where in it a filesystem lies.
//
// What is on the disk is hostile: counts, sizes and the length of chains are bounded, nothing is followed twice.
// Sources: UEFI specification 2.10, chapter 5 (GPT, protective MBR); the MBR as fdisk and others write it, in sectors of
// 512 bytes. Not done: writing, BSD disklabels, LVM.
package parttable

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

const (
	mbrSector  = 512 // bytes of a sector in an MBR
	mbrTable   = 446 // where the four entries begin
	mbrEntry   = 16
	maxLogical = 128     // logical partitions that are followed
	maxEntries = 1024    // partitions in a GPT that are looked at
	maxArray   = 1 << 20 // bytes of a GPT's array of partitions
)

// ErrNone is a disk without a partition table that can be read.
var ErrNone = errors.New("no partition table")

// Partition is one entry of a table.
type Partition struct {
	Number int    // as fdisk and the kernel count: logical ones from 5
	Start  uint64 // bytes from the disk's first one
	Size   uint64 // bytes; Start+Size is not behind the end of the disk
}

// ReadAt fills p with what lies at byte off of the disk. It is asked for nothing behind the disk's size.
type ReadAt func(p []byte, off uint64) error

// Read gives the partitions of a disk of size bytes, in the order of the table; those that are empty or reach over the
// end of the disk are left out. The error is one of read, or ErrNone.
func Read(read ReadAt, size uint64) ([]Partition, error) {
	d := disk{read, size}
	mbr, err := d.at(0, mbrSector)
	if err != nil {
		return nil, err
	}
	if mbr == nil || !isMBR(mbr) {
		return d.gpt() // one whose protective MBR was overwritten
	}
	for i := range 4 {
		if entry(mbr, i).kind == typeProtective {
			return d.gpt()
		}
	}
	return d.mbr(mbr)
}

type disk struct {
	read ReadAt
	size uint64
}

// at reads n bytes; nil where the disk does not have them.
func (d disk) at(off uint64, n int) ([]byte, error) {
	if off > d.size || d.size-off < uint64(n) {
		return nil, nil
	}
	b := make([]byte, n)
	return b, d.read(b, off)
}

// add appends a partition if it lies on the disk. start and length are in sectors.
func (d disk) add(list []Partition, number int, start, length, sector uint64) []Partition {
	if most := d.size / sector; start == 0 || length == 0 || start >= most || length > most-start {
		return list
	}
	return append(list, Partition{Number: number, Start: start * sector, Size: length * sector})
}

const typeProtective = 0xee

// mbrPart is an entry of an MBR. start and length are in sectors.
type mbrPart struct {
	status, kind  byte
	start, length uint64
}

// entry decodes one of four: status @0, type @4, start u32 @8, length u32 @12. Precondition: len(b) >= 512.
func entry(b []byte, i int) mbrPart {
	e := b[mbrTable+i*mbrEntry:]
	return mbrPart{e[0], e[4], uint64(binary.LittleEndian.Uint32(e[8:])), uint64(binary.LittleEndian.Uint32(e[12:]))}
}

func (p mbrPart) extended() bool { return p.kind == 0x05 || p.kind == 0x0f || p.kind == 0x85 }

// isMBR tells a table from a boot sector of FAT or NTFS, which ends with the same two bytes.
func isMBR(b []byte) bool {
	if b[510] != 0x55 || b[511] != 0xaa {
		return false
	}
	for i := range 4 {
		if s := entry(b, i).status; s != 0 && s != 0x80 {
			return false
		}
	}
	return true
}

func (d disk) mbr(b []byte) (list []Partition, err error) {
	for i := range 4 {
		if p := entry(b, i); p.kind != 0 && !p.extended() {
			list = d.add(list, i+1, p.start, p.length, mbrSector)
		}
	}
	for i := range 4 {
		if p := entry(b, i); p.extended() {
			logical, err := d.logical(p.start)
			return append(list, logical...), err
		}
	}
	if len(list) == 0 {
		return nil, ErrNone
	}
	return list, nil
}

// logical follows the chain of an extended partition that begins at sector first: each link holds one partition, whose
// start counts from the link, and the place of the next link, which counts from first.
func (d disk) logical(first uint64) (list []Partition, err error) {
	number := 4
	for link, n := first, 0; n < maxLogical; n++ {
		b, err := d.at(link*mbrSector, mbrSector)
		if err != nil || b == nil || !isMBR(b) {
			return list, err
		}
		p, next := entry(b, 0), entry(b, 1)
		if p.length != 0 && !p.extended() {
			number++
			list = d.add(list, number, link+p.start, p.length, mbrSector)
		}
		if !next.extended() || first+next.start <= link { // a chain leads forwards, so it ends
			return list, nil
		}
		link = first + next.start
	}
	return list, nil
}

// gpt reads the table behind the first sector, or else its copy in the last one, for both sizes that sectors have.
func (d disk) gpt() ([]Partition, error) {
	for _, sector := range []uint64{512, 4096} {
		if d.size < 2*sector {
			continue
		}
		for _, lba := range []uint64{1, d.size/sector - 1} {
			list, err := d.gptAt(lba, sector)
			if !errors.Is(err, ErrNone) {
				return list, err
			}
		}
	}
	return nil, ErrNone
}

// Layout of a GPT's header: signature "EFI PART" @0, size u32 @12, crc32 u32 @16 (of the header with zero there), own
// address u64 @24, array's address u64 @72, number of entries u32 @80, size of one u32 @84, crc32 of the array u32 @88.
const gptHeader = 92

// gptAt reads a table whose header is at an address in sectors. ErrNone: there is none, or its checksums are wrong.
func (d disk) gptAt(lba, sector uint64) ([]Partition, error) {
	b, err := d.at(lba*sector, int(sector))
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if b == nil || string(b[:8]) != "EFI PART" {
		return nil, ErrNone
	}
	size := le.Uint32(b[12:])
	if size < gptHeader || uint64(size) > sector || le.Uint64(b[24:]) != lba {
		return nil, ErrNone
	}
	sum := le.Uint32(b[16:])
	clear(b[16:20])
	if crc32.ChecksumIEEE(b[:size]) != sum {
		return nil, ErrNone
	}
	return d.entries(gptArray{lba: le.Uint64(b[72:]), count: le.Uint32(b[80:]), size: le.Uint32(b[84:]), sum: le.Uint32(b[88:])}, sector)
}

// gptArray is where a header says that the partitions are.
type gptArray struct {
	lba              uint64
	count, size, sum uint32
}

// Layout of an entry: type [16] @0 (zeroes: none), first address u64 @32, last address u64 @40.
const gptEntry = 128

func (d disk) entries(a gptArray, sector uint64) ([]Partition, error) {
	if a.count > maxEntries || a.size < gptEntry || a.size%8 != 0 || uint64(a.count)*uint64(a.size) > maxArray || a.lba > d.size/sector {
		return nil, fmt.Errorf("%w: a GPT of %d entries of %d bytes at sector %d", ErrNone, a.count, a.size, a.lba)
	}
	b, err := d.at(a.lba*sector, int(a.count)*int(a.size))
	if err != nil {
		return nil, err
	}
	if b == nil || crc32.ChecksumIEEE(b) != a.sum {
		return nil, ErrNone
	}
	var list []Partition
	for i := range int(a.count) {
		e := b[i*int(a.size):][:gptEntry]
		first, last := binary.LittleEndian.Uint64(e[32:]), binary.LittleEndian.Uint64(e[40:])
		if [16]byte(e) == ([16]byte{}) || last < first {
			continue
		}
		list = d.add(list, i+1, first, last-first+1, sector)
	}
	if len(list) == 0 {
		return nil, ErrNone
	}
	return list, nil
}
