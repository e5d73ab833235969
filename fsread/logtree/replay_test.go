package logtree

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/btrexport/btrexport/fsread/btree"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/ondisk/ondisktest"
)

// base is a top directory with two files, a and b.
func base() items {
	return make(items).dir(top, 4).ref(top, 0, "..", top).file(257, 0).file(258, 0).name(top, 2, "a", 257).name(top, 3, "b", 258)
}

const (
	aLine = "257: 100644 size 0 links 1"
	bLine = "258: 100644 size 0 links 1"
)

// lines is a sorted list.
func lines(s ...string) []string { slices.Sort(s); return s }

// TestReplay holds what each stage does against what the kernel's does.
func TestReplay(t *testing.T) {
	log := func() items { return make(items) }
	for _, c := range []struct {
		name      string
		base, log items
		want      []string
	}{
		{"an empty log", base(), log(), lines("256: 40755 size 4 links 1", aLine, bLine, "256/a=257", "256/b=258")},
		{"a new file", base(), log().file(259, 10).ref(top, 4, "c", 259).inline(259, "0123456789"),
			lines("256: 40755 size 6 links 1", aLine, bLine, "259: 100644 size 10 links 1", "259: inline \"0123456789\"", "256/a=257", "256/b=258", "256/c=259")},
		{"a new file in a new directory", base(), log().dir(259, 99).ref(top, 4, "dir", 259).file(260, 0).ref(259, 2, "x", 260),
			lines("256: 40755 size 10 links 1", aLine, bLine, "259: 40755 size 2 links 1", "260: 100644 size 0 links 1", "256/a=257", "256/b=258", "256/dir=259", "259/x=260")},
		{"a directory that lost a name", base(), log().dir(top, 0).dirLog(top, 2, 2).dirLog(top, 3, 3).index(top, 3, "b", 258),
			lines("256: 40755 size 2 links 1", "257: 100644 size 0 links 0", bLine, "256/b=258")},
		{"a name outside of the logged range stays", base(), log().dir(top, 0).dirLog(top, 3, ^uint64(0)),
			lines("256: 40755 size 2 links 1", aLine, "258: 100644 size 0 links 0", "256/a=257")},
		{"a directory whose name is gone loses all of its own", base().dir(259, 2).name(top, 4, "dir", 259).file(260, 0).name(259, 2, "x", 260),
			log().dir(top, 0).dirLog(top, 4, 4),
			lines("256: 40755 size 0 links 1", aLine, bLine, "256/a=257", "256/b=258", "259: 40755 size 0 links 0", "260: 100644 size 0 links 0")},
		{"a renamed file", base(), log().file(257, 0).ref(top, 4, "c", 257),
			lines("256: 40755 size 4 links 1", aLine, bLine, "256/b=258", "256/c=257")},
		{"two names exchanged: an old one is taken away only while it leads to the inode", base(),
			log().file(257, 0).ref(top, 3, "b", 257).file(258, 0).ref(top, 2, "a", 258),
			lines("256: 40755 size 4 links 1", aLine, bLine, "256/a=258", "256/b=257")},
		{"names that the second stage has moved are seen where it left them", base(),
			log().dir(top, 0).dirLog(top, 2, 10).index(top, 4, "a", 258).index(top, 5, "c", 257).file(257, 0).file(258, 0).ref(top, 5, "c", 257),
			lines("256: 40755 size 4 links 1", aLine, bLine, "256/a=258", "256/c=257")},
		{"a file takes the place of another", base(), log().file(257, 0).ref(top, 3, "b", 257),
			lines("256: 40755 size 2 links 1", aLine, "258: 100644 size 0 links 0", "256/b=257")},
		{"a new name of a file that the log has not", base(), log().dir(top, 0).dirLog(top, 4, 4).index(top, 4, "c", 258),
			lines("256: 40755 size 6 links 1", aLine, "258: 100644 size 0 links 2", "256/a=257", "256/b=258", "256/c=258")},
		{"a name of an inode that nobody has", base(), log().dir(top, 0).index(top, 4, "c", 300),
			lines("256: 40755 size 4 links 1", aLine, bLine, "256/a=257", "256/b=258")},
		{"a name at another index stays at its own", base(), log().dir(top, 0).index(top, 9, "a", 257),
			lines("256: 40755 size 4 links 1", aLine, bLine, "256/a=257", "256/b=258")},
		{"a name made again, at another index", base(), log().file(257, 0).ref(top, 9, "a", 257),
			lines("256: 40755 size 4 links 1", aLine, bLine, "256/a=257", "256/b=258")},
		{"one name of two is gone", base().name(top, 4, "c", 257), log().file(257, 0).ref(top, 2, "a", 257),
			lines("256: 40755 size 2 links 1", aLine, bLine, "256/a=257", "256/b=258")},
		{"a directory in the place of another, which loses its own", base().dir(259, 2).name(top, 4, "dir", 259).file(260, 0).name(259, 2, "x", 260),
			log().dir(261, 0).ref(top, 4, "dir", 261),
			lines("256: 40755 size 6 links 1", aLine, bLine, "256/a=257", "256/b=258", "256/dir=261", "259: 40755 size 0 links 0", "260: 100644 size 0 links 0", "261: 40755 size 0 links 1")},
		{"a second name, one reference in an item of its own", base(), log().file(257, 0).ref(top, 2, "a", 257).extref(top, 4, "c", 257),
			lines("256: 40755 size 6 links 1", "257: 100644 size 0 links 2", bLine, "256/a=257", "256/b=258", "256/c=257")},
		{"a name less in an item of its own", base().index(top, 4, "c", 257).extref(top, 4, "c", 257).put(top, ondisk.TypeDirItem, ondisk.NameHash([]byte("c")), entry("c", 257)),
			log().file(257, 0).ref(top, 2, "a", 257).extref(top, 5, "d", 257),
			lines("256: 40755 size 6 links 1", "257: 100644 size 0 links 3", bLine, "256/a=257", "256/b=258", "256/c=257", "256/d=257")},
		{"a file in a directory that was not logged", base(), log().file(259, 0).ref(400, 2, "x", 259),
			lines("256: 40755 size 4 links 1", aLine, bLine, "259: 100644 size 0 links 0", "256/a=257", "256/b=258")},
		{"an inode without links is passed over", base(), log().inode(257, modeRegular, 99, 0, gen).extent(257, 0, 1<<20, sector, 0, sector).ref(top, 9, "z", 257),
			lines("256: 40755 size 4 links 1", aLine, bLine, "256/a=257", "256/b=258")},
		{"existence alone leaves an inode as it is", base().extent(257, 0, 1<<20, sector, 0, sector).file(259, 5000).extent(259, 0, 1<<21, 8192, 0, 8192).name(top, 4, "c", 259),
			log().inode(257, modeRegular|0o600, 0, 1, 0).inode(259, modeRegular|0o600, 4096, 1, 0),
			lines("256: 40755 size 4 links 1", aLine, bLine, "256/a=257", "256/b=258", "256/c=259", "259: 100644 size 4096 links 1", "259: [0,+1) at 2097152+0")},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := newDisk(t).input(c.base, c.log)
			res, err := Replay(t.Context(), in)
			if err != nil {
				t.Fatal(err)
			}
			if got := view(t, in.Tree.With(res.Overlay)); !slices.Equal(got, lines(c.want...)) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

// TestExtents puts extents of the log over those of the file, in every position to each other.
func TestExtents(t *testing.T) {
	const s = sector
	for _, c := range []struct {
		name    string
		file    func(m items) items
		log     func(m items) items
		noHoles bool
		want    []string
	}{
		{"over the middle of one", func(m items) items { return m.extent(257, 0, 1<<20, 10*s, 0, 10*s) },
			func(m items) items { return m.extent(257, 3*s, 2<<20, 2*s, 0, 2*s) }, true,
			[]string{"257: [0,+3) at 1048576+0", "257: [3,+2) at 2097152+0", "257: [5,+5) at 1048576+5"}},
		{"over the end of one, all of the next and the start of a third", func(m items) items {
			return m.extent(257, 0, 1<<20, 4*s, 0, 4*s).extent(257, 4*s, 3<<20, 2*s, 0, 2*s).extent(257, 6*s, 4<<20, 9*s, 1*s, 4*s)
		}, func(m items) items { return m.extent(257, 2*s, 2<<20, 5*s, 0, 5*s) }, true,
			[]string{"257: [0,+2) at 1048576+0", "257: [2,+5) at 2097152+0", "257: [7,+3) at 4194304+2"}},
		{"the same again", func(m items) items { return m.extent(257, 0, 1<<20, 4*s, 0, 4*s) },
			func(m items) items { return m.extent(257, 0, 1<<20, 4*s, 0, 4*s) }, true, []string{"257: [0,+4) at 1048576+0"}},
		{"over bytes held inline", func(m items) items { return m.inline(257, "abc") },
			func(m items) items { return m.extent(257, 0, 1<<20, s, 0, s) }, true, []string{"257: [0,+1) at 1048576+0"}},
		{"inline over an extent", func(m items) items { return m.extent(257, 0, 1<<20, 3*s, 0, 3*s) },
			func(m items) items { return m.inline(257, "abc") }, true, []string{"257: [1,+2) at 1048576+1", "257: inline \"abc\""}},
		{"a hole, without items for holes", func(m items) items { return m.extent(257, 0, 1<<20, 4*s, 0, 4*s) },
			func(m items) items { return m.extent(257, s, 0, 0, 0, 2*s) }, true, []string{"257: [0,+1) at 1048576+0", "257: [3,+1) at 1048576+3"}},
		{"a hole, with them", func(m items) items { return m.extent(257, 0, 1<<20, 4*s, 0, 4*s) },
			func(m items) items { return m.extent(257, s, 0, 0, 0, 2*s) }, false,
			[]string{"257: [0,+1) at 1048576+0", "257: [1,+2) at 0+0", "257: [3,+1) at 1048576+3"}},
		{"what reaches over the new end is cut, what lies behind it goes", func(m items) items {
			return m.extent(257, 0, 1<<20, 20*s, 0, 20*s).extent(257, 1<<30, 4<<20, s, 0, s)
		}, func(m items) items { return m }, true, []string{"257: [0,+12) at 1048576+0"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			size := uint64(12*s - 100)
			d := newDisk(t)
			b := make(items).dir(top, 2).name(top, 2, "a", 257).file(257, 1<<40)
			in := d.input(c.file(b), c.log(make(items).file(257, size)))
			in.NoHoles = c.noHoles
			res, err := Replay(t.Context(), in)
			if err != nil {
				t.Fatal(err)
			}
			got := slices.DeleteFunc(view(t, in.Tree.With(res.Overlay)), func(s string) bool { return !strings.HasPrefix(s, "257: [") && !strings.Contains(s, "inline") })
			if !slices.Equal(got, lines(c.want...)) {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
}

// TestInconsistent refuses logs that do not fit the subvolume, each with its reason.
func TestInconsistent(t *testing.T) {
	broken := base()
	delete(broken, refKey(257, top))
	noItem := base()
	delete(noItem, dirItemKey(top, []byte("a")))
	noIndex := base()
	delete(noIndex, dirIndexKey(top, 2))
	elsewhere := base()
	elsewhere[dirItemKey(top, []byte("a"))] = entry("a", 258)
	log := func() items { return make(items) }
	for _, c := range []struct {
		name      string
		base, log items
		word      string
	}{
		{"a name that its inode does not know", broken, log().dir(top, 0).dirLog(top, 2, 2), "does not know of its name"},
		{"a name that is in the index alone", noItem, log().dir(top, 0).dirLog(top, 2, 2), "is not in directory"},
		{"a name that is not in the index", noIndex, log().file(257, 0).ref(top, 4, "c", 257), "is not at index"},
		{"a name that leads elsewhere", elsewhere, log().dir(top, 0).dirLog(top, 2, 2), "leads to"},
		{"an index that another name has", base(), log().file(259, 0).ref(top, 3, "c", 259), "is another one's"},
		{"names of an inode that is not there", base(), log().ref(top, 9, "c", 259), "does not exist"},
		{"extents of an inode that is not there", base(), log().extent(259, 0, 1<<20, sector, 0, sector), "does not exist"},
		{"names in a file", base(), log().file(259, 0).ref(257, 2, "c", 259), "is no directory"},
		{"a range of another size", base(), log().dir(top, 0).put(top, ondisk.TypeDirLogIndex, 2, []byte{1}), "has 1 bytes"},
		{"an empty name", base(), log().file(257, 0).ref(top, 2, "", 257), "name of 0 bytes"},
		{"an inode at an offset", base(), log().put(257, ondisk.TypeInodeItem, 5, ondisktest.InodeItem(ondisk.InodeItem{NLink: 1})), "an inode at 5"},
		{"a size that no file has", base(), log().file(257, 1<<63), "has a size of"},
		{"inline bytes to be cut", base().put(257, ondisk.TypeExtentData, 0, ondisktest.FileExtent(ondisk.FileExtent{Compression: 1, RAMBytes: 8192, Inline: []byte("x")})),
			log().file(257, 8192).extent(257, 4096, 1<<20, sector, 0, sector), "inline bytes"},
		{"a subvolume to be removed", base().put(top, ondisk.TypeDirIndex, 4, ondisktest.DirEntries(ondisk.DirEntry{
			Location: ondisk.Key{ObjectID: 400, Type: ondisk.TypeRootItem}, Type: ondisk.FileTypeDir, Name: []byte("sub")})),
			log().dir(top, 0).dirLog(top, 4, 4), "is a subvolume's"},
	} {
		_, err := Replay(t.Context(), newDisk(t).input(c.base, c.log))
		if !errors.Is(err, ondisk.ErrCorrupt) || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: got %v, want ErrCorrupt and %q", c.name, err, c.word)
		}
	}
}

// TestMaxBytes refuses logs that would take too much memory.
func TestMaxBytes(t *testing.T) {
	big := make(items).file(257, 1<<30)
	for i := range uint64(100) {
		big.extent(257, i*sector, ondisk.Logical(1<<20+i*sector), sector, 0, sector)
	}
	sums := make(items).file(257, 1<<30).extent(257, 0, 1<<20, 900*sector, 0, 900*sector).csum(1<<20, strings.Repeat("sums", 900))
	for name, log := range map[string]items{"items": big, "checksums": sums} {
		in := newDisk(t).input(base(), log)
		in.MaxBytes = 2000
		var large *btree.TooLargeError
		if _, err := Replay(t.Context(), in); !errors.As(err, &large) {
			t.Errorf("%s: got %v, want TooLargeError", name, err)
		}
	}
}

// TestCsums takes from the log the checksums of the extents that it brings, and cuts those of the tree
// that they stand over.
func TestCsums(t *testing.T) {
	const at = 1 << 20
	d := newDisk(t)
	log := make(items).file(257, 1<<30).extent(257, 0, at, 10*sector, 2*sector, 3*sector).csum(at, "aaaabbbbccccdddd").csum(at+4*sector, "eeeeffff").
		put(258, ondisk.TypeInodeItem, 0, ondisktest.InodeItem(ondisk.InodeItem{NLink: 1, Size: 1 << 20, Mode: modeRegular})).
		put(258, ondisk.TypeExtentData, 0, ondisktest.FileExtent(ondisk.FileExtent{Type: 1, Compression: 3, RAMBytes: 8 * sector, DiskBytenr: at + 6*sector, DiskNumBytes: sector, Offset: sector, NumBytes: sector})).
		csum(at+6*sector, "gggg")
	res, err := Replay(t.Context(), d.input(base(), log))
	if err != nil {
		t.Fatal(err)
	}
	tree := func(m items) btree.Tree { return d.reader.Tree(ondisk.TreeCsum, d.tree(m, ondisk.TreeCsum, gen)) }
	for _, c := range []struct{ name, tree, want string }{
		{"nothing there", "", "2:ccccdddd 4:eeee 6:gggg"},
		{"other sectors", "0:0000 9:9999", "0:0000 2:ccccdddd 4:eeee 6:gggg 9:9999"},
		{"one item over all", "0:0000111122223333444455556666777788889999", "0:00001111 2:ccccdddd 4:eeee 5:5555 6:gggg 7:777788889999"},
		{"items that overlap an end", "1:111122223333 4:44445555", "1:1111 2:ccccdddd 4:eeee 5:5555 6:gggg"},
		{"items inside", "2:2222 3:3333 4:4444 6:6666", "2:ccccdddd 4:eeee 6:gggg"},
	} {
		m := make(items)
		for _, f := range strings.Fields(c.tree) {
			m.csum(at+uint64(f[0]-'0')*sector, f[2:])
		}
		o, err := OverlayCsums(t.Context(), tree(m), sector, 4, res.Csums, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if err := tree(m).With(o).All(t.Context(), ondisk.Key{}, func(k ondisk.Key, item []byte) (bool, error) {
			got += fmt.Sprintf(" %d:%s", (k.Offset-at)/sector, item)
			return true, nil
		}); err != nil {
			t.Fatal(err)
		}
		if got != " "+c.want {
			t.Errorf("%s: got%s, want %s", c.name, got, c.want)
		}
	}
}
