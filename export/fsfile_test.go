package export

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/export/nbdclient"
	"github.com/btrexport/btrexport/export/nbdwire"
	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
)

// openGolden opens an unpacked golden image, each of its devices behind wrap, if that is given.
func openGolden(t *testing.T, img *fsreadtest.Image, wrap ...func(volume.Device) volume.Device) *fsread.FS {
	t.Helper()
	var devs []volume.Device
	for _, path := range img.Devices {
		q, err := devio.Open(path, devio.Options{})
		if err != nil {
			t.Fatal(err)
		}
		var d volume.Device = q
		for _, w := range wrap {
			d = w(d)
		}
		devs = append(devs, d)
	}
	fs, err := fsread.Open(t.Context(), devs, fsread.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		lent := fs.Pool().Lent()
		if err := fs.Close(); err != nil {
			t.Error(err)
		}
		if lent != 0 {
			t.Errorf("%d buffers were not given back", lent)
		}
	})
	return fs
}

// largest opens the largest plain file of an image, up to 64 MiB.
func largest(t *testing.T, fs *fsread.FS, m *fsreadtest.Manifest) (*fsread.File, fsreadtest.Entry) {
	t.Helper()
	var best fsreadtest.Entry
	for _, e := range m.Entries {
		if e.SHA256 != "" && !e.NoCOW && e.Size > best.Size {
			best = e
		}
	}
	top, err := fs.SubvolumeByID(t.Context(), ondisk.TreeFS)
	if err != nil {
		t.Fatal(err)
	}
	f, err := top.OpenFile(t.Context(), "/"+string(best.Path))
	if err != nil {
		t.Fatal(err)
	}
	return f, best
}

// arrived is a Completer that passes reads on on a channel.
type arrived chan *Read

func (s arrived) ReadDone(r *Read) { s <- r }

func TestFSFileReads(t *testing.T) {
	img := fsreadtest.Load(t, "raid1-2")
	file, entry := largest(t, openGolden(t, img), img.Manifest)
	x := NewFile(file)
	if got := x.Size(); got != uint64(entry.Size) {
		t.Fatalf("size %d, want %d", got, entry.Size)
	}
	const part = 100_003 // neither sectors nor stripes
	done := make(arrived, 1+entry.Size/part)
	var batch []*Read
	for off := int64(0); off < entry.Size; off += part {
		batch = append(batch, &Read{Offset: uint64(off), Length: uint32(min(part, entry.Size-off)), Done: done})
	}
	x.Submit(batch)
	all := make([]byte, entry.Size)
	for range batch {
		r := <-done
		if r.Err != nil || len(r.Payload) != int(r.Length) {
			t.Fatalf("read at %d: %d bytes, error %v", r.Offset, len(r.Payload), r.Err)
		}
		copy(all[r.Offset:], r.Payload)
		r.Lender.Release(r)
	}
	sum := sha256.Sum256(all)
	if got := hex.EncodeToString(sum[:]); got != entry.SHA256 {
		t.Errorf("sha256 %s, want %s", got, entry.SHA256)
	}
}

// TestFSFileLost ruins a sector that has one copy: its read fails with a LostError that names it, the
// next read of the same object is good.
func TestFSFileLost(t *testing.T) {
	img := fsreadtest.Load(t, "single")
	fs := openGolden(t, img)
	file, _ := largest(t, fs, img.Manifest)
	ruined := uint64(0)
	errFound := errors.New("found")
	err := file.Extents(t.Context(), 0, func(s fsread.Segment) error {
		if s.Kind != fsread.Plain {
			return nil
		}
		copies, err := fs.Copies(s.Logical)
		if err != nil {
			return err
		}
		f, err := os.OpenFile(img.Devices[0], os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.WriteAt(bytes.Repeat([]byte("ruin"), 16), int64(copies[0].Physical)); err != nil {
			return err
		}
		ruined = s.Off
		return errFound
	})
	if !errors.Is(err, errFound) {
		t.Fatal(err)
	}
	x := NewFile(file)
	done := make(arrived, 1)
	for _, c := range []struct {
		off  uint64
		lost bool
	}{{ruined, true}, {ruined + 8192, false}, {ruined, true}} {
		r := &Read{Offset: c.off, Length: 4096, Done: done, Payload: []byte("stale")}
		x.Submit([]*Read{r})
		<-done
		var lost *fsread.LostError
		if got := errors.As(r.Err, &lost); got != c.lost || len(r.Payload) != 4096 || (len(r.Lost) == 1) != c.lost {
			t.Errorf("read at %d: error %v, %d bytes, %+v; want lost %v", c.off, r.Err, len(r.Payload), r.Lost, c.lost)
		}
		if c.lost && (r.Lost[0].Span != Span{c.off, 4096} || !strings.Contains(r.Lost[0].Err.Error(), "logical")) {
			t.Errorf("lost %+v, want the whole read at %d", r.Lost, c.off)
		}
		if r.Lender == nil {
			t.Fatalf("read at %d: no lender", c.off)
		}
		r.Lender.Release(r)
	}
}

// TestFSFileAllocs holds a batch of reads in the steady state against no allocation at all.
func TestFSFileAllocs(t *testing.T) {
	if fsreadtest.Race {
		t.Skip("sync.Pool forgets at random under the race detector")
	}
	img := fsreadtest.Load(t, "raid1-2")
	file, _ := largest(t, openGolden(t, img), img.Manifest)
	x := NewFile(file)
	for _, c := range []struct {
		name     string
		n, bytes int
	}{{"lone small read", 1, 4096}, {"batch", 16, 4096}, {"large reads", 4, 128 << 10}} {
		t.Run(c.name, func(t *testing.T) {
			done := make(arrived, c.n)
			batch := make([]*Read, c.n)
			for i := range batch {
				batch[i] = &Read{Done: done, Length: uint32(min(c.bytes, int(x.Size()))), Offset: uint64(i*4096) % (x.Size() / 4)}
			}
			round := func() {
				x.Submit(batch)
				for range batch {
					r := <-done
					if r.Err != nil {
						t.Error(r.Err)
					}
					r.Lender.Release(r)
				}
			}
			for range 50 {
				round()
			}
			if got := testing.AllocsPerRun(200, round); got != 0 {
				t.Errorf("%v allocations per round of %d reads, want none", got, c.n)
			}
		})
	}
}

// TestFSFileServed takes the whole way: image, filesystem, server, socket.
func TestFSFileServed(t *testing.T) {
	img := fsreadtest.Load(t, "raid1-2")
	file, entry := largest(t, openGolden(t, img), img.Manifest)
	srv, err := NewServer(Options{Exports: []Export{{Name: "f", File: NewFile(file)}}})
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	a, err := ParseAddress("unix://" + socket)
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(context.Background(), l, nil) }()
	defer func() {
		if err := srv.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	c, err := nbdclient.Dial(t.Context(), nbdclient.Target{Network: "unix", Address: socket, Export: "f"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(c, 0, entry.Size)); err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != entry.SHA256 {
		t.Errorf("sha256 %s, want %s", got, entry.SHA256)
	}
}

// TestFSFileExtents compares the extents of every regular file of images of all kinds with the filesystem's
// own walk, asked for a few at a time, from any offset, and first without waiting.
func TestFSFileExtents(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 3))
	seen := make(map[Extent]bool)
	for _, name := range []string{"raid1-2", "no-holes-off", "lzo", "zlib", "zstd"} {
		img := fsreadtest.Load(t, name)
		fs := openGolden(t, img)
		top, err := fs.SubvolumeByID(t.Context(), ondisk.TreeFS)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range img.Manifest.Entries {
			if e.Type != "file" || e.Size == 0 {
				continue
			}
			f, err := top.OpenFile(t.Context(), "/"+string(e.Path))
			if err != nil {
				continue // of another subvolume
			}
			for range 4 {
				checkExtents(t, f, rng.Uint64N(uint64(e.Size)), 1+rng.IntN(3), seen)
			}
		}
	}
	if !seen[Extent{Kind: ExtentHole}] || !seen[Extent{Kind: ExtentZero}] || !seen[Extent{}] || !seen[Extent{Unverified: true}] ||
		!seen[Extent{Compression: CompressionZlib}] || !seen[Extent{Compression: CompressionLZO}] || !seen[Extent{Compression: CompressionZstd}] {
		t.Errorf("the images show little: %v", seen)
	}
}

// checkExtents walks a file from off on, n extents at a time, and notes the kinds that it meets.
func checkExtents(t *testing.T, f *fsread.File, off uint64, n int, seen map[Extent]bool) {
	t.Helper()
	x := NewFile(f)
	list := make([]Extent, n)
	err := f.Extents(t.Context(), off, func(s fsread.Segment) error {
		for end := s.Off + s.Len; off < min(end, f.Size()); {
			n, err := x.Extents(t.Context(), off, f.Size(), false, list)
			if errors.Is(err, ErrWait) {
				n, err = x.Extents(t.Context(), off, f.Size(), true, list)
			}
			if err != nil || n < 1 || n > len(list) {
				return fmt.Errorf("%d extents, %v", n, err)
			}
			got := list[0]
			if off+got.Length != end {
				return fmt.Errorf("extent at %d has %d bytes, want %d", off, got.Length, end-off)
			}
			want := Extent{Length: got.Length}
			switch s.Kind {
			case fsread.Hole:
				want.Kind = ExtentHole
			case fsread.Prealloc:
				want.Kind = ExtentZero
			case fsread.Compressed:
				want.Compression = Compression(s.Extent.Compression)
				want.Unverified = !f.Verified() && s.Extent.Type != ondisk.ExtentInline
			case fsread.Plain:
				want.Unverified = !f.Verified()
			}
			if got != want {
				return fmt.Errorf("at %d (%s): %+v, want %+v", off, s.Kind, got, want)
			}
			off = end
			got.Length = 0
			seen[got] = true
		}
		return nil
	})
	if err != nil {
		t.Errorf("inode %d: %v", f.Inode(), err)
	}
}

// watched is a device that counts what it is asked for and may spin.
type watched struct {
	volume.Device
	spins bool
	reads *atomic.Int64
}

func (w *watched) Rotational() bool { return w.spins }

func (w *watched) Submit(batch []*devio.Read) {
	w.reads.Add(int64(len(batch)))
	w.Device.Submit(batch)
}

// TestHandshakeReadsNothing is CVE-2019-14850: whatever a client asks for before it has chosen an export, and the choice too,
// costs no read of a disk.
func TestHandshakeReadsNothing(t *testing.T) {
	img, reads := fsreadtest.Load(t, "raid1-2"), new(atomic.Int64)
	fs := openGolden(t, img, func(d volume.Device) volume.Device { return &watched{Device: d, reads: reads} })
	file, _ := largest(t, fs, img.Manifest)
	fx := start(t, Options{Exports: []Export{{Name: "f", Description: "a file", File: NewFile(file), RoundUp: 512}}})
	before := reads.Load()
	quiet := func(what string) {
		t.Helper()
		if n := reads.Load() - before; n != 0 {
			t.Fatalf("%s: %d reads", what, n)
		}
	}
	c := fx.greeted()
	quiet("greeting")
	c.option(optList, nil)
	c.reply(optList, 2)
	c.reply(optList, repAck)
	quiet("LIST")
	c.infos(optInfo, "f", 1, 2, 3)
	quiet("INFO")
	c.option(optGo, infoRequest("g"))
	c.reply(optGo, repUnknown)
	c.option(optSR, nil)
	c.reply(optSR, repAck)
	c.meta(optListMeta, "f")
	ids := c.meta(optSetMeta, "f", base)
	quiet("metadata contexts")
	c.choose("f")
	quiet("GO")
	c.put(readRequest(1, 0, 4096))
	c.parts(1)
	c.put(requestBytes(cmdStatus, 0, 2, 0, 4096))
	if list := c.parts(2); len(list) != 1 || list[0].context != ids[base] {
		t.Fatalf("status %+v", list)
	}
	if reads.Load() == before {
		t.Error("a READ has read nothing: the count is of no use")
	}
}

// TestFSFileRotational: one device that spins is enough.
func TestFSFileRotational(t *testing.T) {
	img := fsreadtest.Load(t, "raid1-2")
	for _, tc := range []struct {
		name  string
		spins []bool
		want  uint16
	}{{"none", []bool{false, false}, 0x507}, {"second", []bool{false, true}, 0x507 | nbdwire.FlagRotational}} {
		t.Run(tc.name, func(t *testing.T) {
			n := 0
			fs := openGolden(t, img, func(d volume.Device) volume.Device {
				n++
				return &watched{Device: d, spins: tc.spins[n-1], reads: new(atomic.Int64)}
			})
			file, _ := largest(t, fs, img.Manifest)
			c := start(t, Options{Exports: []Export{{Name: "f", File: NewFile(file)}}}).greeted()
			if got := c.infos(optGo, "f")[0].Flags; got != tc.want {
				t.Errorf("flags %#x, want %#x", got, tc.want)
			}
		})
	}
}
