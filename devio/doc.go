// Package devio reads block devices and disk images: it is the only place that does disk I/O.
//
// Open gives a Queue per device. Submit hands it a batch of reads; each is told to its Completer
// when it ends, in any order, exactly once. Between Submit and that call the Read and its buffers
// belong to the queue. Buffers come from a Pool, which lends page-aligned memory outside the Go heap.
//
//	Submit ─► page cache, where it is used ─► preadv2 that does not wait ──┐
//	       ├► lone small read on an idle queue ─► read by the caller ──────┤
//	       └► engine: FIFO ─► io_uring, or workers in preadv ──────────────┴► statistics ─► Completer
//
// Two engines carry out queued reads, with the same results; Options.Engine chooses (engine.go). That of io_uring
// enters the kernel once for a batch, and one goroutine for each device waits in Go's poller for what comes back and
// runs the Completers, those of heavy reads with the help of others: no thread is blocked. Where the kernel forbids
// io_uring, a pool of workers blocks in preadv.
//
// With io_uring the thread that handed a read in brings its end, too, and can't while it sleeps in the kernel without
// interruption, as in a preadv of a disk that hangs. So a queue of this engine reads by nothing but rings, also what
// its submitter waits for (loneRing). A process that mixes engines gives that up: a disk that hangs under the
// pread engine may then delay reads of others.
//
// Files are read with O_DIRECT where they allow it. A read that the device cut short is an error like any other;
// nothing is retried here except what a signal interrupted or the kernel gave up without asking the device, because
// only the caller knows of another copy.
//
// A Queue and a Pool may be used from any goroutine. Not done: writing, verification, ordering.
package devio
