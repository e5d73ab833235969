package devio

// engine carries out the reads of one queue. It tells the queue of the end of each read that it
// took, exactly once, by the finish function that it was made with.
type engine interface {
	// submit takes the whole batch and returns true, or takes nothing and returns false after
	// stop. It does not wait for the disk, and keeps no reference to the slice.
	submit(batch []*Read) bool
	// stop ends the intake and finishes the reads that have not been started with ErrClosed.
	stop()
	// wait returns when every read has been finished and nothing of the engine runs any more.
	// It is called after stop.
	wait()
}

// finishFunc ends a read: n bytes from its start are there, err is what the device said.
type finishFunc func(r *Read, n int, err error)
