package fsread

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/ondisk/ondisktest"
	"github.com/btrexport/btrexport/fsread/volume"
)

func cat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func plain(at ondisk.Logical, disk, offset, n uint64) ondisk.FileExtent {
	return ondisk.FileExtent{Type: ondisk.ExtentRegular, DiskBytenr: at, DiskNumBytes: disk, Offset: offset, NumBytes: n}
}

// TestExtentShapes reads files whose extents are of every shape, odd but legal ones among them.
func TestExtentShapes(t *testing.T) {
	a, z := pattern(64<<10, 1), zeroes
	for _, c := range []struct {
		name  string
		size  uint64
		flags uint64
		make  func(b *builder)
		want  []byte
	}{
		{"no extents at all", 10000, 0, func(*builder) {}, z[:10000]},
		{"gap before, between and after", 40960, 0, func(b *builder) {
			b.data(dataStart, a, true)
			b.extent(4096, plain(dataStart, 65536, 0, 8192))
			b.extent(20480, plain(dataStart, 65536, 8192, 4096))
		}, cat(z[:4096], a[:8192], z[:8192], a[8192:12288], z[:16384])},
		{"bookend into the middle of an extent", 8192, 0, func(b *builder) {
			b.data(dataStart, a, true)
			b.extent(0, plain(dataStart, 65536, 36864, 8192))
		}, a[36864:45056]},
		{"explicit hole, its compression field set", 8192, 0, func(b *builder) {
			x := plain(0, 0, 0, 8192)
			x.Compression, x.RAMBytes = ondisk.CompressZstd, 8192
			b.extent(0, x)
		}, z[:8192]},
		{"prealloc is zero whatever the disk holds", 12288, 0, func(b *builder) {
			b.data(dataStart, a, true)
			x := plain(dataStart, 65536, 0, 4096)
			x.Type = ondisk.ExtentPrealloc
			b.extent(0, x)
			b.extent(4096, plain(dataStart, 65536, 4096, 4096))
			x.Offset = 8192
			b.extent(8192, x)
		}, cat(z[:4096], a[4096:8192], z[:4096])},
		{"inline shorter than the file", 3000, 0, func(b *builder) {
			b.extent(0, ondisk.FileExtent{Type: ondisk.ExtentInline, Inline: a[:1000]})
		}, cat(a[:1000], z[:2000])},
		{"inline longer than the file", 500, 0, func(b *builder) {
			b.extent(0, ondisk.FileExtent{Type: ondisk.ExtentInline, Inline: a[:1000]})
		}, a[:500]},
		{"inline, then regular", 8192, 0, func(b *builder) {
			b.data(dataStart, a, true)
			b.extent(0, ondisk.FileExtent{Type: ondisk.ExtentInline, Inline: a[:1000]})
			b.extent(4096, plain(dataStart, 65536, 4096, 4096))
		}, cat(a[:1000], z[:3096], a[4096:8192])},
		{"extents behind the end", 5000, 0, func(b *builder) {
			b.data(dataStart, a, true)
			b.extent(0, plain(dataStart, 65536, 0, 65536))
			x := plain(dataStart, 65536, 0, 65536)
			x.Type = ondisk.ExtentPrealloc
			b.extent(1<<20, x)
		}, a[:5000]},
		{"ram_bytes of a plain extent is anything", 4096, 0, func(b *builder) {
			b.data(dataStart, a, true)
			x := plain(dataStart, 4096, 0, 4096)
			x.RAMBytes = 12345
			b.extent(0, x)
		}, a[:4096]},
		{"checksums in items that start before and end inside", 65536, 0, func(b *builder) {
			b.fan = 2
			b.data(dataStart-8192, cat(z[:8192], a[:4096]), true)
			b.data(dataStart+4096, a[4096:12288], true)
			for off := ondisk.Logical(12288); off < 65536; off += 4096 {
				b.data(dataStart+off, a[off:off+4096], true)
			}
			b.extent(0, plain(dataStart, 65536, 0, 65536))
		}, a},
		{"no checksums, and NODATASUM says so", 65536, ondisk.InodeNoDataSum, func(b *builder) {
			b.data(dataStart, a, false)
			b.extent(0, plain(dataStart, 65536, 0, 65536))
		}, a},
		{"checksums of old data under NODATASUM", 4096, ondisk.InodeNoDataSum, func(b *builder) {
			b.data(dataStart, z[:4096], true)
			b.data(dataStart, a[:4096], false)
			b.extent(0, plain(dataStart, 4096, 0, 4096))
		}, a[:4096]},
		{"many small extents over many leaves", 64 << 10, 0, func(b *builder) {
			b.fan = 3
			b.data(dataStart, a, true)
			for off := uint64(0); off < 64<<10; off += 4096 {
				b.extent(off, plain(dataStart, 65536, 61440-off, 4096))
			}
		}, reversed(a)},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBuilder(t)
			b.size(c.size, c.flags)
			c.make(b)
			f := b.file()
			got := make([]byte, c.size)
			if _, err := f.ReadAt(t.Context(), got, 0); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, c.want) {
				t.Error("read whole: wrong bytes")
			}
			for off := uint64(0); off < c.size; off += 1237 {
				p := make([]byte, min(c.size-off, 5000))
				if _, err := f.ReadAt(t.Context(), p, off); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(p, c.want[off:off+uint64(len(p))]) {
					t.Errorf("offset %d: wrong bytes", off)
				}
			}
		})
	}
}

// reversed gives the sectors of p in reverse order.
func reversed(p []byte) []byte {
	var out []byte
	for off := len(p) - 4096; off >= 0; off -= 4096 {
		out = append(out, p[off:off+4096]...)
	}
	return out
}

// TestRefusedData holds that what can't be read rightly is an error of its kind, never other bytes.
func TestRefusedData(t *testing.T) {
	a := pattern(64<<10, 2)
	for _, c := range []struct {
		name string
		make func(b *builder)
		kind error
		word string
	}{
		{"missing checksums", func(b *builder) {
			b.data(dataStart, a, false)
			b.extent(0, plain(dataStart, 65536, 0, 65536))
		}, volume.ErrNoChecksum, "checksum is missing"},
		{"a missing checksum in the middle", func(b *builder) {
			b.data(dataStart, a[:8192], true)
			b.data(dataStart+8192, a[8192:12288], false)
			b.data(dataStart+12288, a[12288:], true)
			b.extent(0, plain(dataStart, 65536, 0, 65536))
		}, volume.ErrNoChecksum, "offset 8192 length 4096"},
		{"a wrong checksum", func(b *builder) {
			b.data(dataStart, a, true)
			b.disk[dataStart+20480] ^= 1
			b.extent(0, plain(dataStart, 65536, 0, 65536))
		}, ondisk.ErrChecksum, "offset 20480 length 4096"},
		{"no chunk at the address", func(b *builder) { b.extent(0, plain(1<<40, 65536, 0, 65536)) }, volume.ErrUnmapped, "offset 0"},
		{"overlapping extents in two leaves", func(b *builder) {
			b.fan = 1
			b.data(dataStart, a, true)
			b.extent(0, plain(dataStart, 65536, 0, 8192))
			b.extent(4096, plain(dataStart, 65536, 0, 8192))
		}, ondisk.ErrCorrupt, "overlaps"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBuilder(t)
			c.make(b)
			f := b.file()
			_, err := f.ReadAt(t.Context(), make([]byte, 65536), 0)
			if strings.HasPrefix(c.name, "missing") && !errors.Is(err, volume.ErrNoChecksum) {
				t.Errorf("got %v", err)
			}
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.word) {
				t.Errorf("got %v, want kind %v and %q", err, c.kind, c.word)
			}
		})
	}
}

// TestTreeErrorIsNoHole ruins the leaf that holds a file's extents: the read fails, and gives no zeroes.
func TestTreeErrorIsNoHole(t *testing.T) {
	b := newBuilder(t)
	b.fan = 1
	b.data(dataStart, pattern(64<<10, 3), true)
	b.extent(0, plain(dataStart, 65536, 0, 4096))
	b.extent(4096, plain(dataStart, 65536, 4096, 61440))
	f := b.file()
	for at := int(chunkStart); at < int(b.next); at += 4096 {
		if blk := ondisk.Block(b.disk[at : at+4096]); blk.Level() == 0 && blk.Len() == 1 && blk.Key(0) == (ondisk.Key{ObjectID: fileIno, Type: ondisk.TypeExtentData, Offset: 4096}) {
			b.disk[at+4000] ^= 1
		}
	}
	if _, err := f.ReadAt(t.Context(), make([]byte, 4096), 0); err != nil {
		t.Errorf("in front of the ruined leaf: %v", err)
	}
	for _, off := range []uint64{4096, 60000, 2000} {
		n, err := f.ReadAt(t.Context(), make([]byte, 4096), off)
		if !errors.Is(err, ondisk.ErrChecksum) || n != 0 {
			t.Errorf("offset %d: %d bytes and %v, want ErrChecksum", off, n, err)
		}
	}
}

// TestNames refuses names that no path could hold, and lists the others.
func TestNames(t *testing.T) {
	to := ondisk.Key{ObjectID: fileIno, Type: ondisk.TypeInodeItem}
	for _, name := range []string{"..", "a/b", "nul\x00", "."} {
		b := newBuilder(t)
		b.put(ondisk.TreeFS, 256, ondisk.TypeDirIndex, 1000, ondisktest.DirEntries(ondisk.DirEntry{Location: to, Type: 1, Name: []byte(name)}))
		s, err := b.open().SubvolumeByID(t.Context(), ondisk.TreeFS)
		if err != nil {
			t.Fatal(err)
		}
		root, err := s.Root(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var seen []string
		err = root.ReadDir(t.Context(), func(e Entry) error { seen = append(seen, e.Name); return nil })
		if !errors.Is(err, ondisk.ErrCorrupt) || len(seen) != 1 || seen[0] != "file" {
			t.Errorf("name %q: listed %q, %v; want it refused and the others listed", name, seen, err)
		}
	}
}

// TestCrossing enters a subvolume only where its ROOT_REF says that it lies.
func TestCrossing(t *testing.T) {
	for _, c := range []struct {
		name string
		ref  *ondisk.RootRef
		want uint64 // inode that the name leads to
	}{
		{"it lies here", &ondisk.RootRef{DirID: 256, Name: []byte("sub")}, 256},
		{"no reference", nil, emptyInode},
		{"another directory", &ondisk.RootRef{DirID: 258, Name: []byte("sub")}, emptyInode},
		{"another name", &ondisk.RootRef{DirID: 256, Name: []byte("bus")}, emptyInode},
	} {
		b := newBuilder(t)
		b.subvolume(256)
		b.entry(ondisk.TreeFS, 256, "sub", ondisk.Key{ObjectID: 256, Type: ondisk.TypeRootItem}, ondisk.FileTypeDir)
		if c.ref != nil {
			b.put(ondisk.TreeRoot, ondisk.TreeFS, ondisk.TypeRootRef, 256, ondisktest.RootRef(*c.ref))
		}
		s, err := b.open().SubvolumeByID(t.Context(), ondisk.TreeFS)
		if err != nil {
			t.Fatal(err)
		}
		n, err := s.Resolve(t.Context(), "/sub/..//sub/.")
		if err != nil || n.Inode() != c.want || !n.IsDir() {
			t.Errorf("%s: got %+v %v, want directory inode %d", c.name, n, err, c.want)
			continue
		}
		if err := n.ReadDir(t.Context(), func(e Entry) error { return errors.New(e.Name) }); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if _, err := s.Resolve(t.Context(), "/sub/x"); !errors.Is(err, ErrNotExist) {
			t.Errorf("%s: got %v, want ErrNotExist", c.name, err)
		}
	}
}

// TestRootItems takes the item of the highest offset, and hides what was deleted.
func TestRootItems(t *testing.T) {
	b := newBuilder(t)
	b.subvolume(256)
	at, level := b.tree(256)
	b.put(ondisk.TreeRoot, 256, ondisk.TypeRootItem, 0, b.rootItem(1<<30, 0, 1, 0)) // an old one, that leads nowhere
	b.put(ondisk.TreeRoot, 256, ondisk.TypeRootItem, 6, b.rootItem(at, level, 1, 1))
	b.put(ondisk.TreeRoot, 257, ondisk.TypeRootItem, 0, b.rootItem(at, level, 0, 0))
	b.put(ondisk.TreeRoot, 258, ondisk.TypeRootItem, 0, b.rootItem(at, level, 1, 1<<48))
	b.put(ondisk.TreeRoot, 256, ondisk.TypeRootBackref, ondisk.TreeFS, ondisktest.RootRef(ondisk.RootRef{DirID: 256, Name: []byte("snap")}))
	f := b.open()
	subs, err := f.Subvolumes(t.Context())
	if err != nil || len(subs) != 2 || subs[1].ID != 256 || subs[1].Path != "snap" || !subs[1].ReadOnly || subs[1].Parent != ondisk.TreeFS {
		t.Errorf("got %+v %v, want the top level and 256", subs, err)
	}
	for _, id := range []uint64{257, 258} {
		if _, err := f.SubvolumeByID(t.Context(), id); !errors.Is(err, ErrNotExist) {
			t.Errorf("deleted %d: got %v, want ErrNotExist", id, err)
		}
	}
}

// TestBackrefCircles ends climbs through references that lead back to themselves.
func TestBackrefCircles(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(b *builder)
	}{
		{"subvolumes in each other", func(b *builder) {
			b.subvolume(257)
			b.put(ondisk.TreeRoot, 256, ondisk.TypeRootBackref, 257, ondisktest.RootRef(ondisk.RootRef{DirID: 256, Name: []byte("a")}))
			b.put(ondisk.TreeRoot, 257, ondisk.TypeRootBackref, 256, ondisktest.RootRef(ondisk.RootRef{DirID: 256, Name: []byte("b")}))
		}},
		{"directories in each other", func(b *builder) {
			b.put(ondisk.TreeRoot, 256, ondisk.TypeRootBackref, ondisk.TreeFS, ondisktest.RootRef(ondisk.RootRef{DirID: 260, Name: []byte("a")}))
			b.put(ondisk.TreeFS, 260, ondisk.TypeInodeRef, 261, ondisktest.InodeRefs(ondisk.InodeRef{Index: 2, Name: []byte("x")}))
			b.put(ondisk.TreeFS, 261, ondisk.TypeInodeRef, 260, ondisktest.InodeRefs(ondisk.InodeRef{Index: 2, Name: []byte("y")}))
		}},
	} {
		b := newBuilder(t)
		b.subvolume(256)
		c.make(b)
		if _, err := b.open().Subvolumes(t.Context()); !errors.Is(err, ondisk.ErrCorrupt) {
			t.Errorf("%s: got %v, want ErrCorrupt", c.name, err)
		}
	}
}

// TestSymlinkTargets takes the inode's size of bytes: some mkfs stored a NUL behind the target.
func TestSymlinkTargets(t *testing.T) {
	for _, c := range []struct {
		stored string
		size   uint64
		want   string
		fails  bool
	}{{"file", 4, "file", false}, {"file\x00", 4, "file", false}, {"fi\x00e", 4, "", true}, {"file", 5, "", true}, {"file", 0, "", true}, {"file", 1 << 40, "", true}} {
		b := newBuilder(t)
		b.put(ondisk.TreeFS, 258, ondisk.TypeInodeItem, 0, inode(modeSymlink|0o777, c.size, 0))
		b.put(ondisk.TreeFS, 258, ondisk.TypeExtentData, 0, ondisktest.FileExtent(ondisk.FileExtent{Generation: 7, Type: ondisk.ExtentInline, RAMBytes: uint64(len(c.stored)), Inline: []byte(c.stored)}))
		b.entry(ondisk.TreeFS, 256, "link", ondisk.Key{ObjectID: 258, Type: ondisk.TypeInodeItem}, ondisk.FileTypeSymlink)
		s, err := b.open().SubvolumeByID(t.Context(), ondisk.TreeFS)
		if err != nil {
			t.Fatal(err)
		}
		n, err := s.ResolveLink(t.Context(), "/link")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := n.Readlink(t.Context()); got != c.want || (err != nil) != c.fails {
			t.Errorf("%q of size %d: got %q %v, want %q", c.stored, c.size, got, err, c.want)
		}
		if n, err := s.Resolve(t.Context(), "/link"); !c.fails && (err != nil || n.Inode() != fileIno) {
			t.Errorf("%q: followed to %v %v, want the file", c.stored, n, err)
		}
	}
}

// TestHostileSizes refuses sizes that no file has, and reads at the far end of the largest that one may.
func TestHostileSizes(t *testing.T) {
	b := newBuilder(t)
	b.size(1<<63+5, 0)
	s, err := b.open().SubvolumeByID(t.Context(), ondisk.TreeFS)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.OpenFile(t.Context(), "/file"); !errors.Is(err, ondisk.ErrCorrupt) {
		t.Errorf("got %v, want ErrCorrupt", err)
	}
	b = newBuilder(t)
	const largest = 1<<63 - 1 - 64<<10
	b.size(largest, 0)
	p := bytes.Repeat([]byte{1}, 5000)
	if n, err := b.file().ReadAt(context.Background(), p, largest-4000); n != 4000 || err != io.EOF || len(bytes.Trim(p[:4000], "\x00")) > 0 {
		t.Errorf("got %d %v, want 4000 zeroes and EOF", n, err)
	}
}

// TestMissingSeedIsNamed, with the filesystem that it was.
func TestMissingSeedIsNamed(t *testing.T) {
	b := newBuilder(t)
	seed := b.sb.Dev
	seed.DevID, seed.FSID, seed.UUID = 2, ondisk.UUID{9}, ondisk.UUID{8}
	b.put(ondisk.TreeChunk, 1, ondisk.TypeDevItem, 2, ondisktest.DevItem(seed))
	b.build()
	want := "devid 2 (uuid " + seed.UUID.String() + ", a seed device of filesystem " + seed.FSID.String() + ") is missing"
	if _, err := openMem(t, b.disk); !errors.Is(err, volume.ErrMissing) || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}
