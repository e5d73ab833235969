package export

import (
	"sync"

	"github.com/btrexport/btrexport/fsread"
)

// fsFile serves a file of a btrfs filesystem. Its reads and batches are kept for the next.
type fsFile struct {
	file    *fsread.File
	reads   sync.Pool // of *fsRead
	batches sync.Pool // of *fsBatch
}

// fsRead stands in for one Read at the filesystem. It is lent from Submit until its Release.
type fsRead struct {
	fsread.Read
	file *fsFile
	out  *Read
}

// fsBatch is what one Submit hands on.
type fsBatch struct{ reads []*fsread.Read }

// NewFile lets an export serve f. Payloads are the filesystem's own buffers, lent and not copied; a
// read that lost a part of its range fails with its *fsread.LostError. In the steady state (tree blocks
// cached, nothing fails) a read allocates nothing.
func NewFile(f *fsread.File) File {
	x := &fsFile{file: f}
	x.reads.New = func() any {
		r := &fsRead{file: x}
		r.Done = r
		return r
	}
	x.batches.New = func() any { return &fsBatch{} }
	return x
}

// Size implements File.
func (x *fsFile) Size() uint64 { return x.file.Size() }

// Submit implements File: the batch stays one batch down to the devices.
func (x *fsFile) Submit(batch []*Read) {
	b := x.batches.Get().(*fsBatch)
	for _, out := range batch {
		r := x.reads.Get().(*fsRead)
		r.out, r.Off, r.Len = out, out.Offset, int(out.Length)
		b.reads = append(b.reads, &r.Read)
	}
	x.file.Submit(b.reads)
	clear(b.reads) // they are their completers' by now
	b.reads = b.reads[:0]
	x.batches.Put(b)
}

// ReadDone implements fsread.Completer.
func (r *fsRead) ReadDone(*fsread.Read) {
	out := r.out
	out.Payload, out.Err, out.Lender = nil, r.Err, r
	if r.Err == nil {
		out.Payload = r.Payload()
	}
	out.Done.ReadDone(out)
}

// Release implements Lender.
func (r *fsRead) Release(*Read) {
	r.Read.Release()
	r.out, r.Err = nil, nil
	r.file.reads.Put(r)
}
