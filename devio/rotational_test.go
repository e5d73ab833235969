package devio

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// fakeSys is a made up /sys: directories of disks and partitions, and links to them.
type fakeSys struct {
	t   *testing.T
	dir string
}

// write gives a disk a file.
func (s fakeSys) write(disk, file, text string) {
	s.t.Helper()
	path := filepath.Join(s.dir, "devices", disk, file)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// link gives a disk or a partition its numbers.
func (s fakeSys) link(numbers, to string) {
	s.t.Helper()
	if err := os.MkdirAll(filepath.Join(s.dir, "devices", to), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Symlink("devices/"+to, filepath.Join(s.dir, numbers)); err != nil {
		s.t.Fatal(err)
	}
}

func TestRotational(t *testing.T) {
	sys := fakeSys{t, t.TempDir()}
	sys.write("sda", "queue/rotational", "1\n")
	sys.write("nvme0n1", "queue/rotational", "0\n")
	sys.write("odd", "queue/rotational", "")
	sys.link("8:0", "sda")
	sys.link("8:1", "sda/sda1")
	sys.link("259:0", "nvme0n1")
	sys.link("259:1", "nvme0n1/nvme0n1p1")
	sys.link("7:0", "odd")
	for _, tc := range []struct {
		name         string
		major, minor uint32
		want         bool
	}{
		{"disk", 8, 0, true},
		{"partition of a disk", 8, 1, true},
		{"flash", 259, 0, false},
		{"partition of flash", 259, 1, false},
		{"empty answer", 7, 0, false},
		{"no such device", 8, 16, false},
		{"anonymous", 0, 42, false},
	} {
		if got := rotational(sys.dir, unix.Mkdev(tc.major, tc.minor)); got != tc.want {
			t.Errorf("%s: got %v, want %v", tc.name, got, tc.want)
		}
	}
}

// TestRotationalFile holds what a queue says of a file against the disk that the file lies on, if it has one.
func TestRotationalFile(t *testing.T) {
	path, _ := writeFile(t, 4096)
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if got, want := open(t, path, Options{}).Rotational(), rotational(sysBlock, st.Dev); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestRotationalLoop: a block device answers for itself, not for where its node is.
func TestRotationalLoop(t *testing.T) {
	path, _ := writeFile(t, 1<<20)
	dev := attachLoop(t, path, 512)
	b, err := os.ReadFile("/sys/block/" + filepath.Base(dev) + "/queue/rotational")
	if err != nil {
		t.Skip(err)
	}
	if got, want := open(t, dev, Options{}).Rotational(), b[0] == '1'; got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}
