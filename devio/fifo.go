package devio

// fifo is a list of reads, linked through the reads themselves so that queueing never allocates
// and has no bound. The zero value is empty.
type fifo struct {
	first, last *Read
}

func (l *fifo) empty() bool { return l.first == nil }

func (l *fifo) push(r *Read) {
	r.next = nil
	if l.last == nil {
		l.first = r
	} else {
		l.last.next = r
	}
	l.last = r
}

// pop takes the oldest read; l must not be empty.
func (l *fifo) pop() *Read {
	r := l.first
	l.first, r.next = r.next, nil
	if l.first == nil {
		l.last = nil
	}
	return r
}
