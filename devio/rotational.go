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

// rotational asks the device's queue, or for a partition, that of the disk, whose directory holds its own.
func rotational(sys string, dev uint64) bool {
	at := fmt.Sprintf("%s/%d:%d/", sys, unix.Major(dev), unix.Minor(dev))
	for _, queue := range []string{"queue/", "../queue/"} { // the kernel resolves .. behind the link
		if b, err := os.ReadFile(at + queue + "rotational"); err == nil {
			return bytes.Equal(bytes.TrimSpace(b), []byte("1"))
		}
	}
	return false
}
