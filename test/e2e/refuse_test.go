//go:build linux

package e2e

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// A filesystem that the kernel writes to is refused, by its device and by the image file under it,
// with a line that says where it is mounted; --allow-mounted reads it.
func TestMountedReadWrite(t *testing.T) {
	need(t, "nbdcopy")
	ctx, rng := bounded(t), chance(t)
	k := makeTruth(ctx, t, kernelfs.Options{Devices: 2, DeviceSize: 512 << 20, Data: "raid1", Metadata: "raid1"}, func(tree *kernelfs.Tree) {
		tree.Plain("big", 5<<20+99)
		tree.Random(rng.Uint64(), kernelfs.RandomOptions{Ops: 60, MaxFile: 1 << 20})
	})
	k.unmount(t)
	mnt, err := k.fs.Mount("subvolid=5")
	if err != nil {
		t.Fatal(err)
	}
	k.mnt = mnt
	tree := kernelfs.NewTree(ctx, mnt, kernelfs.Content{Seed: 2, Noise: true})
	tree.WriteAt("big", 1<<20, 300000)
	tree.Sync()
	if err := tree.Err(); err != nil {
		t.Fatal(err)
	}
	files := []served{{name: "big", path: "/big", want: k.read(t, "big")}}
	for name, devices := range map[string][]string{"device": k.fs.Loops(), "image": k.fs.Images()} {
		t.Run(name, func(t *testing.T) {
			args := append(shuffled(rng, devices), exports(files)...)
			checkRefused(ctx, t, mnt, append([]string{"serve"}, args...))
			checkRefused(ctx, t, mnt, append([]string{"ls"}, shuffled(rng, devices)...))
			s := serve(t, append(args, "--allow-mounted")...)
			s.checkRandomReads(ctx, t, rng, files[0], 500)
			out := filepath.Join(t.TempDir(), "out")
			must(ctx, t, "nbdcopy", "--no-extents", s.uri("big"), out)
			sameFile(t, "nbdcopy", out, files[0].want)
		})
	}
}

// checkRefused wants a command to end at once, with a line that names mnt and a remedy, and nothing
// to listen at a socket or a metrics port.
func checkRefused(ctx context.Context, t *testing.T, mnt string, args []string) {
	t.Helper()
	socket := ""
	if args[0] == "serve" {
		socket = shortDir(t, "") + "/nbd.sock"
		args = append(args, "-l", "unix://"+socket)
	}
	o := run(ctx, t, program(t, plainBinary), args...)
	if o.status != 2 || o.out != "" {
		t.Errorf("%q: got exit status %d and output %q, want 2 and none", args, o.status, o.out)
	}
	line := ""
	for l := range strings.Lines(o.errOut) {
		if strings.HasPrefix(l, "btrexport: ") {
			line += l
		}
	}
	if strings.Count(line, "\n") != 1 || !strings.Contains(line, mnt) || !strings.Contains(line, "--allow-mounted") {
		t.Errorf("%q says\n%swant one line that names %s and --allow-mounted", args, o.errOut, mnt)
	}
	if socket == "" {
		return
	}
	if _, err := os.Lstat(socket); !os.IsNotExist(err) {
		t.Errorf("%s: got %v, want that it does not exist", socket, err)
	}
	if conn, err := new(net.Dialer).DialContext(ctx, "unix", socket); err == nil {
		_ = conn.Close()
		t.Errorf("%s: somebody listens", socket)
	}
}

// Devices with logical blocks of 4096 bytes take no smaller direct reads.
func TestLogicalBlocksOf4096(t *testing.T) {
	need(t, foreignTools...)
	ctx, rng := bounded(t), chance(t)
	k := makeTruth(ctx, t, kernelfs.Options{Devices: 3, DeviceSize: 512 << 20, Data: "raid0", Metadata: "raid1"}, func(tree *kernelfs.Tree) {
		tree.Plain("big", 9<<20+512)
		tree.Zoo("zoo")
		tree.Random(rng.Uint64(), kernelfs.RandomOptions{Ops: 60, MaxFile: 1 << 20})
	})
	files := k.choose(t, rng, 2, 4)
	k.unmount(t)
	for _, path := range k.fs.Loops() {
		setBlockSize(t, path, 4096)
	}
	var err error
	if k.mnt, err = k.fs.Mount("ro", "subvolid=5"); err != nil {
		t.Fatal(err)
	}
	devices := shuffled(rng, k.fs.Loops())
	k.checkListing(ctx, t, devices)
	k.checkCp(ctx, t, rng, devices)
	s := serve(t, append(devices, exports(files)...)...)
	for i, f := range files {
		if i == 0 {
			s.checkForeign(ctx, t, rng, f)
		}
		s.checkRandomReads(ctx, t, rng, f, 1000)
	}
}

// setBlockSize changes the logical block size of a loop device that nobody has mounted.
func setBlockSize(t *testing.T, path string, size int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_SET_BLOCK_SIZE, size); err != nil {
		t.Fatalf("%s: block size %d: %v", path, size, err)
	}
	got, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET)
	if err != nil || got != size {
		t.Fatalf("%s: got logical blocks of %d, error %v; want %d", path, got, err, size)
	}
}
