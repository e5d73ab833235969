// Package devio reads block devices and disk images: it is the only place that does disk I/O.
//
// Open gives a Queue per device. Submit hands it a batch of reads; each is told to its Completer
// when it ends, in any order, exactly once. Between Submit and that call the Read and its buffers
// belong to the queue. Buffers come from a Pool, which lends page-aligned memory outside the Go heap.
//
//	Submit ─► lone small read on an idle queue ─► preadv by the caller ─┐
//	       └► engine: FIFO ─► workers, preadv ────────────────────────┴► statistics ─► Completer
//
// How queued reads are carried out is the engine's matter (see engine.go); today it is a pool of
// workers that block in preadv. Files are read with O_DIRECT where they allow it. A read that the
// device cut short is an error like any other; nothing is retried here except what a signal
// interrupted, because only the caller knows of another copy.
//
// A Queue and a Pool may be used from any goroutine. Not done: writing, verification, ordering.
package devio
