//go:build linux

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// Crashes in one filesystem's life, and crashes in all when BTREXPORT_E2E_ROUNDS is 1.
const (
	crashesEach = 6
	crashes     = 300
)

// A filesystem that was not unmounted shows what the kernel shows once it has replayed the log: every
// name, link count, size, mode, time and byte. The image is copied while a random job changes and syncs
// the filesystem; we read the copy, then the kernel mounts it.
func TestCrash(t *testing.T) {
	need(t)
	base := chance(t).Uint64()
	logged := 0
	for i := range crashes * rounds() / crashesEach {
		t.Run(fmt.Sprint(i), func(t *testing.T) { logged += crashLife(t, base+uint64(i)) })
	}
	if logged < crashes*rounds()/4 {
		t.Errorf("%d of %d images had a log: the job syncs too little or commits too much", logged, crashes*rounds())
	}
	t.Logf("%d of %d images had a log", logged, crashes*rounds())
}

// crashLife makes a filesystem, crashes it several times in its life, and compares each crash.
func crashLife(t *testing.T, seed uint64) (logged int) {
	ctx, rng := bounded(t), rand.New(rand.NewPCG(seed, 0x637261736865))
	o := kernelfs.Options{Data: "single", Metadata: "single", Nodesize: []int{4096, 16384, 16384}[rng.IntN(3)]}
	if rng.IntN(2) == 0 {
		o.Features = []string{"^no-holes"}
	}
	if rng.IntN(4) == 0 {
		o.Csum = []string{"xxhash", "sha256"}[rng.IntN(2)]
	}
	options := []string{"commit=300"}
	if rng.IntN(3) == 0 {
		options = append(options, "compress-force=zstd")
	}
	t.Logf("seed %d: mkfs %v, mount %v", seed, o.Args(), options)
	copies, err := crash(ctx, t.TempDir(), rng, o, options)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range copies {
		if ours, ok := checkCrash(ctx, t, c.image); !ok {
			t.Errorf("seed %d crash %d: the operations since the start were\n%s", seed, i, c.history)
		} else if ours {
			logged++
		}
		if err := os.Remove(c.image); err != nil {
			t.Fatal(err)
		}
	}
	return logged
}

// crashed is a copy of the image, and what was done before it was taken.
type crashed struct{ image, history string }

// crash runs the job and copies the image while it is mounted. The filesystem is unmounted at the end: the
// kernel does not mount copies beside it.
func crash(ctx context.Context, dir string, rng *rand.Rand, o kernelfs.Options, options []string) (list []crashed, err error) {
	f, err := kernelfs.Make(ctx, dir, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	mnt, err := f.Mount(options...)
	if err != nil {
		return nil, err
	}
	j, err := newJob(ctx, rng, mnt)
	if err != nil {
		return nil, err
	}
	defer j.close()
	for i := range crashesEach {
		for range 3 + rng.IntN(25) {
			j.step()
		}
		j.fsync()
		c := crashed{image: filepath.Join(dir, fmt.Sprintf("crash%d.img", i)), history: j.log.String()}
		if err := copyCrash(f.Images()[0], c.image); err != nil {
			return nil, err
		}
		if list = append(list, c); rng.IntN(3) == 0 {
			j.sync()
		}
	}
	return list, j.fatal
}

// copyCrash copies an image as a power cut would leave it. A commit or sync of the kernel's own that ends
// meanwhile would leave parts of two states behind, as no crash does: such a copy is made again.
func copyCrash(from, to string) error {
	const attempts = 20
	for range attempts {
		before, err := primarySuper(from)
		if err != nil {
			return err
		}
		if err := copySparse(from, to); err != nil {
			return err
		}
		after, err := primarySuper(from)
		if err != nil {
			return err
		}
		if bytes.Equal(before, after) {
			return nil
		}
	}
	return fmt.Errorf("%s changed during each of %d copies", from, attempts)
}

func primarySuper(image string) ([]byte, error) {
	f, err := os.Open(image)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, ondisk.SuperblockSize)
	_, err = f.ReadAt(b, int64(ondisk.SuperblockOffsets()[0]))
	return b, err
}

// copySparse copies a file as the kernel shows it at this moment, holes as holes.
func copySparse(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		return err
	}
	defer dst.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	if err := dst.Truncate(info.Size()); err != nil {
		return err
	}
	for end := int64(0); ; {
		start, err := unix.Seek(int(src.Fd()), end, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return nil
		}
		if err != nil {
			return err
		}
		if end, err = unix.Seek(int(src.Fd()), start, unix.SEEK_HOLE); err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(dst, start), io.NewSectionReader(src, start, end-start)); err != nil {
			return err
		}
	}
}

// checkCrash reads an image, has the kernel replay its log, and compares. logged: it has one.
func checkCrash(ctx context.Context, t *testing.T, image string) (logged, ok bool) {
	t.Helper()
	got, logged, err := readCrash(ctx, image)
	if err != nil {
		t.Errorf("reading the crashed filesystem: %v", err)
	}
	f, err := kernelfs.Attach(filepath.Dir(image), []string{image})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}()
	before := time.Now().Unix()
	mnt, err := f.Mount("subvolid=5")
	if err != nil {
		t.Fatal(err)
	}
	want, err := kernelfs.Manifest(ctx, mnt)
	if err != nil {
		t.Fatal(err)
	}
	if got == nil {
		return logged, false
	}
	return logged, sameView(t, got, want.Entries, before)
}

// readCrash is the manifest as we read it, and whether there is a log.
func readCrash(ctx context.Context, image string) (list []fsreadtest.Entry, logged bool, err error) {
	q, err := devio.Open(image, devio.Options{})
	if err != nil {
		return nil, false, err
	}
	f, err := fsread.Open(ctx, []volume.Device{q}, fsread.Options{})
	if err != nil {
		return nil, false, errors.Join(err, q.Close())
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	logged = f.Log().Present
	s, err := f.SubvolumeByID(ctx, ondisk.TreeFS)
	if err != nil {
		return nil, logged, err
	}
	root, err := s.Root(ctx)
	if err != nil {
		return nil, logged, err
	}
	r := reading{top: s}
	err = r.add(ctx, ".", root)
	return r.list, logged, err
}

// reading lists what is below the top level.
type reading struct {
	top  *fsread.Subvolume
	list []fsreadtest.Entry
}

// add lists a node and what is below it. A name that is listed must also be found by its hash.
func (r *reading) add(ctx context.Context, path string, n *fsread.Node) error {
	i := n.Item()
	e := fsreadtest.Entry{Path: fsreadtest.Name(path), Type: typeOf(n.Mode()), Size: int64(i.Size), Mode: fmt.Sprintf("%04o", i.Mode&0o7777),
		MtimeSec: i.MTime.Sec, MtimeNsec: int64(i.MTime.Nsec), Nlink: uint64(i.NLink), Ino: n.Inode(), Subvol: n.Subvolume().ID()}
	var err error
	switch e.Type {
	case "symlink":
		var target string
		target, err = n.Readlink(ctx)
		e.Target = fsreadtest.Name(target)
	case "file":
		e.SHA256, err = digestNode(ctx, n)
	}
	if err != nil {
		return fmt.Errorf("%q inode %d: %w", path, n.Inode(), err)
	}
	if r.list = append(r.list, e); !n.IsDir() {
		return nil
	}
	return n.ReadDir(ctx, func(d fsread.Entry) error {
		below := strings.TrimPrefix(path+"/"+d.Name, "./")
		child, err := d.Node(ctx)
		if err != nil {
			return fmt.Errorf("%q: %w", below, err)
		}
		if byName, err := r.top.ResolveLink(ctx, below); err != nil || byName.Inode() != child.Inode() {
			return fmt.Errorf("%q is listed with inode %d; its name leads to %v, %v", below, child.Inode(), byName, err)
		}
		return r.add(ctx, below, child)
	})
}

func typeOf(m fs.FileMode) string {
	switch m.Type() {
	case fs.ModeDir:
		return "dir"
	case fs.ModeSymlink:
		return "symlink"
	case 0:
		return "file"
	case fs.ModeNamedPipe:
		return "fifo"
	}
	return m.Type().String()
}

func digestNode(ctx context.Context, n *fsread.Node) (string, error) {
	f, err := n.File()
	if err != nil || f.Size() == 0 {
		return "", err
	}
	sum := sha256.New()
	b := make([]byte, 1<<20)
	for off := uint64(0); off < f.Size(); {
		got, err := f.ReadAt(ctx, b[:min(uint64(len(b)), f.Size()-off)], off)
		if err != nil && (err != io.EOF || off+uint64(got) < f.Size()) {
			return "", err
		}
		sum.Write(b[:got])
		off += uint64(got)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// sameView compares two manifests line by line. before is when the kernel began its replay: it sets the
// time of directories that lose a name to its own.
func sameView(t *testing.T, got, want []fsreadtest.Entry, before int64) bool {
	t.Helper()
	have := make(map[fsreadtest.Name]fsreadtest.Entry)
	for _, e := range got {
		have[e.Path] = e
	}
	var wrong []string
	for _, w := range want {
		g, ok := have[w.Path]
		delete(have, w.Path)
		if w.Type == "dir" && w.MtimeSec >= before {
			w.MtimeSec, w.MtimeNsec = g.MtimeSec, g.MtimeNsec
		}
		if !ok {
			wrong = append(wrong, fmt.Sprintf("%q: not there, want %s", w.Path, line(w)))
		} else if line(g) != line(w) {
			wrong = append(wrong, fmt.Sprintf("%q:\n got %s\nwant %s", w.Path, line(g), line(w)))
		}
	}
	for _, e := range have {
		wrong = append(wrong, fmt.Sprintf("%q: there, want none: %s", e.Path, line(e)))
	}
	slices.Sort(wrong)
	if len(wrong) > 0 {
		t.Errorf("%d differences\n%s", len(wrong), strings.Join(wrong, "\n"))
	}
	return len(wrong) == 0
}

func line(e fsreadtest.Entry) string {
	return fmt.Sprintf("%s %d bytes mode %s nlink %d inode %d of %d at %d.%09d target %q sha256 %s", e.Type, e.Size, e.Mode, e.Nlink,
		e.Ino, e.Subvol, e.MtimeSec, e.MtimeNsec, e.Target, e.SHA256)
}
