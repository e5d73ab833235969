package devio

import (
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"
)

// DevID is the btrfs devid of a device: its name inside one filesystem.
type DevID uint64

// Physical is a byte address on one device, counted from the first byte of its queue.
type Physical uint64

// Completer is told of the end of a Read. ReadDone runs on a goroutine of the engine, or inside Submit for a read
// done there. It may call Submit of any queue; it must not block for long and must not call Close.
type Completer interface {
	ReadDone(r *Read)
}

// Read is one read of one contiguous run of a device, scattered over Bufs in their order. Submit
// lends the Read and its buffers to the queue until Done.ReadDone(r) is called. A Read may be
// submitted again after that.
type Read struct {
	Off  Physical  // multiple of the queue's Align
	Bufs [][]byte  // at least one; every address and length a multiple of the queue's Align
	Done Completer // never nil
	// Lone says that the submitter has nothing to do until this read is done, and may be held up by it.
	Lone bool
	// Alone has the queue do such reads one at a time, so that the kernel does not make one of several that touch: an
	// error would be that of all.
	Alone bool
	// Heavy says that Done.ReadDone takes about as long as the device did. Others are not to wait for it.
	Heavy bool

	// N is the result: that many bytes from the start of the run were read. What the buffers hold
	// beyond N is undefined.
	N int
	// Err is nil only when N is Size. It is an errno of the device, io.ErrUnexpectedEOF when the
	// device gave fewer bytes and no error, ErrAlign, or ErrClosed.
	Err error

	next      *Read        // link of the list that the read waits in
	follower  *Read        // the next of those that one request is made of; nil: this is the last
	follows   bool         // it is not the first of them
	submitted time.Time    // when Submit took it
	started   atomic.Int64 // when it went to the kernel, Unix nanoseconds; 0: it is not there
	stats     Stats        // who was told of the submission, and so is told of the completion
}

// Started says when the read went to the kernel, and whether it is there. One that is submitted and not there waits
// for others of the same device, or is done by its submitter. It may be asked from any goroutine.
func (r *Read) Started() (time.Time, bool) {
	at := r.started.Load()
	return time.Unix(0, at), at != 0
}

// start notes that the read goes to the kernel, if it was not there before.
func (r *Read) start(now time.Time) { r.started.CompareAndSwap(0, now.UnixNano()) }

// Size is the number of bytes asked for: the sum of the lengths of Bufs.
func (r *Read) Size() int {
	total := 0
	for _, b := range r.Bufs {
		total += len(b)
	}
	return total
}

// Check returns an error that wraps ErrAlign unless r has a buffer and its offset and every
// buffer's address and length are multiples of align, which must be a power of two.
func (r *Read) Check(align int) error {
	if len(r.Bufs) == 0 {
		return fmt.Errorf("read at %d has no buffer: %w", r.Off, ErrAlign)
	}
	mask := uint64(align) - 1
	if uint64(r.Off)&mask != 0 {
		return fmt.Errorf("read at %d is not at a multiple of %d: %w", r.Off, align, ErrAlign)
	}
	for i, b := range r.Bufs {
		addr := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b))))
		if (addr|uint64(len(b)))&mask != 0 {
			return fmt.Errorf("read at %d, buffer %d: address %#x length %d, not multiples of %d: %w",
				r.Off, i, addr, len(b), align, ErrAlign)
		}
	}
	return nil
}
