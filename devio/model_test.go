package devio

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestModel(t *testing.T) {
	sys := fakeSys{t, t.TempDir()}
	sys.write("sda", "device/model", "ST4000VN008-2DR1 \n")
	sys.write("nvme0n1", "device/model", strings.Repeat("x", 4096))
	sys.link("8:0", "sda")
	sys.link("8:1", "sda/sda1")
	sys.link("259:0", "nvme0n1")
	sys.link("7:0", "loop0")
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
		if got := model(sys.dir, unix.Mkdev(tc.major, tc.minor)); got != tc.want {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
	}
	path, _ := writeFile(t, 4096)
	if got := open(t, path, Options{}).Model(); got != "" {
		t.Errorf("a file has the model %q", got)
	}
}
