package imagepack

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// member is one entry of a pack that a test makes.
type member struct {
	name string
	kind byte // 0: a regular file
	data []byte
}

func tarOf(t testing.TB, members ...member) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, m := range members {
		h := &tar.Header{Name: m.name, Typeflag: m.kind, Size: int64(len(m.data)), Mode: 0o600, Format: tar.FormatPAX}
		switch m.kind {
		case 0:
			h.Typeflag = tar.TypeReg
		case tar.TypeSymlink, tar.TypeLink:
			h.Linkname = "/etc/passwd"
		case tar.TypeXGlobalHeader:
			h = &tar.Header{Typeflag: m.kind, PAXRecords: map[string]string{"comment": "x"}, Format: tar.FormatPAX}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(m.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// sparseTar is an archive of a file of size bytes, of which only the first len(data) are stored.
func sparseTar(t testing.TB, name string, data []byte, size int64) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	sparse := fmt.Appendf(nil, "1\n0\n%d\n", len(data))
	body := append(append(sparse, make([]byte, 512-len(sparse))...), data...)
	// The writer refuses the records of GNU sparse files; it takes others of the same length.
	h := &tar.Header{Name: "GNUSparseFile.0/" + name, Size: int64(len(body)), Mode: 0o600, Format: tar.FormatPAX,
		PAXRecords: map[string]string{"XXX.sparse.major": "1", "XXX.sparse.minor": "0", "XXX.sparse.name": name,
			"XXX.sparse.realsize": fmt.Sprint(size)}}
	if err := errors.Join(w.WriteHeader(h), second(w.Write(body)), w.Close()); err != nil {
		t.Fatal(err)
	}
	return bytes.ReplaceAll(out.Bytes(), []byte("XXX.sparse"), []byte("GNU.sparse"))
}

func second(_ int, err error) error { return err }

func compress(t testing.TB, archive []byte, options ...zstd.EOption) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out, append(options, zstd.WithEncoderConcurrency(1))...)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(second(w.Write(archive)), w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// listing returns what lies in dir, by name and type.
func listing(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// diskImage has data, holes, a zero block inside data and an odd end.
func diskImage() []byte {
	rng := rand.New(rand.NewPCG(3, 4))
	data := make([]byte, 5<<20+777)
	for _, at := range []int{64 << 10, 1<<20 - 10, 1<<20 + 2*block, 5 << 20} {
		for i := range data[at:min(at+block+100, len(data))] {
			data[at+i] = byte(rng.Uint32())
		}
	}
	return data
}

func TestUnpack(t *testing.T) {
	image, dense := diskImage(), bytes.Repeat([]byte{1}, 3*block)
	dir := t.TempDir()
	pack := compress(t, tarOf(t, member{"pax", tar.TypeXGlobalHeader, nil}, member{"./", tar.TypeDir, nil},
		member{"./disk1.img", 0, image}, member{"disk2.img", 0, dense}, member{"empty", 0, nil}, member{"zero", 0, make([]byte, 1<<20+1)}))
	got, err := Unpack(bytes.NewReader(pack), dir, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{filepath.Join(dir, "disk1.img"), filepath.Join(dir, "disk2.img"), filepath.Join(dir, "empty"), filepath.Join(dir, "zero")}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for i, data := range [][]byte{image, dense, nil, make([]byte, 1<<20+1)} {
		checkFile(t, want[i], data)
	}
	if used := diskUsage(t, want[3]); used >= 1<<20 {
		t.Errorf("a file of zeroes uses %d bytes of disk", used)
	}
	if used := diskUsage(t, want[0]); used > 1<<20 {
		t.Errorf("a sparse image uses %d bytes of disk", used)
	}
}

func checkFile(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes, want %d, or they differ", path, len(got), len(want))
	}
}

func diskUsage(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func TestUnpackRefuses(t *testing.T) {
	data := bytes.Repeat([]byte{7}, 2*block)
	good := member{"good.img", 0, data}
	flipped := compress(t, tarOf(t, good))
	flipped[len(flipped)-1] ^= 1 // of the checksum of the frame
	tests := []struct {
		name   string
		pack   []byte
		limits Limits
		want   error
	}{
		{"path upwards", compress(t, tarOf(t, good, member{"../evil", 0, data})), Limits{}, ErrName},
		{"path downwards", compress(t, tarOf(t, good, member{"a/b", 0, data})), Limits{}, ErrName},
		{"absolute path", compress(t, tarOf(t, good, member{"/tmp/evil", 0, data})), Limits{}, ErrName},
		{"symbolic link", compress(t, tarOf(t, good, member{"link", tar.TypeSymlink, nil})), Limits{}, ErrType},
		{"hard link", compress(t, tarOf(t, good, member{"link", tar.TypeLink, nil})), Limits{}, ErrType},
		{"directory", compress(t, tarOf(t, good, member{"dir/", tar.TypeDir, nil})), Limits{}, ErrType},
		{"directory upwards", compress(t, tarOf(t, good, member{"../", tar.TypeDir, nil})), Limits{}, ErrType},
		{"fifo", compress(t, tarOf(t, good, member{"fifo", tar.TypeFifo, nil})), Limits{}, ErrType},
		{"device", compress(t, tarOf(t, good, member{"sda", tar.TypeBlock, nil})), Limits{}, ErrType},
		{"same name twice", compress(t, tarOf(t, good, good)), Limits{}, ErrExists},
		{"same name twice, to overwrite", compress(t, tarOf(t, good, member{"./good.img", 0, nil})), Limits{Overwrite: true}, ErrExists},
		{"too many files", compress(t, tarOf(t, good, member{"b", 0, nil}, member{"c", 0, nil})), Limits{Files: 2}, ErrLimit},
		{"too large together", compress(t, tarOf(t, good, member{"b", 0, data})), Limits{Bytes: int64(len(data)) + 1}, ErrLimit},
		{"hole too large", compress(t, sparseTar(t, "hole.img", data, 1<<62)), Limits{}, ErrLimit},
		{"endless directories", compress(t, bytes.Repeat(tarOf(t, member{"./", tar.TypeDir, nil})[:512], 10<<11)), Limits{Bytes: 1, Files: 1}, ErrLimit},
		{"rubbish after the archive", compress(t, append(tarOf(t, good), make([]byte, 2*trailer)...)), Limits{}, ErrLimit},
		{"window too large", compress(t, tarOf(t, good, member{"b", 0, diskImage()}), zstd.WithWindowSize(2*maxWindow)), Limits{}, zstd.ErrWindowSizeExceeded},
		{"cut", compress(t, tarOf(t, good))[:60], Limits{}, io.ErrUnexpectedEOF},
		{"cut inside a file", compress(t, tarOf(t, good)[:1024]), Limits{}, io.ErrUnexpectedEOF},
		{"checksum", flipped, Limits{}, zstd.ErrCRCMismatch},
		{"no zstd", []byte("PK\x03\x04 is another thing"), Limits{}, zstd.ErrMagicMismatch},
		{"no tar", compress(t, bytes.Repeat([]byte("x"), 2048)), Limits{}, tar.ErrHeader},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			parent := t.TempDir()
			dir := filepath.Join(parent, "dir")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			got, err := Unpack(bytes.NewReader(tt.pack), dir, tt.limits)
			if !errors.Is(err, tt.want) || got != nil {
				t.Errorf("got %v, %v, want %v", got, err, tt.want)
			}
			if left := append(listing(t, dir), listing(t, parent)...); !slices.Equal(left, []string{"dir"}) {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestUnpackExisting(t *testing.T) {
	pack := compress(t, tarOf(t, member{"first", 0, []byte("new")}, member{"disk.img", 0, []byte("new")}))
	target := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(target, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name      string
		make      func(path string) error
		overwrite bool
		ok        bool
	}{
		{"file", func(p string) error { return os.WriteFile(p, []byte("old"), 0o600) }, false, false},
		{"file, overwrite", func(p string) error { return os.WriteFile(p, []byte("older"), 0o600) }, true, true},
		{"link", func(p string) error { return os.Symlink(target, p) }, false, false},
		{"link, overwrite", func(p string) error { return os.Symlink(target, p) }, true, false},
		{"dangling link", func(p string) error { return os.Symlink(target+"2", p) }, false, false},
		{"directory, overwrite", func(p string) error { return os.Mkdir(p, 0o700) }, true, false},
		{"nothing, overwrite", func(string) error { return nil }, true, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "disk.img")
			if err := tt.make(path); err != nil {
				t.Fatal(err)
			}
			before, _ := os.Lstat(path)
			_, err := Unpack(bytes.NewReader(pack), dir, Limits{Overwrite: tt.overwrite})
			if tt.ok {
				if err != nil {
					t.Fatal(err)
				}
				checkFile(t, path, []byte("new"))
				return
			}
			if !errors.Is(err, ErrExists) {
				t.Errorf("got %v, want ErrExists", err)
			}
			after, err := os.Lstat(path)
			if err != nil || !os.SameFile(before, after) || after.Size() != before.Size() {
				t.Errorf("what was in the way has changed: %v", err)
			}
			if got := listing(t, dir); !slices.Equal(got, []string{"disk.img"}) {
				t.Errorf("left behind: %v", got)
			}
		})
	}
	checkFile(t, target, []byte("old"))
	if _, err := os.Lstat(target + "2"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a dangling link was followed: %v", err)
	}
}

func TestUnpackWithoutDirectory(t *testing.T) {
	pack := compress(t, tarOf(t, member{"disk.img", 0, []byte("x")}))
	if _, err := Unpack(bytes.NewReader(pack), filepath.Join(t.TempDir(), "missing"), Limits{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want ErrNotExist", err)
	}
}

func TestUnpackSparse(t *testing.T) {
	dir, data := t.TempDir(), bytes.Repeat([]byte{9}, 512)
	const size = 64<<20 + 5
	paths, err := Unpack(bytes.NewReader(compress(t, sparseTar(t, "disk.img", data, size))), dir, Limits{Bytes: size, Files: 1})
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(paths[0])
	if err != nil || st.Size() != size || diskUsage(t, paths[0]) > 1<<20 {
		t.Errorf("got %d bytes, %d on disk, %v; want %d, few", st.Size(), diskUsage(t, paths[0]), err, size)
	}
	f, err := os.Open(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, 1024)
	if _, err := f.Read(got); err != nil || !bytes.Equal(got, append(bytes.Clone(data), make([]byte, 512)...)) {
		t.Errorf("wrong bytes at the start, %v", err)
	}
}

func TestUnpackRealPack(t *testing.T) {
	for _, tool := range []string{"tar", "zstd"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	image := diskImage()
	src, dst := t.TempDir(), t.TempDir()
	for _, name := range []string{"disk1.img", "disk2.img"} {
		f, err := os.Create(filepath.Join(src, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(writeSparse(f, bytes.NewReader(image), int64(len(image)), make([]byte, chunk)), f.Truncate(40<<20), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	for name, names := range map[string]string{"files": "disk1.img disk2.img", "directory": "."} {
		t.Run(name, func(t *testing.T) {
			pack, err := exec.Command("sh", "-c", "tar --sparse --format=posix --sort=name -C "+src+" -cf - "+names+" | zstd -19 --long").Output()
			if err != nil {
				t.Fatal(err)
			}
			paths, err := Unpack(bytes.NewReader(pack), dst, Limits{Overwrite: true})
			if err != nil {
				t.Fatal(err)
			}
			want := []string{filepath.Join(dst, "disk1.img"), filepath.Join(dst, "disk2.img")}
			if !slices.Equal(paths, want) {
				t.Errorf("got %v, want %v", paths, want)
			}
			for _, path := range paths {
				checkFile(t, path, append(bytes.Clone(image), make([]byte, 40<<20-len(image))...))
				if used := diskUsage(t, path); used > 1<<20 {
					t.Errorf("%s uses %d bytes of disk", path, used)
				}
			}
		})
	}
}

func TestBaseName(t *testing.T) {
	for name, want := range map[string]string{
		"disk.img": "disk.img", "./disk.img": "disk.img", "Ärger 1.img": "Ärger 1.img", strings.Repeat("x", 255): strings.Repeat("x", 255),
		"": "", ".": "", "./": "", "..": "", "./..": "", "../a": "", "/a": "", "a/b": "", ".//a": "", "././a": "", `a\b`: "", ".hidden": "", "-rf": "",
		"a\nb": "", "a\x00b": "", "a\x1b[2J": "", "\xff": "", "a\u202eb": "", strings.Repeat("x", 256): "",
	} {
		got, err := baseName(name)
		if got != want || (err != nil) != (want == "") || (err != nil && !errors.Is(err, ErrName)) {
			t.Errorf("%q: got %q, %v, want %q", name, got, err, want)
		}
	}
}

// Whatever the pattern of zero blocks is: the file has the bytes, and its zero blocks are holes.
func TestWriteSparseProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		data := make([]byte, rapid.IntRange(0, 12*block).Draw(t, "size"))
		blocks := rapid.SliceOfN(rapid.IntRange(0, 3), 13, 13).Draw(t, "blocks")
		for i := 0; i*block < len(data); i++ {
			b := data[i*block : min((i+1)*block, len(data))]
			switch blocks[i] {
			case 1:
				b[0] = 1
			case 2:
				b[len(b)-1] = 1
			case 3:
				b[len(b)/2] = 1
			}
		}
		f := &recorder{}
		if err := writeSparse(f, bytes.NewReader(data), int64(len(data)), make([]byte, 3*block)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(f.data, data) {
			t.Fatal("wrong bytes")
		}
		for i := 0; i*block < len(data); i++ {
			if got, want := f.written[i], !isZero(data[i*block:min((i+1)*block, len(data))]); got != want {
				t.Fatalf("block %d: written %v, want %v, blocks %v", i, got, want, blocks)
			}
		}
	})
}

// recorder is a file in memory that knows which of its blocks have been written.
type recorder struct {
	data    []byte
	written [13]bool
}

func (f *recorder) WriteAt(p []byte, off int64) (int, error) {
	if grow := int(off) + len(p) - len(f.data); grow > 0 {
		f.data = append(f.data, make([]byte, grow)...)
	}
	for at := int(off); at < int(off)+len(p); at += block {
		f.written[at/block] = true
	}
	return copy(f.data[off:], p), nil
}

func (f *recorder) Truncate(size int64) error {
	f.data = append(f.data, make([]byte, max(int(size)-len(f.data), 0))...)[:size]
	return nil
}

func FuzzUnpackArchive(f *testing.F) {
	f.Add(tarOf(f, member{"disk.img", 0, bytes.Repeat([]byte{1}, 5000)}, member{"b", 0, nil}))
	f.Add(tarOf(f, member{"../disk.img", 0, []byte("x")}))
	f.Add(tarOf(f, member{"link", tar.TypeSymlink, nil}))
	f.Add(sparseTar(f, "hole.img", []byte("data"), 1<<20))
	f.Add(sparseTar(f, "hole.img", []byte("data"), 1<<60))
	limits := Limits{Bytes: 1 << 21, Files: 3}
	f.Fuzz(func(t *testing.T, archive []byte) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "dir")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		paths, err := unpackArchive(bytes.NewReader(archive), dir, limits)
		if got := listing(t, parent); !slices.Equal(got, []string{"dir"}) {
			t.Fatalf("beside the directory: %v", got)
		}
		names := listing(t, dir)
		if len(names) != len(paths) || len(names) > limits.Files || (err != nil && paths != nil) {
			t.Fatalf("%d files, told of %d, error %v", len(names), len(paths), err)
		}
		sum := int64(0)
		for _, path := range paths {
			st, err := os.Lstat(path)
			if err != nil || !st.Mode().IsRegular() || filepath.Dir(path) != dir {
				t.Fatalf("%s: %v, %v", path, st, err)
			}
			sum += st.Size()
		}
		if sum > limits.Bytes {
			t.Fatalf("%d bytes, more than %d", sum, limits.Bytes)
		}
	})
}
