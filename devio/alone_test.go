package devio

import (
	"testing"
	"time"
)

// TestAlone: of the reads that are to be alone one is in the kernel at a time, whichever batches they came in, and
// others do not wait for it.
func TestAlone(t *testing.T) { forEngines(t, testAlone) }

func testAlone(t *testing.T, e Engine) {
	q, g, data := openGated(t, e, 8)
	done := make(arrivals, 16)
	read := func(i int, alone bool) *Read {
		return &Read{Off: Physical(i * 4096), Bufs: [][]byte{aligned(4096)}, Done: done, Alone: alone, Lone: alone}
	}
	q.Submit([]*Read{read(0, true)}) // not by the submitter, who would wait at the gate
	q.Submit([]*Read{read(1, true), read(100, false), read(2, true), read(101, false), read(3, true)})
	for range 3 {
		<-g.entered
	}
	for range 2 { // those that have all the device to themselves, but for the two
		select {
		case off := <-g.entered:
			t.Fatalf("the read at %d did not wait", off)
		case <-time.After(20 * time.Millisecond):
		}
		g.open <- struct{}{}
		g.open <- struct{}{}
		g.open <- struct{}{}
		for range 3 {
			checkRead(t, done.next(t), data)
		}
		<-g.entered
		q.Submit([]*Read{read(102, false), read(120, false)})
		<-g.entered
		<-g.entered
	}
	for range 4 {
		g.open <- struct{}{}
	}
	for range 4 {
		checkRead(t, done.next(t), data)
	}
}

// TestAloneClosed: those that wait end with the queue.
func TestAloneClosed(t *testing.T) { forEngines(t, testAloneClosed) }

func testAloneClosed(t *testing.T, e Engine) {
	q, g, data := openGated(t, e, 8)
	done := make(arrivals, 16)
	var batch []*Read
	for i := range 5 {
		batch = append(batch, &Read{Off: Physical(i * 4096), Bufs: [][]byte{aligned(4096)}, Done: done, Alone: true})
	}
	q.Submit(batch)
	<-g.entered
	closed := make(chan error, 1)
	go func() { closed <- q.Close() }()
	for range 4 {
		if r := done.next(t); r.Err != ErrClosed {
			t.Errorf("offset %d: got %v, want ErrClosed", r.Off, r.Err)
		}
	}
	g.open <- struct{}{}
	checkRead(t, done.next(t), data)
	if err := <-closed; err != nil {
		t.Error(err)
	}
	q.Submit(batch[:1])
	if r := done.next(t); r.Err != ErrClosed {
		t.Errorf("after Close: %v, want ErrClosed", r.Err)
	}
}
