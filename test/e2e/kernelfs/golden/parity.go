//go:build linux

package golden

import (
	"context"
	"fmt"

	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// paritySpecs are RAID5 and RAID6 over all the other numbers of devices: those over three and four
// are named for the profile alone and stand where they always stood.
func paritySpecs() []Spec {
	return []Spec{
		parity("raid5-2", "raid5", 2, 0, few),
		parity("raid5-4", "raid5", 4, 4096, few),
		parity("raid5-5", "raid5", 5, 0, few),
		parity("raid5-6", "raid5", 6, 65536, few),
		parity("raid6-3", "raid6", 3, 0, few),
		parity("raid6-5", "raid6", 5, 4096, few),
		parity("raid6-6", "raid6", 6, 0, few),
	}
}

// parity is a filesystem whose data and metadata have one profile, raid5 or raid6, over devices of
// the smallest size; nodesize is in bytes, 0 for mkfs's own.
func parity(name, profile string, devices, nodesize int, kinds func(t *kernelfs.Tree)) Spec {
	columns := devices - 1
	if profile == "raid6" {
		columns--
	}
	return Spec{
		Name:    name,
		Note:    fmt.Sprintf("data and metadata %s over %d devices; a file over more than three rotations of the parity", profile, devices),
		Options: kernelfs.Options{Devices: devices, Data: profile, Metadata: profile, Nodesize: nodesize},
		Fill:    rotations(devices, columns, kinds),
	}
}

// rotations makes a file that covers three rotations of the parity in one chunk, wherever in a row it
// begins: after as many rows as there are devices each device has held each column once. Beside it
// stand a file without checksums over one rotation, compressed files, of which one has an extent
// longer than a stripe, what kinds makes, a directory that takes several leaves, and a snapshot.
func rotations(devices, columns int, kinds func(t *kernelfs.Tree)) fillFunc {
	const stripe = 64 << 10
	row := int64(columns * stripe)
	return func(_ context.Context, _ *kernelfs.FS, t *kernelfs.Tree) error {
		t.Plain("rotations", int64(3*devices+1)*row+5001)
		t.NoCOW("nocow")
		t.WriteAt("nocow", 0, int64(devices)*row+3000)
		compressed(t, "zstd", "zstd", 500_000)
		compressed(t, "lzo", "lzo", 500_000)
		t.ManyEntries("nested/deeper/many", 220)
		t.Subvolume("sub")
		t.Plain("sub/file", 300_000)
		kinds(t)
		t.Sync()
		t.WriteAt("nocow", row-2000, 5000) // in place
		t.Snapshot("sub", "snap", true)
		t.WriteAt("sub/file", 100_000, 5000)
		t.Sync()
		compressed(t, "lzo-long", "lzo", 0)
		t.WriteString("lzo-long", long(32))
		return t.Err()
	}
}

// long makes pages of 4096 bytes that stay long in LZO: the kernel compresses page by page, and each
// holds 2048 bytes of noise. So an extent of 32 pages takes more than one stripe of 64 KiB. The noise
// is the same in all of them, for the sake of the package.
func long(pages int) string {
	p := make([]byte, pages*kernelfs.BlockSize)
	kernelfs.Content{}.Fill(0, 0, p)
	noise := make([]byte, 2048)
	kernelfs.Content{Noise: true}.Fill(0, 0, noise)
	for at := 0; at < len(p); at += kernelfs.BlockSize {
		copy(p[at+512:], noise) // behind the line that tells the block's number
	}
	return string(p)
}

// few makes an inline file, holes and preallocated ranges.
func few(t *kernelfs.Tree) {
	t.Plain("inline", 100)
	t.Sparse("sparse")
	t.Prealloc("prealloc")
}

// all makes the zoo, and files of four rows in several chunks, for profiles of two columns.
func all(t *kernelfs.Tree) {
	t.Zoo("zoo")
	t.Rows("rows", 2, 2)
}

// compressed makes a file that the kernel compresses by the given algorithm, if that makes it smaller.
func compressed(t *kernelfs.Tree, name, algorithm string, size int64) {
	t.WriteString(name, "")
	t.Xattr(name, "btrfs.compression", []byte(algorithm))
	t.WriteAt(name, 0, size)
}
