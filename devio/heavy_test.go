package devio

import (
	"runtime"
	"sync"
	"testing"
)

// A heavy read is finished while the Completer of another runs.
func TestHeavyReadsBesideEachOther(t *testing.T) { forEngines(t, testHeavyReadsBesideEachOther) }

func testHeavyReadsBesideEachOther(t *testing.T, e Engine) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(3))
	path, data := writeFile(t, 1<<20)
	q := open(t, path, Options{Engine: e, Workers: 8})
	const n = 3 // as many at a time as processors
	for range 20 {
		done, met := make(arrivals, n), sync.WaitGroup{}
		met.Add(n)
		meet := callback(func(r *Read) {
			met.Done()
			met.Wait()
			done.ReadDone(r)
		})
		var batch []*Read
		for i := range n {
			batch = append(batch, &Read{Off: Physical(i * 300 << 10), Bufs: [][]byte{aligned(uringLong)}, Done: meet, Heavy: true})
		}
		if u, ok := q.engine.(*uringEngine); ok {
			for u.idle.Load() < n-1 { // who ended the last round
				runtime.Gosched()
			}
		}
		q.Submit(batch)
		for range n {
			checkRead(t, done.next(t), data)
		}
	}
}
