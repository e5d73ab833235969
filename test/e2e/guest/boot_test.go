//go:build linux

package guest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// TestBoot: a machine boots from a disk image that lies zstd-compressed in a RAID1 btrfs of which one copy of
// the image is ruined, by QEMU's NBD client: with an overlay for its writes, which the second boot finds, and
// read-only. testdata/boot.sh and testdata/rootinit.sh are its side.
func TestBoot(t *testing.T) {
	need(t, "qemu-img", "mkfs.ext4")
	if err := kernelfs.Usable(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	ctx := bounded(t)
	image, payload := makeImage(ctx, t)
	disks := makeRAID1(ctx, t, image)
	ruinCopies(ctx, t, disks)
	s := newServer(t, "-d", disks[0], "-d", disks[1], "-e", "vm1=/vm1.raw")
	initramfs := newTree(t, "boot.sh").write(t)

	// As docs/vm.md has it.
	overlay := filepath.Join(t.TempDir(), "overlay.qcow2")
	must(ctx, t, "qemu-img", "create", "-f", "qcow2", "-F", "raw", "-b", "nbd://127.0.0.1:"+s.Port+"/vm1", overlay)
	for _, before := range []string{"", "kept"} {
		boot(ctx, t, initramfs, nil, "-drive", "file="+overlay+",if=virtio").
			check(t, map[string]string{"root": "/dev/vda /mnt ext4", "payload": payload, "before": before, "write": "done"})
	}
	boot(ctx, t, initramfs, nil, "-blockdev", "driver=nbd,node-name=vm1,server.type=inet,server.host=127.0.0.1,server.port="+s.Port+
		",export=vm1,read-only=on,reconnect-delay=60", "-device", "virtio-blk-pci,drive=vm1").
		check(t, map[string]string{"root": "/dev/vda /mnt ext4", "payload": payload, "before": "", "write": "refused"})

	if n := s.counter(ctx, t, `btrexport_reads_repaired_total\{.*source="mirror"\}`); n == 0 {
		t.Error("no read was repaired")
	}
	if n := s.counter(ctx, t, `btrexport_reads_lost_total\{.*\}`); n != 0 {
		t.Errorf("%v blocks lost", n)
	}
}

// makeImage makes an ext4 of 32 MiB that a machine can boot from, without root: busybox, an init, and 8 MiB of
// bytes that compress to a half. It returns its path and the SHA-256 of these bytes.
func makeImage(ctx context.Context, t *testing.T) (path, payload string) {
	t.Helper()
	root := t.TempDir()
	for _, d := range []string{"bin", "sbin", "dev", "proc", "sys"} {
		if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b := make([]byte, 8<<20)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(rng.Uint32() & 0xf)
	}
	sum := sha256.Sum256(b)
	write(t, filepath.Join(root, "payload"), b)
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	for to, from := range map[string]string{"bin/busybox": busybox, "sbin/init": "testdata/rootinit.sh"} {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(root, to), b)
	}
	for _, name := range []string{"sh", "cat", "cut", "mount", "poweroff", "sha256sum", "sync"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	path = filepath.Join(t.TempDir(), "vm1.raw")
	must(ctx, t, "mkfs.ext4", "-q", "-d", root, path, "32M")
	return path, hex.EncodeToString(sum[:])
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o755); err != nil {
		t.Fatal(err)
	}
}

// makeRAID1 copies a file into the root of a new filesystem, compressed, and returns its two image files.
func makeRAID1(ctx context.Context, t *testing.T, file string) []string {
	t.Helper()
	fs, err := kernelfs.Make(ctx, t.TempDir(), kernelfs.Options{Devices: 2, DeviceSize: 256 << 20, Data: "raid1", Metadata: "raid1", Label: "vms"})
	if err != nil {
		t.Fatal(err)
	}
	disks := fs.Images()
	defer func() {
		if err := fs.Close(); err != nil {
			t.Error(err)
		}
	}()
	mnt, err := fs.Mount("compress-force=zstd")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(mnt, "vm1.raw"), b)
	if err := fs.Unmount(); err != nil {
		t.Fatal(err)
	}
	return disks
}

// ruinCopies overwrites the first device's copy of every extent of the image.
func ruinCopies(ctx context.Context, t *testing.T, disks []string) {
	t.Helper()
	text := must(ctx, t, program(t), "map", "--json", "-d", disks[0], "-d", disks[1], "/vm1.raw")
	zstd := 0
	for line := range strings.Lines(text) {
		var e struct {
			Compression string
			DiskBytes   int `json:"disk_bytes"`
			Copies      []struct {
				Device   string
				Physical int64
			}
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("map: %v: %s", err, line)
		}
		if e.Compression == "zstd" {
			zstd++
		}
		for _, c := range e.Copies {
			if c.Device != disks[0] {
				continue
			}
			f, err := os.OpenFile(c.Device, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			_, err = f.WriteAt(make([]byte, e.DiskBytes), c.Physical)
			if e := f.Close(); err != nil || e != nil {
				t.Fatal(err, e)
			}
		}
	}
	if zstd == 0 {
		t.Fatal("no extent is compressed")
	}
}

// counter adds the series that match a pattern.
func (s *server) counter(ctx context.Context, t *testing.T, pattern string) float64 {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.metrics+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^`+pattern+` (\S+)$`).FindAllSubmatch(b, -1)
	if found == nil {
		t.Fatalf("no series %s", pattern)
	}
	total := 0.0
	for _, m := range found {
		v, err := strconv.ParseFloat(string(m[1]), 64)
		if err != nil {
			t.Fatal(err)
		}
		total += v
	}
	return total
}
