package fsread

import (
	"context"
	"io"
)

// chunkSize is how much ReadAt asks for at a time, and depth how many such reads it has under way.
const (
	chunkSize = 1 << 20
	depth     = 4
)

// waiting is a Read that somebody waits for, or has stopped waiting for.
type waiting struct {
	Read
	done chan struct{} // has room for one
}

func (w *waiting) ReadDone(*Read) { w.done <- struct{}{} }

// ReadAt reads len(p) bytes at off, as io.ReaderAt has it: fewer than len(p) come with an error, io.EOF at
// the end of the file. Up to 4 MiB are under way at a time. On an error n is the good prefix; for a
// *LostError what follows the lost ranges is in p as well. A context that ends stops the waiting: what is
// still being read then goes into buffers of the FS and never into p.
func (f *File) ReadAt(ctx context.Context, p []byte, off uint64) (n int, err error) {
	if off >= f.size {
		return 0, io.EOF
	}
	short := uint64(len(p)) > f.size-off
	if short {
		p = p[:f.size-off]
	}
	s := &stream{f: f, off: off, left: len(p)}
	defer s.abandon()
	var lost LostError
	for at := 0; at < len(p); {
		w, err := s.next(ctx)
		if err != nil {
			return at, err
		}
		l, isLost := w.Err.(*LostError)
		if w.Err != nil && !isLost {
			err := w.Err
			w.Release()
			return at, err
		}
		at += copy(p[at:], w.Payload())
		w.Release()
		if isLost {
			lost.Inode, lost.Ranges = l.Inode, append(lost.Ranges, l.Ranges...)
		}
	}
	if len(lost.Ranges) > 0 {
		return int(lost.Ranges[0].Off - off), &lost
	}
	if short {
		return len(p), io.EOF
	}
	return len(p), nil
}

// stream keeps several reads of a range under way and gives them in order.
type stream struct {
	f     *File
	off   uint64 // of the next read to start
	left  int    // bytes not started
	seen  uint64 // where the read before the next one started; 0: there was none
	queue []*waiting
}

func (s *stream) next(ctx context.Context) (*waiting, error) {
	for len(s.queue) < depth && s.left > 0 {
		w := &waiting{done: make(chan struct{}, 1)}
		w.Off, w.Len, w.Done, w.seen = s.off, min(s.left, chunkSize), w, s.seen
		s.seen = s.off
		s.off, s.left = s.off+uint64(w.Len), s.left-w.Len
		s.queue = append(s.queue, w)
		s.f.Submit([]*Read{&w.Read})
	}
	w := s.queue[0]
	select {
	case <-w.done:
		s.queue = s.queue[1:]
		return w, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// abandon gives back what was started and is not wanted any more, when it is done.
func (s *stream) abandon() {
	for _, w := range s.queue {
		go func() {
			<-w.done
			w.Release()
		}()
	}
}
