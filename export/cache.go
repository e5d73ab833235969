package export

const (
	// warmBytes is how much of a CACHE is read at a time: a compressed extent's most.
	warmBytes = 128 << 10
	// maxWarm bounds what one CACHE reads, in bytes, and maxWarmQueue how many wait their turn. The rest
	// is not read: the command is a hint.
	maxWarm      = MaxRead
	maxWarmQueue = 16
)

// checkCache wants a range inside of the export and no flag.
func (q *request) checkCache() error {
	if q.flags != 0 {
		return errFlags
	}
	return q.checkRange()
}

// prefetch reads the range of a CACHE, which is answered at once. Its beginning is kept for who asks for it. The rest
// is queued to be read, checked and dropped, so that the File's own caches know it: tree blocks, inflated extents.
func (t *transmission) prefetch(q *request) {
	size := t.export.fileSize
	if q.offset >= size {
		return
	}
	s := Span{Offset: q.offset, Length: min(q.length, size-q.offset, maxWarm)}
	kept := t.ahead.cache(s)
	if s.Offset, s.Length = s.Offset+kept, s.Length-kept; s.Length > 0 {
		t.warmups.add(s)
	}
}

// warm reads a range, a part at a time, as long as the server's memory has room for it and
// somebody may still want it.
func (t *transmission) warm(s Span) {
	for s.Length > 0 && t.life.Err() == nil && !t.leaving.Load() {
		n := min(s.Length, warmBytes)
		c, ok := t.share.try(int64(n))
		if !ok {
			return
		}
		a := &warmRead{share: t.share, charge: c, done: make(chan bool, 1)}
		a.read = Read{Offset: s.Offset, Length: uint32(n), Done: a}
		t.export.File.Submit([]*Read{&a.read})
		select {
		case good := <-a.done:
			if !good {
				return
			}
		case <-t.lost:
			return
		}
		s.Offset, s.Length = s.Offset+n, s.Length-n
	}
}

// warmRead is one read whose bytes nobody takes.
type warmRead struct {
	read   Read
	share  *share
	charge charge
	done   chan bool // of capacity 1: whether it succeeded
}

// ReadDone implements Completer.
func (a *warmRead) ReadDone(*Read) {
	good := a.read.Err == nil
	if a.read.Lender != nil {
		a.read.Lender.Release(&a.read)
	}
	a.share.give(a.charge)
	a.done <- good
}
