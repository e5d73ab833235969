//go:build linux

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// TestRecordedErrors has a scrub find blocks that were ruined on one disk, and wants of our metrics what the kernel then
// says of each device.
func TestRecordedErrors(t *testing.T) {
	need(t, "btrfs")
	ctx := bounded(t)
	fs, err := kernelfs.Make(ctx, t.TempDir(), kernelfs.Options{Devices: 2, DeviceSize: 256 << 20, Data: "raid1", Metadata: "raid1", Label: "noted"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fs.Close(); err != nil {
			t.Error(err)
		}
	})
	mount := func() string {
		t.Helper()
		mnt, err := fs.Mount()
		if err != nil {
			t.Fatal(err)
		}
		return mnt
	}
	unmount := func() {
		t.Helper()
		if err := fs.Unmount(); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(mount(), "f"), bytes.Repeat([]byte("some data\n"), 1<<17), 0o600); err != nil {
		t.Fatal(err)
	}
	unmount()
	images := fs.Images()
	devices := []string{"-d", images[0], "-d", images[1]}
	ruinFirst(ctx, t, "/f", devices, images[1])
	mnt := mount()
	run(ctx, t, "btrfs", "scrub", "start", "-B", mnt) // exit status 3: it found errors
	stats := must(ctx, t, "btrfs", "device", "stats", mnt)
	unmount()

	want := make(map[string]float64)
	for _, m := range regexp.MustCompile(`\[(.*)\]\.(write_io|read_io|flush_io|corruption|generation)_errs +(\d+)`).FindAllStringSubmatch(stats, -1) {
		for i, loop := range fs.Loops() {
			if loop == m[1] {
				var n float64
				if _, err := fmt.Sscan(m[3], &n); err != nil {
					t.Fatal(err)
				}
				want[fmt.Sprintf(`btrexport_device_recorded_errors{devid="%d",filesystem="noted",kind="%s"}`, i+1, strings.TrimSuffix(m[2], "_io"))] = n
			}
		}
	}
	if len(want) != 10 || want[`btrexport_device_recorded_errors{devid="2",filesystem="noted",kind="corruption"}`] == 0 {
		t.Fatalf("the kernel noted no corruption: the test proves nothing\n%s", stats)
	}
	all := serve(t, append(devices, "-e", "f=/f")...).scrape(ctx, t)
	for name, n := range want {
		if got, there := all[name]; !there || got != n {
			t.Errorf("%s: got %v (there: %v), the kernel says %v", name, got, there, n)
		}
	}
}
