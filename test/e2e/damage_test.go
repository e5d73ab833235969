//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/btrexport/btrexport/export/nbdclient"
	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// redundant are the profiles with copies, and how many of each block.
var redundant = []struct {
	profile         string
	devices, copies int
}{
	{"dup", 1, 2}, {"raid1", 2, 2}, {"raid1", 3, 2}, {"raid1c3", 3, 3}, {"raid1c4", 4, 4}, {"raid10", 4, 2},
}

// victim is a file of which one block loses all of its copies.
const victim = "victim"

// damaged is a filesystem with ruined copies, no longer mounted.
type damaged struct {
	*truth
	*copies
	files   []served // with checksums
	profile string
	n       int // copies of each block
}

// makeDamaged makes a filesystem and ruins one to most copies of a third of its data blocks that
// have checksums, and of all its tree blocks.
func makeDamaged(ctx context.Context, t *testing.T, rng *rand.Rand, profile string, devices, n, most int) *damaged {
	t.Helper()
	o := kernelfs.Options{Devices: devices, DeviceSize: 512 << 20, Data: profile, Metadata: profile, Nodesize: []int{4096, 16384, 65536}[rng.IntN(3)]}
	k := makeTruth(ctx, t, o, func(tree *kernelfs.Tree) {
		tree.Random(rng.Uint64(), kernelfs.RandomOptions{Ops: 100, MaxFile: 2 << 20, Subvols: 3})
		tree.Fragment("fragments", 600, rng.Uint64())
		tree.Plain(victim, 3<<20)
	})
	d := &damaged{truth: k, profile: profile, n: n}
	for i, e := range k.regular() {
		if !e.NoCOW {
			d.files = append(d.files, served{name: fmt.Sprint(i), path: "/" + string(e.Path), want: k.read(t, e.Path)})
		}
	}
	k.unmount(t)
	d.copies = findCopies(t, k.fs.Images(), o.Nodesize)
	data, err := d.ruinSome(d.dataBlocks(), 3, sector, most, rng)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := d.ruinSome(d.blocks(n), 1, o.Nodesize, most, rng)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s over %d devices, nodesize %d: ruined %d copies of data blocks and %d of tree blocks", profile, devices, o.Nodesize, data, tree)
	if data < 100 || tree < 2 {
		t.Fatalf("found too few blocks to ruin: the test proves nothing")
	}
	return d
}

// dataBlocks lists the copies of every block of the files, each once.
func (d *damaged) dataBlocks() [][]place {
	seen := make(map[place]bool)
	var lists [][]place
	for _, f := range d.files {
		for off := 0; off < len(f.want); off += sector {
			var block [sector]byte // the kernel fills the last one with zeroes
			copy(block[:], f.want[off:])
			if list := d.of(block[:], d.n); list != nil && !seen[list[0]] {
				seen[list[0]] = true
				lists = append(lists, list)
			}
		}
	}
	return lists
}

// readAll reads every file whole, three times and in short ranges, and compares.
func (d *damaged) readAll(ctx context.Context, t *testing.T, rng *rand.Rand, s *server) {
	t.Helper()
	for _, f := range d.files {
		c := s.dial(ctx, t, f.name)
		got := make([]byte, len(f.want))
		for range 3 {
			if n, err := c.ReadAt(got, 0); err != nil || diff(got[:n], f.want) != "" {
				t.Fatalf("%s: %d bytes, error %v; %s", f.path, n, err, diff(got[:n], f.want))
			}
		}
		if err := readRandom(c, f.want, rng.Uint64(), 64, 8, 256<<10); err != nil {
			t.Fatalf("%s: %v", f.path, err)
		}
		_ = c.Close()
	}
}

// While one good copy of each block is left, every byte is served right, and the counters agree with
// each other.
func TestRuinedCopies(t *testing.T) {
	need(t, "nbdcopy", "gcc") // gcc: for the race detector's binary
	cases, metadata := 0, 0.0
	for _, c := range redundant {
		for most := 1; most < c.copies; most++ {
			t.Run(fmt.Sprintf("%s-%d-ruined-%d", c.profile, c.devices, most), func(t *testing.T) {
				ctx, rng := bounded(t), chance(t)
				d := makeDamaged(ctx, t, rng, c.profile, c.devices, c.copies, most)
				devices := shuffled(rng, d.fs.Loops())
				s := launch{command: []string{program(t, raceBinary)}}.serve(t, append(append(devices, patient), exports(d.files)...)...)
				d.readAll(ctx, t, rng, s)
				out := filepath.Join(t.TempDir(), "out")
				for i := range 5 {
					f := d.files[rng.IntN(len(d.files))]
					must(ctx, t, "nbdcopy", "--no-extents", s.uri(f.name), out)
					sameFile(t, "nbdcopy of "+f.path, out, f.want)
					f = d.files[(rng.IntN(len(d.files))+i)%len(d.files)]
					must(ctx, t, program(t, plainBinary), append([]string{"cp", "-f"}, append(devices, f.path, out)...)...)
					sameFile(t, "cp of "+f.path, out, f.want)
				}
				m := s.scrape(ctx, t)
				checkRepairs(t, m, most == 1)
				cases++
				metadata += m.sum("btrexport_checksum_failures_total", `kind="metadata"`)
			})
		}
	}
	// Few tree blocks are read, and each is asked of any copy first: one case may meet no ruined one.
	if cases > 5 && metadata == 0 {
		t.Errorf("checksum failures of metadata: got none in %d cases", cases)
	}
}

// checkRepairs wants counters of which each follows from the others. A block that one copy failed is
// one retry and one repair; if more than one may fail there are more retries than repairs.
func checkRepairs(t *testing.T, m series, oneEach bool) {
	t.Helper()
	failures := m.sum("btrexport_checksum_failures_total")
	retries := m.sum("btrexport_read_retries_total", `reason="checksum"`)
	repaired := m.sum("btrexport_reads_repaired_total", `source="mirror"`)
	t.Logf("checksum failures %v, retries %v, repaired %v", failures, retries, repaired)
	if failures == 0 || failures != retries {
		t.Errorf("checksum failures: got %v, want as many as retries, %v, and some", failures, retries)
	}
	if data := m.sum("btrexport_checksum_failures_total", `kind="data"`); data == 0 {
		t.Errorf("checksum failures of data: got 0 of %v", failures)
	}
	if repaired == 0 || repaired > retries || oneEach && repaired != retries {
		t.Errorf("repaired: got %v of %v retries", repaired, retries)
	}
	for _, none := range []string{"btrexport_reads_lost_total", "btrexport_device_read_errors_total"} {
		if got := m.sum(none); got != 0 {
			t.Errorf("%s: got %v, want 0", none, got)
		}
	}
	if got := m.sum("btrexport_read_retries_total", `reason="io"`); got != 0 {
		t.Errorf("retries for I/O errors: got %v, want 0", got)
	}
	if got := m.sum("btrexport_nbd_requests_total", `result="error"`); got != 0 {
		t.Errorf("requests that failed: got %v, want 0", got)
	}
}

// A block without any good copy is an error for exactly the reads that touch it: never other bytes,
// never the connection's end. The kernel is no oracle here, the content from before is.
func TestLostBlock(t *testing.T) {
	need(t, "nbdcopy", "qemu-img")
	for _, c := range redundant {
		t.Run(fmt.Sprintf("%s-%d", c.profile, c.devices), func(t *testing.T) {
			ctx, rng := bounded(t), chance(t)
			d := makeDamaged(ctx, t, rng, c.profile, c.devices, c.copies, 1)
			f, lost := d.lose(t, rng)
			devices := shuffled(rng, d.fs.Loops())
			s := serve(t, append(append(devices, patient), exports(d.files)...)...)
			checkLostReads(ctx, t, rng, s, f, lost)
			if got := s.scrape(ctx, t).sum("btrexport_reads_lost_total"); got == 0 {
				t.Error("reads_lost: got 0, want more")
			}
			d.checkLostCopies(ctx, t, s, f, lost, devices)
			if got := s.scrape(ctx, t).sum("btrexport_nbd_requests_total", `result="error"`); got == 0 {
				t.Error("requests that failed: got 0, want more")
			}
			d.files = withoutVictim(d.files)
			d.readAll(ctx, t, rng, s)
		})
	}
}

func withoutVictim(files []served) []served {
	var rest []served
	for _, f := range files {
		if f.path != "/"+victim {
			rest = append(rest, f)
		}
	}
	return rest
}

// lose ruins every copy of one block in the middle of the victim and returns the block's offset.
func (d *damaged) lose(t *testing.T, rng *rand.Rand) (served, int) {
	t.Helper()
	for _, f := range d.files {
		if f.path != "/"+victim {
			continue
		}
		fresh := findCopies(t, d.images, d.node)
		for range 1000 {
			lost := (1 + rng.IntN(len(f.want)/sector-2)) * sector
			if list := fresh.of(f.want[lost:lost+sector], d.n); list != nil { // none of them ruined yet
				for _, p := range list {
					if err := d.ruin(p, sector, rng); err != nil {
						t.Fatal(err)
					}
				}
				return f, lost
			}
		}
	}
	t.Fatal("no block of the victim has all of its copies")
	return served{}, 0
}

// checkLostReads reads on one connection what touches the lost block, and what does not.
func checkLostReads(ctx context.Context, t *testing.T, rng *rand.Rand, s *server, f served, lost int) {
	t.Helper()
	c := s.dial(ctx, t, f.name)
	buf := make([]byte, 64<<10)
	for range 300 {
		off := max(0, min(lost-2*sector+rng.IntN(5*sector), len(f.want)-1))
		n := min(1+rng.IntN(3*sector), len(f.want)-off)
		got, err := c.ReadAt(buf[:n], int64(off))
		touches := off < lost+sector && off+n > lost
		var refused *nbdclient.ReadError
		switch {
		case touches && (!errors.As(err, &refused) || !errors.Is(err, syscall.EIO)):
			t.Fatalf("read offset %d length %d over the lost block at %d: got %d bytes, error %v; want EIO", off, n, lost, got, err)
		case !touches && err != nil:
			t.Fatalf("read offset %d length %d beside the lost block at %d: %v", off, n, lost, err)
		case !touches && diff(buf[:n], f.want[off:off+n]) != "":
			t.Fatalf("read offset %d length %d beside the lost block at %d: %s", off, n, lost, diff(buf[:n], f.want[off:off+n]))
		}
	}
	for off := 0; off < len(f.want); off += sector {
		n := min(sector, len(f.want)-off)
		_, err := c.ReadAt(buf[:n], int64(off))
		if (err != nil) != (off == lost) {
			t.Fatalf("block at %d: error %v, while the lost one is at %d", off, err, lost)
		}
		if err == nil && diff(buf[:n], f.want[off:off+n]) != "" {
			t.Fatalf("block at %d: %s", off, diff(buf[:n], f.want[off:off+n]))
		}
	}
}

// checkLostCopies wants every tool that copies the file to fail, and cp to say where and why.
func (d *damaged) checkLostCopies(ctx context.Context, t *testing.T, s *server, f served, lost int, devices []string) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	o := run(ctx, t, program(t, plainBinary), append([]string{"cp"}, append(devices, f.path, out)...)...)
	if o.status != 1 {
		t.Errorf("cp: exit status %d, want 1\n%s", o.status, o.errOut)
	}
	if !strings.Contains(o.errOut, fmt.Sprintf("offset %d ", lost)) || strings.Count(o.errOut, "devid ") != d.n || strings.Count(o.errOut, "\n") != 1 {
		t.Errorf("cp says\n%swant one line with offset %d and %d copies", o.errOut, lost, d.n)
	}
	if list, err := os.ReadDir(filepath.Dir(out)); err != nil || len(list) != 0 {
		t.Errorf("cp left %v behind, error %v; want nothing", list, err)
	}
	if o := run(ctx, t, "nbdcopy", s.uri(f.name), out); o.status == 0 {
		t.Error("nbdcopy: exit status 0, want another")
	}
	if o := run(ctx, t, "qemu-img", "convert", "-f", "raw", "-O", "raw", s.uri(f.name), out); o.status == 0 {
		t.Error("qemu-img convert: exit status 0, want another")
	}
}

// A leaf without any good copy loses the extents that it lists: reads of those fail, all others are
// right, and nothing is taken for a hole.
func TestLostTreeBlock(t *testing.T) {
	need(t)
	ctx, rng := bounded(t), chance(t)
	o := kernelfs.Options{Devices: 2, DeviceSize: 512 << 20, Data: "raid1", Metadata: "raid1", Nodesize: 4096}
	const blocks = 2000
	k := makeTruth(ctx, t, o, func(tree *kernelfs.Tree) { tree.Fragment("fragments", blocks, rng.Uint64()) })
	f := served{name: "fragments", path: "/fragments", want: k.read(t, "fragments")}
	inode := k.regular()[0].Ino
	k.unmount(t)
	lost := (blocks/4 + rng.IntN(blocks/2)) * sector
	c := findCopies(t, k.fs.Images(), o.Nodesize)
	if err := c.ruinLeaves(inode, uint64(lost), rng); err != nil {
		t.Fatal(err)
	}
	s := serve(t, append(append(shuffled(rng, k.fs.Loops()), patient), exports([]served{f})...)...)
	client := s.dial(ctx, t, f.name)
	good, failed := 0, 0
	for off := 0; off < len(f.want); off += sector {
		var buf [sector]byte
		n, err := client.ReadAt(buf[:], int64(off))
		switch {
		case errors.Is(err, syscall.EIO):
			failed++
		case err != nil:
			t.Fatal(err)
		case diff(buf[:n], f.want[off:off+n]) != "":
			t.Fatalf("offset %d: %s", off, diff(buf[:n], f.want[off:off+n]))
		case off == lost:
			t.Errorf("offset %d: read, though no leaf says where it is", off)
		default:
			good++
		}
	}
	// A leaf of 4 KiB has room for 51 extents.
	if failed == 0 || failed > 51 {
		t.Errorf("got %d blocks lost and %d read, want 1 to 51 of %d lost", failed, good, blocks)
	}
}
