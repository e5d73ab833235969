package devio

import (
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// asked notes what a file is asked for, and fails what touches a part of it that is bad.
type asked struct {
	sync.Mutex
	spans    [][2]int // offset and length, of each request
	from, to int64    // the bad part
}

func (a *asked) over(preadv func(int, []unix.Iovec, int64) (int, error)) func(int, []unix.Iovec, int64) (int, error) {
	return func(fd int, iov []unix.Iovec, off int64) (int, error) {
		n := int64(0)
		for _, v := range iov {
			n += int64(v.Len)
		}
		a.Lock()
		a.spans = append(a.spans, [2]int{int(off), int(n)})
		bad := off < a.to && a.from < off+n
		a.Unlock()
		if bad {
			return 0, unix.EIO
		}
		return preadv(fd, iov, off)
	}
}

// taken gives what was asked for, by offset, and forgets it.
func (a *asked) taken() [][2]int {
	a.Lock()
	defer a.Unlock()
	s := a.spans
	a.spans = nil
	slices.SortFunc(s, func(x, y [2]int) int { return slices.Compare(x[:], y[:]) })
	return s
}

// openAsked is openFake with a note of what the file is asked for.
func openAsked(t *testing.T) (*Queue, *asked, []byte) {
	q, data := openFake(t, 8, &fakeRing{})
	a := &asked{}
	q.file.preadv = a.over(q.file.preadv)
	return q, a, data
}

// reads makes a batch of offset and length, both in KiB.
func reads(done Completer, spans ...[2]int) []*Read {
	var batch []*Read
	for _, s := range spans {
		batch = append(batch, &Read{Off: Physical(s[0] << 10), Bufs: [][]byte{aligned(s[1] << 10)}, Done: done})
	}
	return batch
}

func kib(spans ...[2]int) [][2]int {
	for i := range spans {
		spans[i] = [2]int{spans[i][0] << 10, spans[i][1] << 10}
	}
	return spans
}

func TestReadsThatLieCloseAreOneRequest(t *testing.T) {
	type spans = [][2]int
	for _, tt := range []struct {
		name        string
		batch, want spans // KiB
	}{
		{"touching", spans{{0, 4}, {4, 8}, {12, 4}}, spans{{0, 16}}},
		{"gaps", spans{{0, 4}, {8, 4}, {28, 4}}, spans{{0, 32}}},
		{"far", spans{{0, 4}, {24, 4}}, spans{{0, 4}, {24, 4}}},
		{"not in order", spans{{16, 8}, {0, 4}, {4, 4}}, spans{{0, 24}}},
		{"fragments", spans{{0, 12}, {512, 4}, {16, 20}, {700, 4}, {40, 4}, {600, 4}}, spans{{0, 44}, {512, 4}, {600, 4}, {700, 4}}},
		{"too long", spans{{0, 128}, {128, 124}, {252, 8}, {264, 4}}, spans{{0, 252}, {252, 16}}},
		{"long ones", spans{{0, 256}, {256, 300}}, spans{{0, 256}, {256, 300}}},
		{"twice", spans{{0, 8}, {0, 8}, {4, 8}}, spans{{0, 8}, {0, 8}, {4, 8}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q, a, data := openAsked(t)
			done := make(arrivals, len(tt.batch))
			q.Submit(reads(done, tt.batch...))
			for range tt.batch {
				checkRead(t, done.next(t), data)
			}
			if got, want := a.taken(), kib(tt.want...); !slices.Equal(got, want) {
				t.Errorf("asked for %d, want %d", got, want)
			}
		})
	}
}

// What is to be read alone is, and refused reads take no others along.
func TestReadsThatDoNotMerge(t *testing.T) {
	q, a, data := openAsked(t)
	done := make(arrivals, 4)
	batch := reads(done, [2]int{0, 4}, [2]int{4, 4}, [2]int{8, 4}, [2]int{12, 4})
	batch[1].Alone = true
	batch[3].Off++
	if q.file.align < 2 {
		q.file.align = 2
	}
	q.Submit(batch)
	for range batch {
		if r := done.next(t); r.Off%2 == 1 {
			if r.Err == nil {
				t.Error("a read was taken that is not aligned")
			}
		} else {
			checkRead(t, r, data)
		}
	}
	if got, want := a.taken(), kib([2]int{0, 4}, [2]int{4, 4}, [2]int{8, 4}); !slices.Equal(got, want) {
		t.Errorf("asked for %d, want %d", got, want)
	}
}

// An error is that of the reads that meet it, and of no neighbour. Where nobody asked for what failed, nobody learns of
// it, and what lies between reads is left alone from then on.
func TestErrorOfMergedReads(t *testing.T) {
	spans := [][2]int{{0, 4}, {8, 4}, {16, 4}, {20, 4}, {28, 4}}
	for _, tt := range []struct {
		name     string
		from, to int64    // KiB
		bad      Physical // the read that meets the error
		requests [2]int   // the second round joins only what touches
	}{
		{"in a read", 20, 24, 20 << 10, [2]int{1 + len(spans), 4 + 2}},
		{"between", 12, 16, 1 << 40, [2]int{1 + len(spans), 4}},
		{"at the end", 31, 32, 28 << 10, [2]int{1 + len(spans), 4}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q, a, data := openAsked(t)
			a.from, a.to = tt.from<<10, tt.to<<10
			done := make(arrivals, len(spans))
			batch := reads(done, spans...)
			for round, want := range tt.requests {
				q.Submit(batch)
				for range batch {
					r := done.next(t)
					if r.Off != tt.bad {
						checkRead(t, r, data)
					} else if r.Err != unix.EIO || r.N != 0 {
						t.Errorf("read at %d: got %d, %v, want EIO", r.Off, r.N, r.Err)
					}
				}
				if got := a.taken(); len(got) != want {
					t.Errorf("round %d: %d requests, want %d: %d", round, len(got), want, got)
				}
			}
		})
	}
}

// A file that ends inside of a request made of several reads.
func TestMergedReadsBeyondTheEnd(t *testing.T) {
	q, _, data := openAsked(t)
	done := make(arrivals, 3)
	q.Submit(reads(done, [2]int{1016, 4}, [2]int{1020, 8}, [2]int{1028, 4}))
	for range 3 {
		r := done.next(t)
		want := min(max(0, len(data)-int(r.Off)), r.Size())
		if r.N != want || (r.Err == nil) != (want == r.Size()) || string(r.Bufs[0][:r.N]) != string(data[min(int(r.Off), len(data)):][:r.N]) {
			t.Errorf("read of %d at %d: got %d, %v, want %d bytes", r.Size(), r.Off, r.N, r.Err, want)
		}
	}
}
