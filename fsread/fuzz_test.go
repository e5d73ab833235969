package fsread

import (
	"context"
	"encoding/binary"
	"slices"
	"sync"
	"testing"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/volume"
)

// overlaid is a device some of whose blocks are replaced.
type overlaid struct {
	volume.Device
	mu     sync.Mutex
	blocks map[devio.Physical][]byte // guarded by mu
	log    func(off devio.Physical, b []byte)
}

// patched puts the blocks into what the device below delivered.
type patched struct {
	over *overlaid
	done devio.Completer
}

func (o *overlaid) Submit(batch []*devio.Read) {
	for _, r := range batch {
		r.Done = &patched{over: o, done: r.Done}
	}
	o.Device.Submit(batch)
}

func (p *patched) ReadDone(r *devio.Read) {
	p.over.mu.Lock()
	at := r.Off
	for _, b := range r.Bufs {
		if r.Err == nil && p.over.log != nil {
			p.over.log(at, b)
		}
		for off, block := range p.over.blocks {
			if off < at+devio.Physical(len(b)) && off+devio.Physical(len(block)) > at {
				lo, hi := max(off, at), min(off+devio.Physical(len(block)), at+devio.Physical(len(b)))
				copy(b[lo-at:hi-at], block[lo-off:hi-off])
			}
		}
		at += devio.Physical(len(b))
	}
	p.over.mu.Unlock()
	r.Done = p.done
	r.Done.ReadDone(r)
}

// fuzzLimit bounds what one input may read: hostile metadata can describe any number of bytes.
const fuzzLimit = 4 << 20

// FuzzImage changes bytes of one superblock or tree block of a real filesystem, redoes its checksum, and reads
// everything: whatever is found there, nothing panics, hangs or takes memory by what the disk says.
func FuzzImage(f *testing.F) {
	img := fsreadtest.Load(f, "namespaces")
	var blocks []devio.Physical
	content := map[devio.Physical][]byte{}
	readImage(f, img, nil, func(off devio.Physical, b []byte) {
		if isBlock(b) && !slices.Contains(blocks, off) {
			blocks, content[off] = append(blocks, off), slices.Clone(b)
		}
	})
	if len(blocks) < 6 {
		f.Fatalf("met %d blocks only", len(blocks))
	}
	slices.Sort(blocks)
	for i := range blocks {
		f.Add(uint16(i), uint16(100), uint32(0))
		f.Add(uint16(i), uint16(101), uint32(0xffffffff))
		f.Add(uint16(i), uint16(118), uint32(0x7fffffff))
		f.Add(uint16(i), uint16(80), uint32(1))
		f.Add(uint16(i), uint16(96), uint32(0xffff))
	}
	f.Fuzz(func(t *testing.T, which, at uint16, value uint32) {
		off := blocks[int(which)%len(blocks)]
		b := slices.Clone(content[off])
		where := 32 + int(at)%(len(b)-36)
		binary.LittleEndian.PutUint32(b[where:], value^binary.LittleEndian.Uint32(b[where:]))
		reseal(b)
		readImage(t, img, map[devio.Physical][]byte{off: b}, nil)
	})
}

// isBlock knows a superblock and a tree block of the filesystem by their checksum.
func isBlock(b []byte) bool {
	sum := binary.LittleEndian.Uint32(b)
	c := slices.Clone(b)
	reseal(c)
	return sum == binary.LittleEndian.Uint32(c) && len(b) >= 4096
}

// readImage opens an image with some blocks replaced and reads all that it can.
func readImage(t testing.TB, img *fsreadtest.Image, blocks map[devio.Physical][]byte, log func(devio.Physical, []byte)) {
	q, err := devio.Open(img.Devices[0], devio.Options{Workers: 2, Buffered: true})
	if err != nil {
		t.Fatal(err)
	}
	dev := &overlaid{Device: q, blocks: blocks, log: log}
	f, err := Open(context.Background(), []volume.Device{dev}, Options{Degraded: true})
	if err != nil {
		q.Close()
		if log != nil {
			t.Fatal(err)
		}
		return
	}
	defer f.Close()
	ctx := context.Background()
	left := fuzzLimit
	subs, _ := f.Subvolumes(ctx)
	for _, info := range subs {
		s, err := f.SubvolumeByID(ctx, info.ID)
		if err != nil {
			continue
		}
		_ = eachEntry(ctx, s, func(_ string, n *Node, _ string) {
			file, err := n.File()
			if err != nil || left <= 0 {
				return
			}
			p := make([]byte, min(file.size, 128<<10))
			n2, _ := file.ReadAt(ctx, p, 0)
			_, _ = file.Shared(ctx)
			left -= n2 + 1
			_ = file.Extents(ctx, 0, func(Segment) error {
				if left--; left < 0 {
					return ErrClosed
				}
				return nil
			})
		})
	}
	if _, err := f.DefaultSubvolume(ctx); err != nil && log != nil {
		t.Fatal(err)
	}
}
