package devio

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRotational gives the answers of a made up /sys: directories of disks and partitions, and links to them.
func TestRotational(t *testing.T) {
	sys := t.TempDir()
	write := func(disk, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(sys, "devices", disk, "queue"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sys, "devices", disk, "queue/rotational"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	link := func(numbers, to string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(sys, "devices", to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("devices/"+to, filepath.Join(sys, numbers)); err != nil {
			t.Fatal(err)
		}
	}
	write("sda", "1\n")
	write("nvme0n1", "0\n")
	write("odd", "")
	link("8:0", "sda")
	link("8:1", "sda/sda1")
	link("259:0", "nvme0n1")
	link("259:1", "nvme0n1/nvme0n1p1")
	link("7:0", "odd")
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
		if got := rotational(sys, unix.Mkdev(tc.major, tc.minor)); got != tc.want {
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
