package devio

import "strings"

// maxModel bounds the name of a model, in bytes; those of SCSI have 16, those of NVMe 40.
const maxModel = 64

// Model is what the maker calls the disk, for a partition the disk that it lies on; "" for image files and for devices
// that have none (loop, device mapper). It was asked at Open, and may hold any bytes.
func (q *Queue) Model() string { return q.file.model }

// model asks the disk.
func model(sys string, dev uint64) string {
	b := ofDisk(sys, dev, "device/model")
	return strings.TrimSpace(string(b[:min(len(b), maxModel)]))
}
