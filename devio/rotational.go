package devio

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Rotational reports whether the kernel says that the device has spinning disks, or for a file, the device
// of the file's filesystem. Where the kernel does not tell (a filesystem without a device of its own, as btrfs,
// tmpfs or NFS, and a container without /sys) it is false. It was asked at Open.
func (q *Queue) Rotational() bool { return q.file.rotational }

// sysBlock has a link to each block device, by its numbers.
const sysBlock = "/sys/dev/block"

// rotational asks the disk's queue.
func rotational(sys string, dev uint64) bool {
	return bytes.Equal(bytes.TrimSpace(ofDisk(sys, dev, "queue/rotational")), []byte("1"))
}

// ofDisk reads a file in the directory of a disk, or for a partition, of the disk whose directory holds its own. Where
// there is none it is empty.
func ofDisk(sys string, dev uint64, file string) []byte {
	at := fmt.Sprintf("%s/%d:%d/", sys, unix.Major(dev), unix.Minor(dev))
	for _, up := range []string{"", "../"} { // the kernel resolves .. behind the link
		if b, err := os.ReadFile(at + up + file); err == nil {
			return b
		}
	}
	return nil
}
