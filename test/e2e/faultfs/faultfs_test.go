//go:build linux

package faultfs

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

const (
	block     = 4096
	imageSize = 3<<20 + 512
)

// patience bounds what must happen at all; nothing here measures time.
const patience = 60 * time.Second

// mounted is one file of a mount, its content, and a descriptor of it, open with O_DIRECT.
func mounted(t *testing.T) (f *File, want []byte, fd int) {
	t.Helper()
	if os.Getenv("BTREXPORT_E2E") != "1" {
		t.Skip("mounts as root: set BTREXPORT_E2E=1")
	}
	if err := Usable(); err != nil {
		t.Skip(err)
	}
	for i := 0; len(want) < imageSize; i++ { // no block is like another
		sum := sha256.Sum256(binary.LittleEndian.AppendUint64(nil, uint64(i)))
		want = append(want, sum[:]...)
	}
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, want, 0o600); err != nil {
		t.Fatal(err)
	}
	f = Mount(t, map[string]string{"disk": image}).File("disk")
	return f, want, open(t, f.Path())
}

func open(t *testing.T, path string) int {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("open %s: %v", path, err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// pread reads into memory aligned for O_DIRECT.
func pread(t *testing.T, fd int, off, n int) ([]byte, error) {
	t.Helper()
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(b)
	for {
		got, err := unix.Pread(fd, b, int64(off))
		if err == unix.EINTR {
			continue
		}
		return bytes.Clone(b[:max(got, 0)]), err
	}
}

func wantRead(t *testing.T, fd, off, n int, want []byte) {
	t.Helper()
	if got, err := pread(t, fd, off, n); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read offset %d length %d: got %d bytes, error %v; want %d bytes of the image", off, n, len(got), err, len(want))
	}
}

func wantErrno(t *testing.T, fd, off, n int, want syscall.Errno) {
	t.Helper()
	if got, err := pread(t, fd, off, n); err != want {
		t.Errorf("read offset %d length %d: got %d bytes, error %v; want %v", off, n, len(got), err, want)
	}
}

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not after %v", what, patience)
		}
	}
}

// Without faults a file is its image, and every read of it is one more that came: nothing is cached.
func TestHealthy(t *testing.T) {
	f, want, fd := mounted(t)
	if st, err := os.Stat(f.Path()); err != nil || st.Size() != imageSize || !st.Mode().IsRegular() {
		t.Errorf("stat: got %+v, error %v; want a regular file of %d bytes", st, err, imageSize)
	}
	buffered, err := unix.Open(f.Path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(buffered)
	for _, fd := range []int{fd, buffered} {
		for range 3 {
			before := f.Reads()
			wantRead(t, fd, block, 1<<20, want[block:block+1<<20])
			if got := f.Reads() - before; got < 1 || got > 2 { // memory that starts inside a page takes one more
				t.Errorf("reads that came of one: got %d, want 1 or 2", got)
			}
			wantRead(t, fd, 3<<20, block, want[3<<20:])
			wantRead(t, fd, 4<<20, block, nil)
		}
	}
	if got, err := os.ReadFile(f.Path()); err != nil || !bytes.Equal(got, want) {
		t.Errorf("whole file: got %d bytes, error %v", len(got), err)
	}
	if _, err := os.OpenFile(f.Path(), os.O_RDWR, 0); !errors.Is(err, unix.EROFS) {
		t.Errorf("open for writing: got %v, want EROFS", err)
	}
	if _, err := os.Stat(f.Path() + "0"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("stat of another name: got %v, want ErrNotExist", err)
	}
}

func TestFail(t *testing.T) {
	f, want, fd := mounted(t)
	f.Fail(2*block, block, syscall.EIO)
	f.Fail(8*block, block, syscall.ENODATA)
	wantRead(t, fd, 0, 2*block, want[:2*block])
	wantErrno(t, fd, 0, 3*block, syscall.EIO)
	wantErrno(t, fd, 2*block, block, syscall.EIO)
	wantRead(t, fd, 3*block, 5*block, want[3*block:8*block])
	wantErrno(t, fd, 8*block, 2*block, syscall.ENODATA)
	f.FailAll(syscall.ETIMEDOUT)
	wantErrno(t, fd, 0, block, syscall.ETIMEDOUT)
	f.Heal()
	wantRead(t, fd, 0, 16*block, want[:16*block])
}

func TestShort(t *testing.T) {
	f, want, fd := mounted(t)
	f.Cut(block + 512)
	wantRead(t, fd, 0, 4*block, want[:block+512])
	wantRead(t, fd, 0, block, want[:block])
	f.Short()
	wantRead(t, fd, 0, block, nil)
	if st, err := os.Stat(f.Path()); err != nil || st.Size() != imageSize {
		t.Errorf("size after short reads: got %+v, error %v; want %d", st, err, imageSize)
	}
	f.Heal()
	wantRead(t, fd, 0, block, want[:block])
}

func TestLose(t *testing.T) {
	f, want, fd := mounted(t)
	f.After(3, f.Lose)
	wantRead(t, fd, 0, block, want[:block])
	wantRead(t, fd, 0, block, want[:block])
	wantErrno(t, fd, 0, block, syscall.ENXIO)
	if _, err := unix.Open(f.Path(), unix.O_RDONLY, 0); err != syscall.ENXIO {
		t.Errorf("open: got %v, want ENXIO", err)
	}
	f.Heal()
	wantRead(t, fd, 0, block, want[:block])
}

// A read that hangs holds up no other, of its own file outside of the range neither.
func TestHang(t *testing.T) {
	f, want, fd := mounted(t)
	for name, end := range map[string]struct {
		call func()
		want error
	}{"Release": {f.Release, nil}, "Heal": {f.Heal, nil}, "Lose": {f.Lose, syscall.ENXIO}} {
		f.HangRange(block, block)
		got := make(chan error)
		go func() {
			b, err := pread(t, fd, 0, 4*block)
			if err == nil && !bytes.Equal(b, want[:4*block]) {
				err = errors.New("wrong bytes")
			}
			got <- err
		}()
		eventually(t, "a read hangs", func() bool { return f.Held() == 1 })
		wantRead(t, fd, 2*block, block, want[2*block:3*block])
		if f.Held() != 1 {
			t.Errorf("%s: %d reads hang before it, want 1", name, f.Held())
		}
		end.call()
		if err := <-got; err != end.want {
			t.Errorf("%s: the read that hung: error %v, want %v", name, err, end.want)
		}
		f.Heal()
	}
}

func TestDelay(t *testing.T) {
	f, want, fd := mounted(t)
	f.Delay(time.Millisecond)
	wantRead(t, fd, 0, block, want[:block])
	f.Delay(time.Hour)
	got := make(chan error)
	go func() { _, err := pread(t, fd, 0, block); got <- err }()
	eventually(t, "a read waits", func() bool { return f.Held() == 1 })
	f.Delay(time.Millisecond) // passed since long ago
	if err := <-got; err != nil {
		t.Error(err)
	}
}

// A process whose read hangs can be killed, and ends by itself when another of its threads says so.
func TestKill(t *testing.T) {
	f, _, _ := mounted(t)
	f.Hang()
	cmd := exec.Command("dd", "if="+f.Path(), "of=/dev/null", "iflag=direct", "bs=4096", "count=1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "dd hangs", func() bool { return f.Held() == 1 })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var status *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &status) || status.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("dd ended with %v, want by SIGKILL", err)
	}
	eventually(t, "nothing hangs", func() bool { return f.Held() == 0 })
}

// The end of a mount answers what hangs, and leaves neither mount nor goroutine, also with files open.
func TestClose(t *testing.T) {
	f, _, _ := mounted(t)
	leaks := goleak.IgnoreCurrent()
	dir := t.TempDir()
	fs, err := mount(dir, map[string]string{"a": f.image.Name(), "b": f.image.Name()})
	if err != nil {
		t.Fatal(err)
	}
	b := fs.File("b")
	fd := open(t, b.Path())
	b.Hang()
	got := make(chan error)
	go func() { _, err := pread(t, fd, 0, block); got <- err }()
	eventually(t, "a read hangs", func() bool { return b.Held() == 1 })
	if err := fs.close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err == nil {
		t.Error("a read that hung to the end has no error")
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("still mounted at %s, error %v", dir, err)
	}
	goleak.VerifyNone(t, leaks)
}

// A block device over a file: its faults are those of a disk.
func TestLoop(t *testing.T) {
	f, want, _ := mounted(t)
	path := f.Loop(t)
	fd := open(t, path)
	dio, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(path), "loop/dio"))
	if err != nil || strings.TrimSpace(string(dio)) != "1" {
		t.Errorf("direct I/O of %s: got %q, error %v; want 1", path, dio, err)
	}
	for range 2 {
		before := f.Reads()
		wantRead(t, fd, 0, 4*block, want[:4*block])
		if f.Reads() == before {
			t.Error("a read of the device is none of the file")
		}
	}
	f.Fail(2*block, block, syscall.EIO)
	wantErrno(t, fd, 2*block, block, syscall.EIO)
	wantRead(t, fd, 3*block, block, want[3*block:4*block])
	f.Lose()
	wantErrno(t, fd, 0, block, syscall.EIO)
	f.Heal()
	f.Short()
	wantErrno(t, fd, 0, block, syscall.EIO)
	f.Cut(block)
	wantRead(t, fd, 0, 4*block, want[:4*block])
	f.Heal()
	wantRead(t, fd, 0, 4*block, want[:4*block])
	f.Hang()
	got := make(chan error)
	go func() { _, err := pread(t, fd, 0, block); got <- err }()
	eventually(t, "a read hangs", func() bool { return f.Held() > 0 })
	f.Release()
	if err := <-got; err != nil {
		t.Error(err)
	}
}
