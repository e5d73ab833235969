package devio

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// maxModel bounds the name of a model, in bytes; those of SCSI have 16, those of NVMe 40.
const maxModel = 64

// Model is what the maker calls the disk, for a partition the disk that it lies on; "" for image files and for devices
// that have none (loop, device mapper). It was asked at Open, and may hold any bytes.
func (q *Queue) Model() string { return q.file.model }

// model asks the device, or for a partition, its disk.
func model(sys string, dev uint64) string {
	at := fmt.Sprintf("%s/%d:%d/", sys, unix.Major(dev), unix.Minor(dev))
	for _, disk := range []string{"device/", "../device/"} { // the kernel resolves .. behind the link
		if b, err := os.ReadFile(at + disk + "model"); err == nil {
			return strings.TrimSpace(string(b[:min(len(b), maxModel)]))
		}
	}
	return ""
}
