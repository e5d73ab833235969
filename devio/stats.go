package devio

import "time"

// Stats is told of one device's reads, from several goroutines at once. Its methods must not block.
type Stats interface {
	// ReadDone: a read has ended; took counts from its submission. Reads that Close cancelled
	// never reached the device and are not told.
	ReadDone(bytes int, took time.Duration, err error)
	// Submitted: one system call has handed so many requests to the kernel, each for a read or for several that lie
	// close together. What is left of a read that the kernel cut short counts again, where it is handed in by itself.
	Submitted(requests int)
	// InFlight: delta reads more, or fewer, are submitted and not completed. What was added for
	// a read is always taken away again, also for a cancelled one.
	InFlight(delta int)
}
