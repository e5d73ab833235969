//go:build linux

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"

	"github.com/btrexport/btrexport/export/nbdclient"
)

// observer reads everything from a server, and counts what the server should count.
type observer struct {
	w        *wreck
	s        *server
	gone     []int
	rough    bool // devices may fail so often that they are doubted: counts are not exact then
	clients  map[*file]*nbdclient.Client
	inflated map[int64]bool    // compressed extents that the server holds, by logical address
	streak   []int             // by device: reads that failed since one was good, or more
	calm     [][]position      // by device: the blocks whose own column is good
	ends     map[position]bool // where reads ended: one that begins there has the server read ahead

	failed, retried         []float64 // by device: checksum failures of data, retries; of copies the most there can be
	repaired, lost, refused float64

	shape row // of any block of data
}

// position is a byte of a file.
type position struct {
	f   *file
	off int
}

// observe serves all files, perhaps without some devices.
func (w *wreck) observe(ctx context.Context, t *testing.T, gone []int) *observer {
	t.Helper()
	args := append(w.devices(gone), patient)
	if len(gone) > 0 {
		args = append(args, "--degraded")
	}
	var list []served
	for _, f := range w.files {
		list = append(list, f.served)
	}
	n := len(w.images)
	o := &observer{w: w, s: serve(t, append(args, exports(list)...)...), gone: gone, clients: make(map[*file]*nbdclient.Client),
		inflated: make(map[int64]bool), ends: make(map[position]bool), rough: len(gone) > 0, streak: make([]int, n), calm: make([][]position, n), failed: make([]float64, n), retried: make([]float64, n)}
	o.shape, _ = w.row(w.file(victim).extents[0].logical)
	for _, f := range w.files {
		o.clients[f] = o.s.dial(ctx, t, f.name)
		for d := range n {
			for _, off := range w.blocks(f, d, func(r row, own int) bool { return !w.hurt[r.columns[own]] }) {
				o.calm[d] = append(o.calm[d], position{f, off})
			}
		}
	}
	return o
}

// longest bounds a read, in bytes, such that a device does not fail 8 times in a row, after which it is asked
// last: then counts would be a matter of chance.
const longest = 4 * sector

// readAll reads every file from its end to its beginning, in ranges of any length, and wants EIO for those that touch
// what is lost and the right bytes of all others. Read the other way, the server would read ahead, and count what that
// meets once for several reads.
func (o *observer) readAll(t *testing.T) {
	t.Helper()
	for _, f := range o.w.files {
		buf := make([]byte, 128<<10)
		for end := len(f.want); end > 0; {
			n := 1 + o.w.rng.IntN(longest)
			if f.path == "/"+squeezed || o.rough {
				n = 1 + o.w.rng.IntN(len(buf))
			}
			n = min(n, end)
			end -= n
			o.read(t, f, end, buf[:n])
		}
	}
	if got := o.s.scrape(t.Context(), t).sum("btrexport_reads_lost_total"); got != o.lost {
		t.Errorf("reads_lost without %v: got %v, want %v", o.gone, got, o.lost)
	}
}

func (o *observer) read(t *testing.T, f *file, off int, buf []byte) {
	t.Helper()
	if !f.sums && len(o.gone) > 0 && o.unsure(f, off, len(buf)) {
		return
	}
	o.soothe(t)
	o.ends[position{f, off + len(buf)}] = true
	lost := o.expect(f, off, len(buf))
	if lost {
		o.refused++
	}
	got, err := o.clients[f].ReadAt(buf, int64(off))
	var refused *nbdclient.ReadError
	switch {
	case lost && (!errors.As(err, &refused) || !errors.Is(err, syscall.EIO)):
		t.Fatalf("%s offset %d length %d without %v: got %d bytes, error %v; want EIO", f.path, off, len(buf), o.gone, got, err)
	case !lost && (err != nil || !bytes.Equal(buf, f.want[off:off+len(buf)])):
		t.Fatalf("%s offset %d length %d without %v: error %v; %s\n%s", f.path, off, len(buf), o.gone, err, diff(buf[:got], f.want[off:off+len(buf)]), o.w.describe(f, off))
	}
}

// unsure says whether a range without checksums lies in rows of which a column is ruined: nobody could tell
// what was rebuilt from that.
func (o *observer) unsure(f *file, off, n int) bool {
	for _, s := range o.spans(f, off, n) {
		for at := s.from; at < s.to; at += sector {
			if r, _ := o.w.row(s.logical + at); slices.ContainsFunc(r.columns, func(p place) bool { return o.w.hurt[p] }) {
				return true
			}
		}
	}
	return false
}

// soothe reads a good block from every device that has failed often.
func (o *observer) soothe(t *testing.T) {
	t.Helper()
	var buf [sector]byte
	for d, n := range o.streak {
		if n < 3 || len(o.calm[d]) == 0 || o.rough {
			continue
		}
		c := o.calm[d][o.w.rng.IntN(len(o.calm[d]))]
		for tries := 0; o.ends[c] && tries < 100; tries++ {
			c = o.calm[d][o.w.rng.IntN(len(o.calm[d]))]
		}
		b := buf[:min(sector, len(c.f.want)-c.off)]
		o.ends[position{c.f, c.off + len(b)}] = true
		if _, err := o.clients[c.f].ReadAt(b, int64(c.off)); err != nil || !bytes.Equal(b, c.f.want[c.off:][:len(b)]) {
			t.Fatalf("%s offset %d: error %v; %s", c.f.path, c.off, err, diff(b, c.f.want[c.off:][:len(b)]))
		}
		o.streak[d] = 0
	}
}

// span is a part of an extent that is read: bytes from to to behind its logical address, in whole sectors.
type span struct {
	fileExtent
	from, to int64
}

// spans lists what a read of the file must read: the sectors around the range, and all of a compressed extent
// that the server does not hold, once.
func (o *observer) spans(f *file, off, n int) (list []span) {
	from, to := int64(off)/sector*sector, (int64(off+n)+sector-1)/sector*sector
	for _, x := range f.extents {
		s := span{x, max(from, x.off) - x.off, min(to, x.off+x.length) - x.off}
		if s.from >= s.to {
			continue
		}
		if x.compressed {
			if o.inflated[x.logical] || slices.ContainsFunc(list, func(p span) bool { return p.logical == x.logical }) {
				continue
			}
			s.from, s.to = 0, x.disk
		}
		list = append(list, s)
	}
	return list
}

// expect counts what a read should count, and says whether a part of it is lost. Of a compressed extent all is
// lost or nothing.
func (o *observer) expect(f *file, off, n int) (lost bool) {
	for _, s := range o.spans(f, off, n) {
		before := o.lost
		for at := s.from; at < s.to; at += sector {
			if _, gone := o.w.fate(s.logical+at, o.gone); gone {
				o.lost++
			}
			o.count(s.logical + at)
		}
		lost = lost || o.lost > before
		if s.compressed && o.lost == before {
			o.inflated[s.logical] = true
		}
	}
	return lost
}

// count counts what the read of one sector does. The data column of RAID5 and RAID6 is always asked first, and
// the first copy of DUP; of other copies any may be.
func (o *observer) count(logical int64) {
	bad, lost := o.w.fate(logical, nil)
	r, own := o.w.row(logical)
	fail := func(p place) { o.failed[p.device]++; o.retried[p.device]++ }
	switch {
	case r.data == 0 && r.columns[0].device != r.columns[1].device:
		for _, p := range r.columns {
			if o.w.hurt[p] {
				fail(p)
			}
		}
		return
	case !bad:
		return
	}
	p := r.columns[own]
	fail(p)
	o.streak[p.device]++
	switch {
	case lost && r.data == 0:
		o.failed[p.device]++ // the second copy, after which there is none to go on with
	case !lost:
		o.repaired++
		// P was used, and had to be left out.
		if r.spare() == 2 && o.w.hurt[r.columns[r.data]] {
			fail(r.columns[r.data])
		}
	}
}

// checkCounts holds the server's counters against what was read.
func (o *observer) checkCounts(ctx context.Context, t *testing.T) {
	t.Helper()
	m := o.s.scrape(ctx, t)
	o.checkSums(t, m)
	for i := range o.failed {
		failed, retried := failures(m, i, "data")
		if o.exact() && (failed != o.failed[i] || retried != o.retried[i]) || failed > o.failed[i] || retried > failed {
			t.Errorf("devid %d: got %v checksum failures and %v retries, want %v and %v", i+1, failed, retried, o.failed[i], o.retried[i])
		}
	}
	if got := m.sum("btrexport_reads_repaired_total", fmt.Sprintf("source=%q", o.source())); o.exact() && got != o.repaired {
		t.Errorf("repaired from %s: got %v, want %v", o.source(), got, o.repaired)
	}
	if got := m.sum("btrexport_checksum_failures_total", `kind="metadata"`); got != 0 {
		t.Errorf("checksum failures of tree blocks: got %v, want 0", got)
	}
}

// checkTree wants no more failures of tree blocks than columns of them are ruined: each is read once.
func (o *observer) checkTree(ctx context.Context, t *testing.T, hurt []int) {
	t.Helper()
	m := o.s.scrape(ctx, t)
	o.checkSums(t, m)
	met := 0.0
	for i, n := range hurt {
		failed, _ := failures(m, i, "metadata")
		met += failed
		if failed > float64(n) {
			t.Errorf("devid %d: got %v checksum failures of tree blocks, want at most %d", i+1, failed, n)
		}
	}
	t.Logf("bad tree blocks met: %v", met)
}

// failures gives the checksum failures of a device, and its retries after those of any kind.
func failures(m series, device int, kind string) (failed, retried float64) {
	devid := fmt.Sprintf("devid=%q", fmt.Sprint(device+1))
	return m.sum("btrexport_checksum_failures_total", fmt.Sprintf("kind=%q", kind), devid), m.sum("btrexport_read_retries_total", `reason="checksum"`, devid)
}

// checkSums holds those counters against each other that do not depend on which copy is asked first.
func (o *observer) checkSums(t *testing.T, m series) {
	t.Helper()
	failed, retried := m.sum("btrexport_checksum_failures_total"), m.sum("btrexport_read_retries_total", `reason="checksum"`)
	repaired, all := m.sum("btrexport_reads_repaired_total", fmt.Sprintf("source=%q", o.source())), m.sum("btrexport_reads_repaired_total")
	t.Logf("checksum failures %v, retries %v, repaired %v, lost %v", failed, retried, repaired, o.lost)
	if repaired == 0 || repaired != all && !o.rough { // of a doubted device the block itself may be asked after its parity
		t.Errorf("repaired: got %v of %v from %s, want all", repaired, all, o.source())
	}
	spare := float64(o.shape.spare())
	switch {
	case o.shape.data == 0:
		// Of what is lost the last copy is not retried. What is not lost had one to all but one bad copies.
		again := retried - o.lost*spare
		if failed != retried+o.lost || repaired > again || again > repaired*spare {
			t.Errorf("got %v checksum failures, %v retries, %v repaired, with %v lost of %v copies", failed, retried, repaired, o.lost, spare+1)
		}
	case retried > failed, !o.rough && retried != failed:
		t.Errorf("got %v retries after %v checksum failures", retried, failed)
	}
	if io := m.sum("btrexport_device_read_errors_total") + m.sum("btrexport_read_retries_total") - retried; io != 0 {
		t.Errorf("read errors and retries for other reasons than checksums: got %v, want 0", io)
	}
	if got := m.sum("btrexport_nbd_requests_total", `command="read"`, `result="error"`); got != o.refused {
		t.Errorf("reads that failed: got %v, want %v", got, o.refused)
	}
}

// exact says whether it is known which column is asked first.
func (o *observer) exact() bool {
	return o.shape.data > 0 || o.shape.columns[0].device == o.shape.columns[1].device
}

// source is what repairs come from.
func (o *observer) source() string {
	if o.shape.data > 0 {
		return "parity"
	}
	return "mirror"
}
