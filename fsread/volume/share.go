package volume

import (
	"cmp"
	"slices"
	"sort"

	"github.com/btrexport/btrexport/devio"
)

// A column that something is rebuilt from is often read anyway: by the request next to it, whose data it is, or by
// another rebuild of the same row, where two devices are missing. In the first round of a batch each such range is
// read once. Who needs it too taps the run that reads it: is handed the bytes when they have come, before anybody
// else may change them, and is told when they do not come. What goes wrong sends the unit into the next round,
// where its row is read for it alone.

// tap is a column of a rebuild that the run of another fragment brings.
type tap struct {
	r    *Request // that waits for it
	rb   *rebuild
	col  int
	frag int // of the run's request, that holds all of the column's range
	skip int // bytes of the fragment in front of the range
	end  int // of the range in the run
}

// runRef names a run of a request that is being planned, whose list of runs may still move.
type runRef struct {
	off devio.Physical // where it begins
	r   *Request
	i   int
}

func (r *Request) ref(i int) runRef { return runRef{r.runs[i].read.Off, r, i} }

func (f runRef) run() *run { return &f.r.runs[f.i] }

func compareRefs(a, b runRef) int { return cmp.Compare(a.off, b.off) }

// planColumns plans the columns that the batch's requests are rebuilt from, when all that they read for themselves
// is planned.
func (b *batch) planColumns(reqs []*Request) {
	if !slices.ContainsFunc(reqs, func(r *Request) bool { return len(r.rebuilds) > 0 }) {
		return
	}
	for _, r := range reqs {
		for i := range r.runs {
			x := r.runs[i].m.index
			b.index[x] = append(b.index[x], r.ref(i))
		}
	}
	for _, refs := range b.index {
		slices.SortFunc(refs, compareRefs)
	}
	for _, r := range reqs {
		r.readColumns(b)
	}
	for i, refs := range b.index {
		clear(refs)
		b.index[i] = refs[:0]
	}
}

// enter adds a run that was planned for columns to the index.
func (b *batch) enter(r *Request, i int) {
	f := r.ref(i)
	refs := b.index[f.run().m.index]
	at, _ := slices.BinarySearchFunc(refs, f, compareRefs)
	b.index[f.run().m.index] = slices.Insert(refs, at, f)
}

// at gives the fragment of the index that holds a byte of a device, where it begins in its run, and how many of n bytes
// from phys on it holds. frag is -1 where none does: n is then what lies in front of the next.
func (b *batch) at(m *member, phys devio.Physical, n int) (f runRef, frag, start, held int) {
	refs := b.index[m.index]
	i := sort.Search(len(refs), func(j int) bool { return refs[j].off > phys })
	if i < len(refs) {
		n = int(min(devio.Physical(n), refs[i].off-phys))
	}
	if i == 0 {
		return f, -1, 0, n
	}
	f = refs[i-1]
	skip := int(phys - f.off)
	for frag = f.run().first; frag >= 0; frag = f.r.frags[frag].next {
		size := f.r.frags[frag].n
		if skip < start+size {
			return f, frag, start, min(n, start+size-skip)
		}
		start += size
	}
	return f, -1, 0, n
}

// cut makes rb end where the reads of its columns by others of the batch do, so that each column of it is either
// read by one of them or by none. What is left is planned as a rebuild of its own.
func (b *batch) cut(r *Request, rb *rebuild) {
	n := rb.n
	for i := range rb.mem {
		if m, phys := rb.c.column(rb.in, i); i != rb.want && m.dev != nil {
			if _, _, _, held := b.at(m, phys, n); held%r.Unit == 0 {
				n = held
			}
		}
	}
	if n < rb.n {
		r.newRebuild(rb.c, rb.in+uint64(n), rb.off+n, rb.n-n, rb.effort)
		rb.n = n
	}
}

// tap finds a run that reads all of column i of rb, and has rb told of it; false when there is none. A column
// that the request itself reads for another rebuild need not be copied: mem is set to it.
func (b *batch) tap(r *Request, rb *rebuild, i int) bool {
	m, phys := rb.c.column(rb.in, i)
	f, frag, start, held := b.at(m, phys, rb.n)
	if frag < 0 || held < rb.n || (f.r != r && f.r.home == nil && r.home != nil) {
		return false // or nobody would look whether that read is late
	}
	x, fr := f.run(), &f.r.frags[frag]
	t := tap{r: r, rb: rb, col: i, frag: frag, end: int(phys-f.off) + rb.n}
	t.skip = t.end - rb.n - start
	if fr.rb != nil && f.r == r {
		rb.mem[i] = fr.rb.mem[fr.col][t.skip : t.skip+rb.n : t.skip+rb.n]
	}
	x.taps = append(x.taps, t)
	r.taps++
	return true
}

// deliver hands what the run brought to those who tap it. The run's request can't go on meanwhile.
func (x *run) deliver() {
	for i := range x.taps {
		t := &x.taps[i]
		if t.end > x.read.N {
			t.fail(x.read.Err)
			continue
		}
		fr := &x.frags[t.frag]
		from := x.buf
		at := fr.off
		if fr.rb != nil {
			from, at = fr.rb.mem[fr.col], 0
		}
		if to, b := t.rb.mem[t.col], from[at+t.skip:]; &to[0] != &b[0] {
			copy(to, b)
		}
		t.r.release()
	}
	clear(x.taps)
	x.taps = x.taps[:0]
}

// fail tells who taps that the column does not come.
func (t *tap) fail(err error) {
	t.rb.missed(t.col, err)
	t.r.release()
}
