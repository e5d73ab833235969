//go:build linux

package guest

import (
	"context"
	"maps"
	"strings"
	"testing"

	"github.com/btrexport/btrexport/fsread/fsreadtest"
)

// TestFaults: our program in a guest reads a RAID1 and a RAID5 of which one device fails as the block layer of
// Debian's kernel lets it: a MEDIUM ERROR of scsi_debug; errors, a time of being down, wrong bytes, reads that hang
// and reads that take long of the device mapper. Each copy of a file is right, and verify names what is bad, and
// nothing else. testdata/faults.sh is the guest's side.
func TestFaults(t *testing.T) {
	need(t, "dmsetup")
	ctx := bounded(t)
	raid5 := fsreadtest.Load(t, "raid5")
	got := boot(ctx, t, faultyTree(ctx, t), nil, drives(raid5.Devices)...)

	whole := seen{verify: "0 bad 0 unreadable 0"}
	down := seen{"1 bad 0 unreadable 128", "bad-copy 0+524288 input/output error"} // EIO
	mirrored := map[string]seen{
		"whole": whole, "error": down, "flakey": down, "delay": whole,
		"medium":      got.medium(), // ENODATA
		"misdirected": {"1 bad 128 unreadable 0", "bad-copy 0+524288 crc32c is "},
	}
	// All that devid 1 has of the file: data and parity.
	striped := map[string]seen{
		"raid5-whole": whole, "raid5-delay": whole,
		"raid5-error":       {"1 bad 0 unreadable 162", "bad-copy 65536+131072 input/output error"},
		"raid5-misdirected": {"1 bad 162 unreadable 0", "bad-copy 65536+131072 crc32c is "},
	}
	got.checkCopies(t, fileSum(t, sampleManifest(t), "@images/plain.raw"), mirrored)
	got.checkCopies(t, fileSum(t, raid5.Manifest, "rotations"), striped)
	got.check(t, map[string]string{
		"medium-direct": "1", "delay-fired": "yes", "raid5-delay-fired": "yes",
		"hung-size": "0", "hung": "right", "hung-slow": "yes", "gone": "right", "gone-stopped": "0", "end": "",
	})
	for _, name := range []string{"raid5-error", "raid5-misdirected"} { // data columns that only parity can give
		if n := got[name+"-repaired"]; n == "0" || n == "" {
			t.Errorf("%s: %q blocks repaired", name, n)
		}
	}
}

// faultyTree is the guest's first filesystem, with the modules whose devices fail.
func faultyTree(ctx context.Context, t *testing.T) string {
	t.Helper()
	r := newTree(t, "faults.sh")
	r.add(t, "bin/btrexport", program(t))
	r.addProgram(ctx, t, "dmsetup")
	r.addModules(t, "late", "sd_mod", "scsi_debug", "dm_mod", "dm_delay", "dm_flakey")
	return r.write(t)
}

// drives are QEMU's arguments for /dev/vda and so on; what a guest writes is lost.
func drives(images []string) (args []string) {
	for _, path := range images {
		args = append(args, "-drive", "if=virtio,format=raw,snapshot=on,file="+path)
	}
	return args
}

// seen is what verify found on devid 1: its exit status and counts of blocks, and how its line for the first bad
// range begins: kind, offset in the file, length, error.
type seen struct{ verify, bad string }

// checkCopies compares, for each fault, what cp gave with the file's SHA-256 and what verify found.
func (s said) checkCopies(t *testing.T, sum string, faults map[string]seen) {
	t.Helper()
	want := make(map[string]string)
	for name, f := range faults {
		maps.Copy(want, map[string]string{name + "-cp": "0 " + sum, name + "-verify": f.verify})
		if bad := s[name+"-range"]; !strings.HasPrefix(bad, f.bad) || (f.bad == "") != (bad == "") {
			t.Errorf("%s: first bad range %q, want %q", name, bad, f.bad)
		}
	}
	s.check(t, want)
}

// medium is what verify may find of a medium error in one block: that block, or a neighbour too, since the kernel
// may put reads of blocks side by side into one command, all of which then fails.
func (s said) medium() seen {
	for _, two := range []string{"bad-copy 409600+8192 no data available", "bad-copy 405504+8192 no data available"} {
		if strings.HasPrefix(s["medium-range"], two) {
			return seen{"1 bad 0 unreadable 2", two}
		}
	}
	return seen{"1 bad 0 unreadable 1", "bad-copy 409600+4096 no data available"}
}

// fileSum is the SHA-256 that a manifest has for a file.
func fileSum(t *testing.T, m *fsreadtest.Manifest, path string) string {
	t.Helper()
	for _, e := range m.Entries {
		if string(e.Path) == path && e.SHA256 != "" {
			return e.SHA256
		}
	}
	t.Fatalf("%s: no file with a checksum in the manifest", path)
	return ""
}
