package devio

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestModel gives the answers of a made up /sys.
func TestModel(t *testing.T) {
	sys := t.TempDir()
	disk := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(sys, "devices", name, "device"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sys, "devices", name, "device/model"), []byte(text), 0o644); err != nil {
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
	disk("sda", "ST4000VN008-2DR1 \n")
	disk("nvme0n1", strings.Repeat("x", 4096))
	link("8:0", "sda")
	link("8:1", "sda/sda1")
	link("259:0", "nvme0n1")
	link("7:0", "loop0")
	for _, tc := range []struct {
		name         string
		major, minor uint32
		want         string
	}{
		{"disk", 8, 0, "ST4000VN008-2DR1"},
		{"partition of a disk", 8, 1, "ST4000VN008-2DR1"},
		{"a name without end", 259, 0, strings.Repeat("x", maxModel)},
		{"no model", 7, 0, ""},
		{"no such device", 8, 16, ""},
	} {
		if got := model(sys, unix.Mkdev(tc.major, tc.minor)); got != tc.want {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
	}
	path, _ := writeFile(t, 4096)
	if got := open(t, path, Options{}).Model(); got != "" {
		t.Errorf("a file has the model %q", got)
	}
}
