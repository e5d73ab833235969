package devio

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// writeFile makes a file of n bytes, in each of which its offset can be recognised.
func writeFile(t testing.TB, n int) (path string, data []byte) {
	t.Helper()
	data = make([]byte, n)
	for i := range data {
		data[i] = byte(i ^ i>>8 ^ i>>16)
	}
	path = filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, data
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	missing := filepath.Join(dir, "missing")
	tests := []struct {
		name, path string
		options    Options
		kind       error
		want       string
	}{
		{"directory", dir, Options{}, ErrKind, "open " + dir + ": is a directory (name the block device or image file that holds the filesystem, not where it is mounted: findmnt shows it)"},
		{"character device", "/dev/null", Options{}, ErrKind, "open /dev/null: is a character device (name a block device, such as /dev/sdb, or an image file)"},
		{"fifo without a writer", fifo, Options{}, ErrKind, "open " + fifo + ": is a named pipe (name a block device, such as /dev/sdb, or an image file)"},
		{"socket", socket, Options{}, ErrKind, "open " + socket + ": is a socket (name a block device, such as /dev/sdb, or an image file)"},
		{"missing", missing, Options{}, fs.ErrNotExist, "open " + missing + ": no such file or directory (list the block devices with: lsblk --fs)"},
		{"below a file", "/dev/null/x", Options{}, unix.ENOTDIR, "open /dev/null/x: not a directory (list the block devices with: lsblk --fs)"},
		{"NUL in the name", "a\x00b", Options{}, unix.EINVAL, "open a\x00b: invalid argument"},
		{"too many workers", "/dev/null", Options{Workers: maxWorkers + 1}, ErrWorkers, "open /dev/null: number of workers is out of range (use 1 to 1024, or 0 for 8 with pread and 32 with io_uring)"},
		{"negative workers", "/dev/null", Options{Workers: -1}, ErrWorkers, "open /dev/null: number of workers is out of range (use 1 to 1024, or 0 for 8 with pread and 32 with io_uring)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			q, err := Open(tt.path, tt.options)
			if err == nil {
				q.Close()
				t.Fatal("opened")
			}
			var open *OpenError
			if !errors.As(err, &open) || open.Path != tt.path {
				t.Errorf("got %#v, want an OpenError of %s", err, tt.path)
			}
			if !errors.Is(err, tt.kind) {
				t.Errorf("got %v, want it to be %v", err, tt.kind)
			}
			if err.Error() != tt.want {
				t.Errorf("message:\n got %s\nwant %s", err, tt.want)
			}
		})
	}
}

// A path can turn into something else between the look at it and its opening.
func TestIdentifyAfterOpen(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	f := &file{name: fifo, path: fifo, align: 1, log: Options{}.log(), preadv: preadv}
	if _, err := f.open(true); err != nil {
		t.Fatalf("open: %v", err)
	}
	defer f.close()
	if err := f.identify(); !errors.Is(err, ErrKind) {
		t.Errorf("identify: got %v, want ErrKind", err)
	}
}

func TestOpenWithoutPermission(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may read everything")
	}
	path, _ := writeFile(t, 4096)
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	_, err := Open(path, Options{})
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "permission denied (run as root, or give") {
		t.Errorf("got %v, want permission denied and a remedy", err)
	}
}

func TestRemedies(t *testing.T) {
	for _, errno := range []unix.Errno{unix.EACCES, unix.EPERM, unix.ENOENT, unix.ENOMEDIUM, unix.ENXIO, unix.EMFILE} {
		if err := openError("x", errno); err.Remedy == "" || !errors.Is(err, errno) {
			t.Errorf("%v: got %#v, want a remedy", errno, err)
		}
	}
	if got, want := openError("/dev/sdb", unix.EACCES).Error(), `open /dev/sdb: permission denied (run as root, or give your user read access: see "device access" in btrexport(1))`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := openError("x", unix.EIO).Error(), "open x: input/output error"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestOpenFlags(t *testing.T) {
	path, _ := writeFile(t, 4096)
	for name, buffered := range map[string]bool{"direct": false, "buffered": true} {
		t.Run(name, func(t *testing.T) {
			q, err := Open(path, Options{Buffered: buffered})
			if err != nil {
				t.Fatal(err)
			}
			defer q.Close()
			flags, err := unix.FcntlInt(uintptr(q.file.fd), unix.F_GETFL, 0)
			if err != nil {
				t.Fatal(err)
			}
			if flags&unix.O_NONBLOCK != 0 || flags&unix.O_ACCMODE != unix.O_RDONLY {
				t.Errorf("flags %#x: want read only and blocking", flags)
			}
			if got, want := flags&unix.O_DIRECT != 0, q.Direct(); got != want {
				t.Errorf("O_DIRECT: got %v, Direct says %v", got, want)
			}
			if buffered && (q.Direct() || q.Align() != 1) {
				t.Errorf("buffered: Direct %v, Align %d", q.Direct(), q.Align())
			}
			if a := q.Align(); a < 1 || a > maxAlign || a&(a-1) != 0 {
				t.Errorf("Align %d is not a power of two up to %d", a, maxAlign)
			}
			fd, err := unix.FcntlInt(uintptr(q.file.fd), unix.F_GETFD, 0)
			if err != nil || fd&unix.FD_CLOEXEC == 0 {
				t.Errorf("descriptor flags %#x, %v: want FD_CLOEXEC", fd, err)
			}
			if q.Size() != 4096 || q.Name() != path {
				t.Errorf("got %s of %d bytes, want %s of 4096", q.Name(), q.Size(), path)
			}
		})
	}
}

func TestChooseAlign(t *testing.T) {
	tests := []struct {
		name             string
		mem, off, sector uint32
		known            bool
		want             int // 0: refused
	}{
		{"file, unknown", 0, 0, 0, false, 4096},
		{"device, unknown", 0, 0, 512, false, 512},
		{"4K native, unknown", 0, 0, 4096, false, 4096},
		{"file", 512, 512, 0, true, 512},
		{"memory looser", 4, 512, 0, true, 512},
		{"offset looser", 4096, 512, 0, true, 4096},
		{"sector larger", 512, 512, 4096, true, 4096},
		{"not supported", 0, 0, 0, true, 0},
		{"not supported by the device", 0, 0, 512, true, 0},
		{"half an answer", 512, 0, 0, true, 0},
		{"too large", 512, 65536, 0, true, 0},
		{"sector too large", 512, 512, 8192, true, 0},
		{"no power of two", 520, 520, 0, true, 4096},
	}
	for _, tt := range tests {
		got, err := chooseAlign(tt.mem, tt.off, tt.sector, tt.known)
		if got != tt.want || (err != nil) != (tt.want == 0) {
			t.Errorf("%s: got %d, %v, want %d", tt.name, got, err, tt.want)
		}
	}
}

func TestDropDirectWarnsOnce(t *testing.T) {
	path, _ := writeFile(t, 4096)
	var out bytes.Buffer
	f := &file{name: path, path: path, align: 512, log: slog.New(slog.NewTextHandler(&out, nil)), preadv: preadv}
	if refused, err := f.open(true); err != nil || refused != nil {
		t.Skipf("O_DIRECT is refused here: %v, %v", refused, err)
	}
	defer f.close()
	for range 2 {
		if err := f.dropDirect(unix.EINVAL); err != nil {
			t.Fatal(err)
		}
	}
	if got := strings.Count(out.String(), "O_DIRECT refused"); got != 1 {
		t.Errorf("%d warnings, want 1:\n%s", got, &out)
	}
	if !strings.Contains(out.String(), "level=WARN") || !strings.Contains(out.String(), "device="+path) {
		t.Errorf("no warning that names the device: %s", &out)
	}
	flags, err := unix.FcntlInt(uintptr(f.fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_DIRECT != 0 || f.direct.Load() {
		t.Errorf("flags %#x, %v, direct %v: want no O_DIRECT", flags, err, f.direct.Load())
	}
}

// Files of procfs refuse O_DIRECT at open.
func TestOpenWhereDirectIsRefused(t *testing.T) {
	const path = "/proc/self/status"
	if fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT, 0); err == nil {
		unix.Close(fd)
		t.Skip("this kernel opens procfs files with O_DIRECT")
	}
	var out bytes.Buffer
	q, err := Open(path, Options{Log: slog.New(slog.NewTextHandler(&out, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if q.Direct() || q.Align() != 1 {
		t.Errorf("Direct %v, Align %d: want false, 1", q.Direct(), q.Align())
	}
	if got := strings.Count(out.String(), "O_DIRECT refused"); got != 1 {
		t.Errorf("%d warnings, want 1:\n%s", got, &out)
	}
}

// TestSame knows a file by its inode, whatever it is called, and no copy of it.
func TestSame(t *testing.T) {
	path, data := writeFile(t, 8192)
	dir := filepath.Dir(path)
	soft, hard, other := filepath.Join(dir, "soft"), filepath.Join(dir, "hard"), filepath.Join(dir, "other")
	if err := errors.Join(os.Symlink(path, soft), os.Link(path, hard), os.WriteFile(other, data, 0o600)); err != nil {
		t.Fatal(err)
	}
	q := open(t, path, Options{})
	for p, want := range map[string]bool{path: true, soft: true, hard: true, other: false} {
		if o := open(t, p, Options{}); q.Same(o) != want || o.Same(q) != want {
			t.Errorf("%s: the same %v, want %v", p, !want, want)
		}
	}
}
