package devio

import (
	"bytes"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// attachLoop makes a block device of the file path, for the time of the test.
func attachLoop(t testing.TB, path string, sector int) (dev string) {
	t.Helper()
	if os.Getenv("BTREXPORT_E2E") != "1" {
		t.Skip("uses a loop device: set BTREXPORT_E2E=1 to run it")
	}
	if os.Geteuid() != 0 {
		t.Skip("attaching a loop device needs root")
	}
	out, err := exec.Command("losetup", "--find", "--show", "--read-only", "--sector-size", strconv.Itoa(sector), path).Output()
	if err != nil {
		t.Skipf("losetup: %v", err)
	}
	dev = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup --detach %s: %v: %s", dev, err, out)
		}
	})
	return dev
}

func TestLoopDevice(t *testing.T) { forEngines(t, testLoopDevice) }

func testLoopDevice(t *testing.T, e Engine) {
	for _, sector := range []int{512, 4096} {
		for name, buffered := range map[string]bool{"direct": false, "buffered": true} {
			t.Run(strconv.Itoa(sector)+" "+name, func(t *testing.T) {
				path, data := writeFile(t, 1<<20)
				dev := attachLoop(t, path, sector)
				var warnings bytes.Buffer
				q := open(t, dev, Options{Engine: e, Buffered: buffered, Log: slog.New(slog.NewTextHandler(&warnings, nil))})
				if got := q.Size(); got != 1<<20 {
					t.Errorf("size: got %d, want %d", got, 1<<20)
				}
				if !buffered && (!q.Direct() || q.Align() != sector) {
					t.Errorf("direct %v, align %d, want true, %d", q.Direct(), q.Align(), sector)
				}
				done := make(arrivals, 256)
				var batch []*Read
				for off := 0; off <= len(data); off += 2 * maxAlign {
					mem := aligned(2 * maxAlign)
					batch = append(batch, &Read{Off: Physical(off), Bufs: [][]byte{mem[:maxAlign], mem[maxAlign:]}, Done: done})
				}
				q.Submit(batch)
				for range batch {
					checkRead(t, done.next(t), data)
				}
				if warnings.Len() != 0 {
					t.Errorf("warned: %s", &warnings)
				}
			})
		}
	}
}

// TestSameLoopDevice knows a block device by its number under any node, and not for the file that backs it.
func TestSameLoopDevice(t *testing.T) {
	path, _ := writeFile(t, 1<<20)
	dev, second := attachLoop(t, path, 512), attachLoop(t, path, 512)
	st, err := os.Stat(dev)
	if err != nil {
		t.Fatal(err)
	}
	node := path + ".node"
	if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(st.Sys().(*syscall.Stat_t).Rdev)); err != nil {
		t.Skipf("mknod: %v", err)
	}
	q := open(t, dev, Options{})
	for p, want := range map[string]bool{dev: true, node: true, second: false, path: false} {
		if got := q.Same(open(t, p, Options{})); got != want {
			t.Errorf("%s: the same %v, want %v", p, got, want)
		}
	}
}
