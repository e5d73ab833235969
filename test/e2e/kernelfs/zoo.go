//go:build linux

package kernelfs

import (
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Zoo makes, in dir, a small file of every kind that differs on disk: tails, inline, sparse,
// preallocated, shared, partly overwritten, without checksums, links, nodes, odd names.
func (t *Tree) Zoo(dir string) {
	t.Dir(dir)
	in := func(name string) string { return dir + "/" + name }
	for _, size := range []int64{0, 1, 100, 2047, 2048, 4095, 4096, 4097, 8191, 65536, 65537, 200001} {
		t.Plain(in(fmt.Sprintf("size-%d", size)), size)
	}
	t.Sparse(in("sparse"))
	t.Prealloc(in("prealloc"))
	t.Bookends(in("bookends"))
	t.Shared(in("shared"))
	t.NoCOW(in("nocow"))
	t.WriteAt(in("nocow"), 0, 100000)
	t.Sync()
	t.WriteAt(in("nocow"), 8192, 5000)
	t.Plain(in("xattr"), 10)
	t.Xattr(in("xattr"), "user.note", []byte("kept beside the file"))
	t.Plain(in("mode"), 10)
	t.Chown(in("mode"), 1000, 1001)
	t.Chmod(in("mode"), 0o4751)
	t.Mtime(in("mode"), time.Unix(-86400, 123456789)) // before 1970
	t.Plain(in("linked"), 5000)
	t.Link(in("linked"), in("link-2"))
	t.Link(in("linked"), in("link-3"))
	t.Node(in("fifo"), unix.S_IFIFO|0o600, 0)
	t.Node(in("socket"), unix.S_IFSOCK|0o600, 0)
	t.Node(in("null"), unix.S_IFCHR|0o666, unix.Mkdev(1, 3))
	t.Node(in("block"), unix.S_IFBLK|0o600, unix.Mkdev(259, 300))
	t.Symlinks(in("symlinks"))
	t.OddNames(in("names"))
	t.Sync()
}

// Sparse makes name-head, -middle, -tail and -all with a hole there, and -mixed with several
// holes that do not end at block boundaries.
func (t *Tree) Sparse(name string) {
	t.WriteAt(name+"-head", 70000, 10000)
	t.WriteAt(name+"-middle", 0, 12288)
	t.WriteAt(name+"-middle", 1<<20, 5000)
	t.WriteAt(name+"-tail", 0, 12288)
	t.Truncate(name+"-tail", 300001)
	t.Truncate(name+"-all", 1<<20+1)
	for i := range int64(8) {
		t.WriteAt(name+"-mixed", i*30000, 9000)
	}
	t.Punch(name+"-mixed", 65000, 40000)
}

// Prealloc makes name-all (never written), -written (three pieces written), -beyond (kept beyond
// i_size) and -tail (written, then preallocated behind its end).
func (t *Tree) Prealloc(name string) {
	t.Fallocate(name+"-all", 0, 200000, false)
	t.Fallocate(name+"-written", 0, 256<<10, false)
	t.Sync()
	t.WriteAt(name+"-written", 0, 4096)
	t.WriteAt(name+"-written", 70000, 9000)
	t.WriteAt(name+"-written", 200000, 100)
	t.WriteAt(name+"-beyond", 0, 5000)
	t.Fallocate(name+"-beyond", 0, 128<<10, true)
	t.WriteAt(name+"-tail", 0, 10000)
	t.Sync()
	t.Fallocate(name+"-tail", 10000, 100000, false)
}

// Bookends makes a file of one extent of which later writes replaced parts, so that the items
// left and right of them point into its middle.
func (t *Tree) Bookends(name string) {
	t.WriteAt(name, 0, 256<<10)
	t.Sync()
	t.WriteAt(name, 40960, 8192)
	t.Sync()
	t.WriteAt(name, 100001, 50000)
	t.Sync()
	t.WriteAt(name, 45056, 4096)
}

// Shared makes name-source, name-whole (a reflink of all), name-range (parts of it in another
// order) and name-changed (a reflink then partly overwritten).
func (t *Tree) Shared(name string) {
	t.WriteAt(name+"-source", 0, 128<<10+77)
	t.Sync()
	t.Clone(name+"-source", name+"-whole")
	t.Plain(name+"-range", 20000)
	t.CloneRanges(name+"-source", name+"-range", []Range{
		{Src: 65536, Dst: 32768, Len: 32768}, {Src: 4096, Dst: 98304, Len: 8192}, {Src: 4096, Dst: 4096, Len: 4096},
	})
	t.Clone(name+"-source", name+"-changed")
	t.WriteAt(name+"-changed", 30000, 3000)
}

// Fragment makes a file of n blocks of which every one is an extent of its own, written in an
// order that seed decides.
func (t *Tree) Fragment(name string, n int, seed uint64) {
	t.Truncate(name, int64(n)*BlockSize)
	t.WriteBlocks(name, rand.New(rand.NewPCG(seed, 0)).Perm(n))
}

// FragmentShared makes a file of n extents that are reflinks of single blocks of src (of
// srcBlocks blocks), with a hole after every seventh: thousands of extents, little data.
func (t *Tree) FragmentShared(src, name string, srcBlocks, n int, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	var ranges []Range
	for i, at := 0, int64(0); i < n; i, at = i+1, at+BlockSize {
		if i%7 == 6 {
			at += BlockSize
		}
		ranges = append(ranges, Range{Src: int64(rng.IntN(srcBlocks)) * BlockSize, Dst: at, Len: BlockSize})
	}
	t.CloneRanges(src, name, ranges)
}

// Symlinks makes links of every kind in dir.
func (t *Tree) Symlinks(dir string) {
	t.Dir(dir + "/sub")
	t.Plain(dir+"/target", 3000)
	for name, target := range map[string]string{
		"relative": "target", "up": "../symlinks/target", "to-dir": "sub", "dot": ".", "dangling": "no/such",
		"loop-a": "loop-b", "loop-b": "loop-a", "self": "self", "above-root": "../../../../../../../etc/hostname",
		"long": strings.Repeat("./", 1500) + "target", "slash": "sub/", "odd": "no\xff\xfeutf8",
	} {
		t.Symlink(target, dir+"/"+name)
	}
	t.Symlink("/"+dir+"/target", dir+"/absolute")
	t.Symlink("target", dir+"/chain-0")
	for i := 1; i <= 45; i++ { // Linux follows 40
		t.Symlink(fmt.Sprintf("chain-%d", i-1), fmt.Sprintf("%s/chain-%d", dir, i))
	}
	t.Plain(dir+"/sub/file", 10)
}

// OddNames makes files whose names are hard: longest, not UTF-8, with spaces, control
// characters and colons, and pairs with equal name hashes.
func (t *Tree) OddNames(dir string) {
	t.Dir(dir)
	names := []string{
		strings.Repeat("n", 255), strings.Repeat("\xe4", 255), "not-utf8-\xff\xfe\x80", "new\nline", "tab\tquote\"'\\",
		" leading and trailing ", "-dash", "...", "~", "ünïcödé-日本", "base64:bm8=", "nfc-\u00e9", "nfc-e\u0301", "\x01\x7f", "a:b%2Fc",
	}
	for _, name := range names {
		t.Plain(dir+"/"+name, 9)
	}
	for _, name := range CollidingNames(6) {
		t.Plain(dir+"/"+name, 11)
	}
}

// CollidingNames returns pairs pairs of names, one after the other, of which each pair has one
// name hash: a DIR_ITEM holds both.
func CollidingNames(pairs int) []string {
	seen := make(map[uint32]string)
	var list []string
	for i := uint64(0); len(list) < 2*pairs; i++ {
		name := "hash-" + strconv.FormatUint(mix(i), 36)
		h := NameHash(name)
		if other, ok := seen[h]; ok {
			list = append(list, other, name)
		}
		seen[h] = name
	}
	return list
}

// NameHash is btrfs_name_hash: the crc32c register started with 0xFFFFFFFE, not inverted at the
// end ("default", the name of the default subvolume's item, hashes to 2378154706).
func NameHash(name string) uint32 {
	return ^crc32.Update(1, crc32.MakeTable(crc32.Castagnoli), []byte(name))
}

// ManyEntries makes n names in dir: empty files, every tenth a hard link and every hundredth with
// a name of 200 bytes.
func (t *Tree) ManyEntries(dir string, n int) {
	t.Dir(dir)
	for i := range n {
		name := fmt.Sprintf("%s/entry-%05d", dir, i)
		switch {
		case i%100 == 53:
			t.Truncate(name+strings.Repeat("-long", 40), 0)
		case i%10 == 5:
			t.Link(fmt.Sprintf("%s/entry-%05d", dir, i-5), name)
		default:
			t.Truncate(name, 0)
		}
	}
}

// Dirty writes size bytes and deletes them again, so that what is allocated next has old bytes
// under it: a reader that takes a preallocated range for data then shows them.
func (t *Tree) Dirty(size int64) {
	t.Plain("garbage", size)
	t.Sync()
	t.Remove("garbage")
	t.Sync()
}

// Rows makes n files, at least 2, that each cover four rows of columns stripes of 64 KiB, starting and ending
// inside a block, and spreads them over nine tenths of the free space, so that they lie in
// several chunks.
func (t *Tree) Rows(dir string, n, columns int) {
	const stripe = 64 << 10
	t.Dir(dir)
	t.do("statfs", func() error {
		var st unix.Statfs_t
		if err := unix.Statfs(t.root, &st); err != nil {
			return err
		}
		gap := int64(st.Bavail) * st.Bsize * 9 / 10 / int64(n-1)
		for i := range n {
			if i > 0 {
				t.fillGap(fmt.Sprintf("%s/gap-%d", dir, i), gap)
				t.Sync()
			}
			t.Plain(fmt.Sprintf("%s/rows-%d", dir, i), int64(4*columns*stripe+1000*i+1))
			t.Sync()
		}
		for i := 1; i < n; i++ {
			t.Remove(fmt.Sprintf("%s/gap-%d", dir, i))
		}
		t.Sync()
		return t.err
	})
}

// fillGap allocates size bytes in extents about as large as the files of Rows: above 8 MiB they
// would be of another size class (btrfs_calc_block_group_size_class), for which the kernel takes
// block groups of their own, and larger ones would leave room for the next file in every chunk.
func (t *Tree) fillGap(name string, size int64) {
	const piece = 512 << 10
	t.with("fill", name, func(f *os.File) error {
		for off := int64(0); off < size; off += piece {
			n := min(piece, size-off)
			if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, off, n); err != nil {
				return fmt.Errorf("%d of %d bytes: %w", off, size, err)
			}
		}
		return nil
	})
}

// Namespaces makes subvolumes in all relations: nested, snapshots (read-only and not, with
// changes after them), a snapshot that holds an empty directory where its source has a nested
// subvolume, links across subvolumes, a deleted subvolume and one whose directory was renamed.
// The default subvolume becomes "root/@".
func (t *Tree) Namespaces() {
	t.Dir("root")
	for _, name := range []string{"root/@", "@home", "root/@/nested", "root/@/nested/deep", "gone", "root/@/gone-too", "with space"} {
		t.Subvolume(name)
	}
	for _, name := range []string{"top", "root/@/in-default", "@home/hello", "root/@/nested/in-nested", "root/@/nested/deep/in-deep", "gone/x", "with space/f"} {
		t.Plain(name, 6000)
	}
	t.Plain("root/@/both", 100000)
	t.Sync()
	t.Dir("snaps")
	t.Snapshot("root/@", "snaps/ro", true)
	t.Snapshot("root/@", "snaps/rw", false)
	t.WriteAt("root/@/both", 50000, 100)
	t.WriteAt("snaps/rw/both", 20000, 100)
	t.Plain("snaps/rw/only-here", 50)
	t.Remove("snaps/rw/in-default")
	t.Snapshot("snaps/rw", "snaps/rw/of-itself", true)
	t.Snapshot("root/@/nested", "root/@/nested/deep/snap", false)
	t.Dir("root/@/dir")
	t.Subvolume("root/@/dir/moved")
	t.Plain("root/@/dir/moved/f", 10)
	t.Rename("root/@/dir", "root/@/renamed")
	t.Rename("root/@/renamed/moved", "root/@/renamed/moved-too")
	t.Symlinks("root/@/symlinks")
	for name, target := range map[string]string{
		"root/@/to-nested": "nested/in-nested", "root/@/to-home": "../../@home/hello", "@home/to-snap": "../snaps/ro/both",
		"root/@/absolute": "/in-default", "top-link": "root/@/nested/deep/in-deep", "root/@/to-stub": "../../snaps/ro/nested",
	} {
		t.Symlink(target, name)
	}
	t.DeleteSubvolume("gone")
	t.DeleteSubvolume("root/@/gone-too")
	t.WaitDeleted()
	t.SetDefault("root/@")
	t.Sync()
}
