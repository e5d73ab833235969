package fsread

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/btrexport/btrexport/devio/faultdev"
	"github.com/btrexport/btrexport/fsread/btree"
	"github.com/btrexport/btrexport/fsread/csum"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/ondisk/ondisktest"
	"github.com/btrexport/btrexport/fsread/volume"
)

// item is one of a log.
func item(objectID uint64, typ uint8, offset uint64, data []byte) ondisktest.Item {
	return ondisktest.Item{Key: ondisk.Key{ObjectID: objectID, Type: typ, Offset: offset}, Data: data}
}

// log writes a log for each subvolume, of one leaf, and the tree of their roots.
func (b *builder) log(logs map[uint64][]ondisktest.Item) {
	leaf := func(items []ondisktest.Item) ondisk.Logical {
		slices.SortFunc(items, func(x, y ondisktest.Item) int { return x.Key.Compare(y.Key) })
		h := b.header(ondisk.TreeLog, 0)
		h.Generation++
		return b.block(0, ondisktest.Leaf(h, items...))
	}
	var roots []ondisktest.Item
	for id, items := range logs {
		ri := ondisktest.RootItem(ondisk.RootItem{Generation: b.sb.Generation + 1, Bytenr: leaf(items)})
		roots = append(roots, item(ondisk.TreeLog, ondisk.TypeRootItem, id, ri))
	}
	b.sb.LogRoot = leaf(roots)
}

// openWith opens the filesystem with options, for the whole test.
func (b *builder) openWith(o Options) (*FS, error) {
	b.build()
	dev := faultdev.Mem("disk", b.disk)
	f, err := Open(b.t.Context(), []volume.Device{dev}, o)
	if err != nil {
		dev.Close()
		return nil, err
	}
	b.t.Cleanup(func() { f.Close() })
	return f, nil
}

// readFile reads /file of a subvolume.
func readFile(ctx context.Context, f *FS, id uint64) ([]byte, error) {
	s, err := f.SubvolumeByID(ctx, id)
	if err != nil {
		return nil, err
	}
	file, err := s.OpenFile(ctx, "/file")
	if err != nil {
		return nil, err
	}
	p := make([]byte, file.Size())
	_, err = file.ReadAt(ctx, p, 0)
	return p, err
}

// crashed is a filesystem with /file in the top level and in subvolume 256, whose logs lengthen and
// overwrite the first, make /new beside it, and do not fit the second.
func crashed(t *testing.T) (b *builder, before, after []byte) {
	b = newBuilder(t)
	old, fresh := pattern(8192, 1), pattern(8192, 9)
	b.size(8192, 0)
	b.data(dataStart, old, true)
	b.extent(0, plain(dataStart, 8192, 0, 8192))
	b.subvolume(256)
	b.put(ondisk.TreeRoot, 256, ondisk.TypeRootBackref, ondisk.TreeFS, ondisktest.RootRef(ondisk.RootRef{DirID: 256, Name: []byte("sub")}))
	b.put(ondisk.TreeRoot, ondisk.TreeFS, ondisk.TypeRootRef, 256, ondisktest.RootRef(ondisk.RootRef{DirID: 256, Name: []byte("sub")}))
	b.entry(ondisk.TreeFS, 256, "sub", ondisk.Key{ObjectID: 256, Type: ondisk.TypeRootItem}, ondisk.FileTypeDir)
	at := dataStart + 32<<10
	b.data(at, fresh, false)
	x := plain(at, 8192, 0, 8192)
	x.Generation = b.sb.Generation + 1
	b.log(map[uint64][]ondisktest.Item{
		ondisk.TreeFS: {
			item(fileIno, ondisk.TypeInodeItem, 0, inode(modeRegular|0o644, 12000, 0)),
			item(fileIno, ondisk.TypeExtentData, 4096, ondisktest.FileExtent(x)),
			item(258, ondisk.TypeInodeItem, 0, inode(modeRegular|0o600, 0, 0)),
			item(258, ondisk.TypeInodeRef, 256, ondisktest.InodeRefs(ondisk.InodeRef{Index: 99, Name: []byte("new")})),
			item(ondisk.CsumObjectID, ondisk.TypeExtentCsum, uint64(at), ondisktest.Csums(fresh, 4096, csum.CRC32C)),
		},
		256: {item(300, ondisk.TypeInodeRef, 256, ondisktest.InodeRefs(ondisk.InodeRef{Index: 5, Name: []byte("x")}))},
		400: {item(300, ondisk.TypeInodeItem, 0, inode(modeRegular, 0, 0))}, // of a subvolume that was deleted
	})
	return b, old, cat(old[:4096], fresh)[:12000]
}

// TestLog shows what the kernel would show after its replay, and with IgnoreLog the last commit.
func TestLog(t *testing.T) {
	for _, c := range []struct {
		name    string
		options Options
		ignored bool
	}{{"replayed", Options{}, false}, {"ignored", Options{IgnoreLog: true}, true}, {"mounted", Options{Changing: true}, true}} {
		b, want, after := crashed(t)
		kinds := []error{nil, nil}
		if !c.ignored {
			want, kinds = after, []error{nil, ondisk.ErrCorrupt}
		}
		f, err := b.openWith(c.options)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := readFile(t.Context(), f, ondisk.TreeFS); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v, want %d", c.name, len(got), err, len(want))
		}
		for i, id := range []uint64{ondisk.TreeFS, 256} {
			s, err := f.SubvolumeByID(t.Context(), id)
			var le *LogError
			if !errors.Is(err, kinds[i]) || (err != nil && (!errors.As(err, &le) || le.Subvolume != id)) {
				t.Errorf("%s: subvolume %d: %v, want %v", c.name, id, err, kinds[i])
			}
			if id == ondisk.TreeFS {
				if _, err := s.Resolve(t.Context(), "/new"); (err == nil) == c.ignored {
					t.Errorf("%s: /new: %v", c.name, err)
				}
				if _, err := s.Resolve(t.Context(), "/sub"); !errors.Is(err, kinds[1]) {
					t.Errorf("%s: the other subvolume by its path: %v", c.name, err)
				}
			}
		}
		if subs, err := f.Subvolumes(t.Context()); err != nil || len(subs) != 2 || subs[1].Path != "sub" {
			t.Errorf("%s: subvolumes %+v, %v, want both", c.name, subs, err)
		}
		i := f.Log()
		if !i.Present || i.Ignored != c.ignored {
			t.Errorf("%s: got %+v", c.name, i)
		}
		if !c.ignored && (!slices.Equal(i.Subvolumes, []uint64{ondisk.TreeFS, 256}) || len(i.Refused) != 1 || !strings.Contains(i.Refused[256].Error(), "inode 300 does not exist")) {
			t.Errorf("%s: got %+v", c.name, i)
		}
	}
}

// TestNoLog has nothing to tell.
func TestNoLog(t *testing.T) {
	if i := newBuilder(t).open().Log(); i.Present || i.Ignored || len(i.Subvolumes) != 0 || len(i.Refused) != 0 {
		t.Errorf("got %+v", i)
	}
}

// TestLogUnreadable refuses a filesystem whose tree of logs no copy can serve: which subvolumes have one
// is not known. Without the log it opens.
func TestLogUnreadable(t *testing.T) {
	b, want, _ := crashed(t)
	b.disk[b.sb.LogRoot+2000] ^= 1
	_, err := b.openWith(Options{})
	var be *btree.BlockError
	if !errors.As(err, &be) || !errors.Is(err, ondisk.ErrChecksum) || !strings.Contains(err.Error(), "log tree") {
		t.Errorf("got %v, want a BlockError of the log tree", err)
	}
	f, err := b.openWith(Options{IgnoreLog: true})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := readFile(t.Context(), f, ondisk.TreeFS); err != nil || !bytes.Equal(got, want) {
		t.Errorf("without the log: %v", err)
	}
}

// TestLogDamaged refuses the one subvolume whose log can't be read.
func TestLogDamaged(t *testing.T) {
	b, _, _ := crashed(t)
	for at := ondisk.Logical(chunkStart); at < b.next; at += 4096 {
		if blk := ondisk.Block(b.disk[at : at+4096]); blk.Owner() == ondisk.TreeLog && blk.Key(0).ObjectID == fileIno {
			b.disk[at+4000] ^= 1
		}
	}
	f, err := b.openWith(Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.SubvolumeByID(t.Context(), ondisk.TreeFS); !errors.Is(err, ondisk.ErrChecksum) {
		t.Errorf("got %v, want ErrChecksum", err)
	}
}

// TestLogCancelled gives up with the context's cause rather than refuse a subvolume.
func TestLogCancelled(t *testing.T) {
	b, _, _ := crashed(t)
	f, err := b.openWith(Options{})
	if err != nil {
		t.Fatal(err)
	}
	gone := errors.New("gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	if err := f.openLogs(ctx); !errors.Is(err, gone) || len(f.Log().Refused) != 0 {
		t.Errorf("got %v and %v, want the cause", err, f.Log().Refused)
	}
}
