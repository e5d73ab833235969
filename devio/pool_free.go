package devio

// freeList holds the free buffers of one class by the time of their release.
type freeList struct {
	newest, oldest *Buffer
}

func (l *freeList) push(b *Buffer) {
	b.newer, b.older = nil, l.newest
	if l.newest == nil {
		l.oldest = b
	} else {
		l.newest.newer = b
	}
	l.newest = b
}

func (l *freeList) remove(b *Buffer) {
	if b.newer == nil {
		l.newest = b.older
	} else {
		b.newer.older = b.older
	}
	if b.older == nil {
		l.oldest = b.newer
	} else {
		b.older.newer = b.newer
	}
	b.newer, b.older = nil, nil
}
