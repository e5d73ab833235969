//go:build linux

package guest

import (
	"maps"
	"strings"
	"testing"

	"github.com/btrexport/btrexport/fsread/fsreadtest"
)

// TestFaults: our program in a guest reads a RAID1 of which one device fails as the block layer of Debian's kernel
// lets it: a MEDIUM ERROR of scsi_debug, and errors, a time of being down and wrong bytes of the device mapper. Each
// copy of a file is right, and verify names what is bad. testdata/faults.sh is the guest's side.
func TestFaults(t *testing.T) {
	need(t, "dmsetup")
	ctx := bounded(t)
	m, err := fsreadtest.ReadManifest("../../../cmd/btrexport/sample", "sample")
	if err != nil {
		t.Fatal(err)
	}
	sum := fileSum(t, m, "@images/plain.raw")
	r := newTree(t, "faults.sh")
	r.add(t, "bin/btrexport", program(t))
	r.addProgram(ctx, t, "dmsetup")
	r.addModules(t, "late", "sd_mod", "scsi_debug", "dm_mod", "dm_flakey")
	got := boot(ctx, t, r.write(t), nil)

	want := map[string]string{"medium-direct": "1", "end": ""}
	for name, v := range map[string]seen{
		"whole":       {"0 bad 0 unreadable 0", ""},
		"medium":      {"1 bad 0 unreadable 1", "bad-copy 409600+4096 no data available"}, // ENODATA
		"error":       {"1 bad 0 unreadable 128", "bad-copy 0+524288 input/output error"}, // EIO
		"flakey":      {"1 bad 0 unreadable 128", "bad-copy 0+524288 input/output error"},
		"misdirected": {"1 bad 128 unreadable 0", ""},
	} {
		maps.Copy(want, v.lines(name, sum))
	}
	delete(want, "misdirected-range")
	got.check(t, want)
	if got, prefix := got["misdirected-range"], "bad-copy 0+524288 crc32c is "; !strings.HasPrefix(got, prefix) {
		t.Errorf("misdirected reads: got %q, want %q…", got, prefix)
	}
}

// seen is what verify found on devid 1: its exit status and counts of blocks, and the first bad range.
type seen struct{ verify, bad string }

// lines are what the guest says of one fault, when the copy has the right bytes.
func (s seen) lines(name, sum string) map[string]string {
	return map[string]string{name + "-cp": "0 " + sum, name + "-verify": s.verify, name + "-range": s.bad}
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
