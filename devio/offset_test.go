package devio

import (
	"bytes"
	"errors"
	"io"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// endedReads hands those that are over to a channel.
type endedReads chan *Read

func (c endedReads) ReadDone(r *Read) { c <- r }

// TestOffset reads what lies behind an offset, by every way there is, and compares all bytes.
func TestOffset(t *testing.T) {
	const size = 1 << 20
	path, data := writeFile(t, size)
	rng := newRand(t)
	for _, o := range []Options{
		{Engine: Pread}, {Engine: Pread, Buffered: true}, {Engine: IOUring}, {Engine: IOUring, Buffered: true},
	} {
		for _, offset := range []uint64{0, 1, 512, 513, 4096, 32256, 65536, size - 1, size} {
			o.Offset, o.Name = offset, "a name"
			q, err := Open(path, o)
			if errors.Is(err, ErrEngine) {
				t.Logf("io_uring: %v", err)
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, want := q.Size(), size-offset; got != want || q.Offset() != offset || q.Path() != path || q.Name() != "a name" {
				t.Errorf("%s@%d: size %d, want %d; %s, offset %d", path, offset, got, want, q.Path(), q.Offset())
			}
			if offset&uint64(q.Align()-1) != 0 {
				t.Errorf("offset %d: alignment %d", offset, q.Align())
			}
			for range 8 {
				checkBatch(t, q, rng.Uint64N(q.Size()+1), data[offset:])
			}
			checkBatch(t, q, 0, data[offset:])
			if err := q.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// checkBatch reads 4 KiB at off and three times behind it, and compares them with data.
func checkBatch(t *testing.T, q *Queue, off uint64, data []byte) {
	t.Helper()
	off &^= maxAlign - 1
	done := make(endedReads, 4)
	var batch []*Read
	for i := range 4 {
		r := &Read{Off: Physical(off + uint64(i)*12288), Bufs: [][]byte{aligned(maxAlign)}, Done: done, Lone: i == 0}
		batch = append(batch, r)
	}
	q.Submit(batch[:1])
	q.Submit(batch[1:])
	for range batch {
		select {
		case r := <-done:
			want := data[min(int(r.Off), len(data)):min(int(r.Off)+maxAlign, len(data))]
			if r.N != len(want) || !bytes.Equal(r.Bufs[0][:r.N], want) {
				t.Fatalf("%s@%d, read at %d: %d bytes, want %d, and those that are there", q.Path(), q.Offset(), r.Off, r.N, len(want))
			}
			if short := len(want) < maxAlign; short != errors.Is(r.Err, io.ErrUnexpectedEOF) || !short && r.Err != nil {
				t.Fatalf("%s@%d, read at %d: %v", q.Path(), q.Offset(), r.Off, r.Err)
			}
		case <-time.After(time.Minute):
			t.Fatal("a read does not end")
		}
	}
}

// A read whose place in the file no number can hold ends like any other behind the end.
func TestOffsetOverflow(t *testing.T) {
	path, _ := writeFile(t, 8192)
	q, err := Open(path, Options{Engine: Pread, Offset: 4096})
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	done := make(endedReads, 1)
	for _, off := range []Physical{1<<63 - 4096, 1<<63 - 8192, 1<<63 - 12288, 1<<64 - 4096} {
		q.Submit([]*Read{{Off: off, Bufs: [][]byte{aligned(maxAlign)}, Done: done}})
		if r := <-done; r.N != 0 || r.Err == nil {
			t.Errorf("read at %d: %d bytes, %v", off, r.N, r.Err)
		}
	}
}

func TestOffsetBehindTheEnd(t *testing.T) {
	path, _ := writeFile(t, 8192)
	_, err := Open(path, Options{Offset: 8193, Name: "disk@8193"})
	want := "open disk@8193: offset 8193 is behind the end: it has 8192 bytes (list partitions and where they begin with: fdisk -l)"
	if !errors.Is(err, ErrOffset) || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	if _, err := Open(path, Options{Offset: 1<<64 - 1}); !errors.Is(err, ErrOffset) {
		t.Errorf("got %v, want ErrOffset", err)
	}
}

// One file from two offsets on is two devices; from one offset on, by two names, it is one.
func TestSameOffset(t *testing.T) {
	path, _ := writeFile(t, 8192)
	link := filepath.Join(t.TempDir(), "link")
	if err := unix.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	open := func(path string, offset uint64) *Queue {
		q, err := Open(path, Options{Engine: Pread, Offset: offset})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { q.Close() })
		return q
	}
	a, b, c := open(path, 4096), open(link, 4096), open(path, 0)
	if !a.Same(b) || a.Same(c) {
		t.Errorf("one offset: Same %v, want true; two: %v, want false", a.Same(b), a.Same(c))
	}
}
