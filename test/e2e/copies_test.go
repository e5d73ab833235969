//go:build linux

package e2e

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

const sector = 4096

// place is a byte address on one device.
type place struct {
	device int // index of the image
	off    int64
}

// copies finds the copies of blocks in image files by what is in them, without asking the reader
// under test: every data block of kernelfs differs from every other, and so does every tree block.
type copies struct {
	images []string
	data   map[[32]byte][]place // by SHA-256 of a sector
	tree   map[[32]byte][]place // by SHA-256 of a node
	node   int
}

// findCopies reads all that the images hold. Stale blocks are found too: to ruin those is harmless.
func findCopies(t *testing.T, images []string, nodesize int) *copies {
	t.Helper()
	c := &copies{images: images, data: make(map[[32]byte][]place), tree: make(map[[32]byte][]place), node: nodesize}
	for i, path := range images {
		if err := c.scan(i, path); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func (c *copies) scan(device int, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var super [sector]byte
	if _, err := f.ReadAt(super[:], 64<<10); err != nil {
		return err
	}
	fsid := super[32:48]
	for off := int64(0); ; {
		from, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if err == unix.ENXIO { // nothing but holes up to the end
			return nil
		}
		if err != nil {
			return err
		}
		to, err := unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		from -= from % sector
		b := make([]byte, to-from)
		if _, err := f.ReadAt(b, from); err != nil {
			return err
		}
		c.sectors(device, from, b, fsid)
		off = to
	}
}

// sectors takes a run of bytes apart. A tree block has the filesystem's id behind its checksum; a
// superblock has it too, and a magic number where a tree block has another id.
func (c *copies) sectors(device int, at int64, b, fsid []byte) {
	for ; len(b) >= sector; b, at = b[sector:], at+sector {
		sum := sha256.Sum256(b[:sector])
		c.data[sum] = append(c.data[sum], place{device, at})
		if bytes.Equal(b[32:48], fsid) && string(b[64:72]) != "_BHRfS_M" && len(b) >= c.node {
			sum := sha256.Sum256(b[:c.node])
			c.tree[sum] = append(c.tree[sum], place{device, at})
		}
	}
}

// of lists where a data block stands; want is its profile's number of copies. None: the block is not
// on the disk as it is in the file (a hole, inline, or another file shares less than all of it).
func (c *copies) of(block []byte, want int) []place {
	list := c.data[sha256.Sum256(block)]
	if len(list) != want {
		return nil
	}
	return list
}

// ruin overwrites n bytes at a place so that no checksum of them holds: the checksum of a tree block
// covers what stands behind its first 32 bytes.
func (c *copies) ruin(p place, n int, rng *rand.Rand) error {
	b, err := c.read(p, n)
	if err != nil {
		return err
	}
	switch rng.IntN(4) {
	case 0: // one bit
		b[32+rng.IntN(n-32)] ^= 1 << rng.IntN(8)
	case 1: // lost
		clear(b)
	case 2: // a write that stopped half way
		for i := n / 2; i < n; i += 8 {
			binary.LittleEndian.PutUint64(b[i:], rng.Uint64())
		}
	default: // garbage
		for i := 0; i < n; i += 8 {
			binary.LittleEndian.PutUint64(b[i:], rng.Uint64())
		}
	}
	return c.write(p, b)
}

// write puts bytes in place. Who reads past the page cache, O_DIRECT or a loop device, has the kernel write them first.
func (c *copies) write(p place, b []byte) error {
	f, err := os.OpenFile(c.images[p.device], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, p.off)
	return errors.Join(err, f.Close())
}

// ruinSome ruins one to most copies of one in every blocks of lists, which have n bytes each, and
// returns how many copies it ruined.
func (c *copies) ruinSome(lists [][]place, every, n, most int, rng *rand.Rand) (int, error) {
	ruined := 0
	for _, list := range lists {
		if rng.IntN(every) != 0 {
			continue
		}
		chosen := slices.Clone(list)
		rng.Shuffle(len(chosen), func(i, j int) { chosen[i], chosen[j] = chosen[j], chosen[i] })
		for _, p := range chosen[:1+rng.IntN(most)] {
			if err := c.ruin(p, n, rng); err != nil {
				return 0, fmt.Errorf("ruin %+v: %w", p, err)
			}
			ruined++
		}
	}
	return ruined, nil
}

// blocks lists the copies of all tree blocks that have want of them, in a stable order.
func (c *copies) blocks(want int) [][]place {
	var lists [][]place
	for _, list := range c.tree {
		if len(list) == want {
			lists = append(lists, list)
		}
	}
	slices.SortFunc(lists, func(a, b []place) int {
		return cmp.Or(cmp.Compare(a[0].device, b[0].device), cmp.Compare(a[0].off, b[0].off))
	})
	return lists
}

// ruinLeaves ruins all copies of every leaf, of whatever generation, that lists the extent of a file
// at off. struct btrfs_header: nritems u32 @96, level u8 @100; then items of 25 bytes that begin
// with the key: objectid u64, type u8, offset u64.
func (c *copies) ruinLeaves(inode, off uint64, rng *rand.Rand) error {
	const header, item, extentData = 101, 25, 108
	want := binary.LittleEndian.AppendUint64(nil, inode)
	want = binary.LittleEndian.AppendUint64(append(want, extentData), off)
	ruined := 0
	for _, list := range c.blocks(2) {
		b, err := c.read(list[0], c.node)
		if err != nil {
			return err
		}
		if b[100] != 0 {
			continue
		}
		for i := range int(binary.LittleEndian.Uint32(b[96:])) {
			if !bytes.Equal(b[header+i*item:][:len(want)], want) {
				continue
			}
			for _, p := range list {
				ruined++
				if err := c.ruin(p, c.node, rng); err != nil {
					return err
				}
			}
			break
		}
	}
	if ruined == 0 {
		return fmt.Errorf("no leaf lists offset %d of inode %d", off, inode)
	}
	return nil
}

func (c *copies) read(p place, n int) ([]byte, error) {
	f, err := os.Open(c.images[p.device])
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, n)
	_, err = f.ReadAt(b, p.off)
	return b, err
}

// byPlace sorts places, and drops those that stand twice.
func byPlace(list []place) []place {
	slices.SortFunc(list, func(a, b place) int { return cmp.Or(cmp.Compare(a.device, b.device), cmp.Compare(a.off, b.off)) })
	return slices.Compact(list)
}
