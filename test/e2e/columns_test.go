//go:build linux

package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// shapes are the redundant profiles over the numbers of devices that make a difference.
var shapes = []struct {
	profile string
	devices int
}{
	{"dup", 1}, {"raid1", 2}, {"raid1", 3}, {"raid1c3", 3}, {"raid1c4", 4}, {"raid10", 4}, {"raid10", 5},
	{"raid5", 2}, {"raid5", 3}, {"raid5", 5}, {"raid6", 3}, {"raid6", 4}, {"raid6", 6},
}

// Whatever the profile survives is survived: devices that are missing, sectors that changed in any of their
// columns, parity too, tree blocks that changed; and what goes one column further is lost to exactly the reads
// that touch it. The counters say how often, as far as it is not the server's choice which copy it asks.
func TestColumns(t *testing.T) {
	need(t, "mkfs.btrfs", "nbdcopy")
	for _, c := range shapes {
		t.Run(fmt.Sprintf("%s-%d", c.profile, c.devices), func(t *testing.T) {
			ctx, rng := bounded(t), chance(t)
			w := makeWreck(ctx, t, rng, c.profile, c.devices)
			w.checkMissing(ctx, t)

			hurt := w.hurtSectors(t)
			o := w.observe(ctx, t, nil)
			o.readAll(t)
			o.checkCounts(ctx, t)
			w.checkCopied(ctx, t, o.s)
			if c.devices > 1 {
				w.observe(ctx, t, []int{rng.IntN(c.devices)}).readAll(t)
			}

			lost := w.lose(t)
			o = w.observe(ctx, t, nil)
			o.readAll(t)
			o.checkCounts(ctx, t)
			w.checkCpSays(ctx, t)

			nodes := w.hurtNodes(t)
			o = w.observe(ctx, t, nil)
			o.rough = true
			o.readAll(t)
			o.checkTree(ctx, t, nodes)
			o.checkDoubted(t)
			t.Logf("hurt %d columns of data, %d more to lose blocks, of tree blocks by device %v", hurt, lost, nodes)
		})
	}
}

// checkMissing reads everything without each device, and without some sets of devices, and wants a refusal
// without --degraded.
func (w *wreck) checkMissing(ctx context.Context, t *testing.T) {
	t.Helper()
	n := len(w.images)
	var sets [][]int
	for i := range n {
		sets = append(sets, []int{i})
	}
	for _, most := range []int{2, 2, 2, 3} {
		sets = append(sets, w.rng.Perm(n)[:min(n, most)])
	}
	for _, gone := range sets {
		if len(gone) == n || !w.survives(gone) {
			continue
		}
		o := run(ctx, t, program(t, plainBinary), append([]string{"ls"}, w.devices(gone)...)...)
		for _, i := range gone {
			if name := fmt.Sprintf("devid %d (uuid %s)", i+1, w.uuids[i]); o.status != 2 || !strings.Contains(o.errOut, name) {
				t.Errorf("ls without %v: exit status %d, want 2 and %s in\n%s", gone, o.status, name, o.errOut)
			}
		}
		r := w.observe(ctx, t, gone)
		r.readAll(t)
		m := r.s.scrape(ctx, t)
		if m.sum("btrexport_checksum_failures_total")+m.sum("btrexport_device_read_errors_total") != 0 {
			t.Errorf("without %v: whole devices have failures: %v", gone, m)
		}
		if t.Failed() {
			t.FailNow()
		}
	}
}

// checkCopied copies some files with other programs than our client.
func (w *wreck) checkCopied(ctx context.Context, t *testing.T, s *server) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	for _, f := range []*file{w.file(victim), w.file(squeezed), w.file(bare), w.files[w.rng.IntN(len(w.files))]} {
		must(ctx, t, "nbdcopy", s.uri(f.name), out)
		sameFile(t, "nbdcopy of "+f.path, out, f.want)
		must(ctx, t, program(t, plainBinary), append([]string{"cp", "-f"}, append(w.devices(nil), f.path, out)...)...)
		sameFile(t, "cp of "+f.path, out, f.want)
	}
}

// checkCpSays wants cp to name the first block of the victim that is lost: where in the file, where on the
// filesystem, and of each copy, or of the block and its parity, the device and the address there.
func (w *wreck) checkCpSays(ctx context.Context, t *testing.T) {
	t.Helper()
	f := w.file(victim)
	off, logical := w.firstLost(f)
	if off < 0 {
		t.Fatal("no block of the victim is lost")
	}
	o := run(ctx, t, program(t, plainBinary), append([]string{"cp"}, append(w.devices(nil), f.path, filepath.Join(t.TempDir(), "out"))...)...)
	want := []string{fmt.Sprintf(" offset %d ", off), fmt.Sprintf(" logical %d", logical)}
	r, own := w.row(logical)
	for i, p := range r.columns {
		if r.data == 0 || i == own || i >= r.data {
			want = append(want, fmt.Sprintf("devid %d (%s) @%d: ", p.device+1, w.images[p.device], p.off))
		}
	}
	for _, text := range want {
		if o.status != 1 || !strings.Contains(o.errOut, text) || strings.Count(o.errOut, "\n") != 1 {
			t.Errorf("cp: exit status %d, want 1 and one line with %q:\n%s", o.status, text, o.errOut)
		}
	}
}

// checkDoubted makes each device fail so often in a row that others are asked before it, and then reads blocks
// on it that have no checksum: what wrong parity gives for them nobody could tell.
func (o *observer) checkDoubted(t *testing.T) {
	t.Helper()
	if o.shape.data == 0 {
		return
	}
	w, f, buf, tried := o.w, o.w.file(bare), make([]byte, sector), 0
	for d := range w.images {
		failing := w.blocks(w.file(victim), d, func(r row, own int) bool { return w.hurt[r.columns[own]] })
		unsure := w.blocks(f, d, func(r row, own int) bool { return w.hurt[r.columns[r.data]] })
		for i := 0; i < 3 && len(failing) > 0 && len(unsure) > 0; i++ {
			for range 8 {
				o.read(t, w.file(victim), failing[w.rng.IntN(len(failing))], buf[:1])
			}
			o.read(t, f, unsure[w.rng.IntN(len(unsure))], buf)
			tried++
		}
	}
	if tried == 0 {
		t.Error("no block without a checksum has wrong parity: the test proves nothing")
	}
}
