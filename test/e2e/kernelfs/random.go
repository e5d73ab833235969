//go:build linux

package kernelfs

import (
	"fmt"
	"math/rand/v2"
	"slices"
)

// RandomOptions bounds what Random makes. The zero value is a small tree.
type RandomOptions struct {
	Ops     int   // operations; 0 means 200
	MaxFile int64 // largest size of a file in bytes; 0 means 4 MiB
	Subvols int   // most subvolumes and snapshots; 0 means none
	Sync    int   // commit after about so many operations; 0 means 20
}

// Random changes the tree by operations that seed decides: files that grow, shrink, get holes,
// are preallocated, overwritten, cloned, linked, renamed and removed, in directories, subvolumes
// and snapshots. One seed and one set of options give one tree, byte for byte; only the kernel's
// choice of places and times differs. The truth about the result is Manifest after a remount.
func (t *Tree) Random(seed uint64, o RandomOptions) {
	if o.Ops == 0 {
		o.Ops = 200
	}
	if o.MaxFile == 0 {
		o.MaxFile = 4 << 20
	}
	if o.Sync == 0 {
		o.Sync = 20
	}
	r := &random{Tree: t, rng: rand.New(rand.NewPCG(seed, 0x62747266)), opts: o, dirs: []place{{name: "."}}}
	for range o.Ops {
		r.step()
		if r.rng.IntN(o.Sync) == 0 {
			t.Sync()
		}
	}
	t.Sync()
}

// random remembers what Random has made. Names within a snapshot are not in the lists: a
// snapshot stays as it was taken.
type random struct {
	*Tree
	rng     *rand.Rand
	opts    RandomOptions
	names   int
	dirs    []place
	files   []place
	subvols []string
	made    int // subvolumes and snapshots
}

// place is a path and the subvolume that holds it: links and renames do not leave it.
type place struct{ name, subvol string }

func (r *random) step() {
	switch n := r.rng.IntN(100); {
	case n < 25 || len(r.files) == 0:
		r.create()
	case n < 70:
		r.change()
	case n < 78:
		r.clone()
	case n < 82:
		f := r.file()
		r.Link(f.name, r.nameIn(f.subvol, "link"))
	case n < 86:
		r.Symlink([]string{"..", ".", "no/such", r.file().name}[r.rng.IntN(4)], r.name("symlink").name)
	case n < 90:
		d := r.name("dir")
		r.Dir(d.name)
		r.dirs = append(r.dirs, d)
	case n < 93:
		r.subvolume()
	case n < 96:
		i := r.rng.IntN(len(r.files))
		name := r.nameIn(r.files[i].subvol, "renamed")
		r.Rename(r.files[i].name, name)
		r.files[i].name = name
	default:
		i := r.rng.IntN(len(r.files))
		r.Remove(r.files[i].name)
		r.files = slices.Delete(r.files, i, i+1)
	}
}

func (r *random) create() {
	f := r.name("file")
	if r.rng.IntN(12) == 0 {
		r.NoCOW(f.name)
	}
	if r.rng.IntN(3) == 0 {
		r.Plain(f.name, r.rng.Int64N(2*BlockSize+2)) // inline, one block, and around
	} else {
		r.Plain(f.name, r.size())
	}
	r.files = append(r.files, f)
}

func (r *random) change() {
	name, off, n := r.file().name, r.rng.Int64N(r.opts.MaxFile), r.size()
	n = min(n, r.opts.MaxFile-off)
	switch r.rng.IntN(8) {
	case 0:
		r.Truncate(name, off)
	case 1:
		r.Punch(name, off, max(n, 1))
	case 2:
		r.Fallocate(name, off, max(n, 1), r.rng.IntN(2) == 0)
	case 3:
		r.Fsync(name)
	default:
		r.WriteAt(name, off, n)
	}
}

// clone shares a file or a range of it. The kernel refuses to share between files with and
// without checksums, so that the copy is made anew.
func (r *random) clone() {
	src, to := r.file().name, r.name("clone")
	dst := to.name
	r.do("clone", func() error {
		nocow, size, err := r.stat(src)
		if err != nil {
			return err
		}
		if nocow {
			r.NoCOW(dst)
		}
		if blocks := size / BlockSize; r.rng.IntN(2) == 0 || blocks == 0 {
			r.Clone(src, dst)
		} else {
			first := r.rng.Int64N(blocks)
			r.CloneRanges(src, dst, []Range{{
				Src: first * BlockSize, Dst: r.rng.Int64N(64) * BlockSize, Len: (1 + r.rng.Int64N(blocks-first)) * BlockSize,
			}})
		}
		return r.err
	})
	r.files = append(r.files, to)
}

func (r *random) subvolume() {
	if r.made >= r.opts.Subvols {
		return
	}
	r.made++
	if len(r.subvols) > 0 && r.rng.IntN(2) == 0 {
		src := r.subvols[r.rng.IntN(len(r.subvols))]
		r.Snapshot(src, fmt.Sprintf("snap-%d", r.made), r.rng.IntN(2) == 0)
		return
	}
	name := r.name("subvol").name
	r.Subvolume(name)
	r.subvols = append(r.subvols, name)
	r.dirs = append(r.dirs, place{name: name, subvol: name})
}

// name is a new name in one of the directories.
func (r *random) name(kind string) place {
	d := r.dirs[r.rng.IntN(len(r.dirs))]
	r.names++
	return place{name: fmt.Sprintf("%s/%s-%d", d.name, kind, r.names), subvol: d.subvol}
}

// nameIn is a new name in one of the directories of a subvolume.
func (r *random) nameIn(subvol, kind string) string {
	for {
		if p := r.name(kind); p.subvol == subvol {
			return p.name
		}
	}
}

func (r *random) file() place { return r.files[r.rng.IntN(len(r.files))] }

// size prefers small files: every power of two is as likely as the next.
func (r *random) size() int64 {
	limit := int64(1) << r.rng.IntN(40)
	return r.rng.Int64N(min(limit, r.opts.MaxFile) + 1)
}
