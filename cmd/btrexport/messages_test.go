package main

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/btrexport/btrexport/export/kernelnbd"
	"github.com/btrexport/btrexport/fsread"
)

// feature DEVICE... sets an incompatible feature bit that nobody knows in every superblock, checksums made right.
func cmdFeature(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		f, err := os.OpenFile(ts.MkAbs(name), os.O_RDWR, 0)
		ts.Check(err)
		for _, at := range []int64{64 << 10, 64 << 20} {
			b := make([]byte, 4096)
			_, err := f.ReadAt(b, at)
			ts.Check(err)
			incompat := b[188:] // u64
			binary.LittleEndian.PutUint64(incompat, binary.LittleEndian.Uint64(incompat)|1<<40)
			binary.LittleEndian.PutUint32(b, crc32.Checksum(b[32:], crc32.MakeTable(crc32.Castagnoli)))
			_, err = f.WriteAt(b, at)
			ts.Check(err)
		}
		ts.Check(f.Close())
	}
}

// TestMessages are those whose causes no script can make: other users, other kernels. The others are in
// testdata/script/messages.txtar.
func TestMessages(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("attach /dev/nbd0: %w", kernelnbd.ErrNoDriver), "attach /dev/nbd0: kernel module nbd is not loaded (sudo modprobe nbd)"},
		{fmt.Errorf("attach /dev/nbd0: %w", &kernelnbd.InUseError{PID: 1311, Device: "/dev/nbd0"}), "attach /dev/nbd0: in use by pid 1311 (btrexport detach /dev/nbd0, or choose another)"},
		{&fsread.PathError{Path: "/@images/link", Err: fsread.ErrLinkLeaves, Detail: "/mnt/x (links are followed inside it only)"}, "/@images/link: symbolic link leaves the filesystem: /mnt/x (links are followed inside it only)"},
	} {
		if got := printable(withRemedy(c.err)); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
}
