package devio

import "time"

// Stats is told of one device's reads, from several goroutines at once. Its methods must not block.
type Stats interface {
	// ReadDone: a read has ended; took counts from its submission. Reads that Close cancelled
	// never reached the device and are not told.
	ReadDone(bytes int, took time.Duration, err error)
	// InFlight: delta reads more, or fewer, are submitted and not completed. What was added for
	// a read is always taken away again, also for a cancelled one.
	InFlight(delta int)
}
