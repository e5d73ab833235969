package fsread

import (
	"math/rand/v2"
	"syscall"
	"testing"
	"time"
)

// cpuTime is what the process has used so far: on a busy machine the clock says little.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkPlan lays out reads whose tree blocks are cached, without reading anything: of a file of large extents,
// and of one of a million. Run it with -cpu 1,2,4 for what connections share.
func BenchmarkPlan(b *testing.B) {
	for _, fs := range []struct {
		name string
		l    *lazyFS
	}{{"plain", unbroken(64)}, {"fragmented", fragmented(1 << 16)}} {
		file := fs.l.open(b, fs.l, Options{CacheBytes: 256 << 20})
		for _, c := range []struct {
			name string
			n    int
		}{{"4K", 4096}, {"256K", 256 << 10}} {
			at := func() uint64 { return rand.Uint64N(min(file.size, 1<<29)/uint64(c.n)) * uint64(c.n) }
			warm := &Read{Len: 256 << 10}
			for warm.Off = 0; warm.Off < min(file.size, 1<<29); warm.Off += 256 << 10 {
				if err := planOnce(warm, file, false); err != nil {
					b.Fatal(err)
				}
			}
			b.Run(fs.name+"/"+c.name, func(b *testing.B) {
				b.ReportAllocs()
				from := cpuTime()
				b.RunParallel(func(pb *testing.PB) {
					r := &Read{Len: c.n}
					for pb.Next() {
						r.Off = at()
						if err := planOnce(r, file, true); err != nil {
							b.Error(err)
							return
						}
					}
				})
				b.ReportMetric(float64(cpuTime()-from)/float64(b.N), "cpu-ns/op")
			})
		}
	}
}

func planOnce(r *Read, file *File, noWait bool) error {
	if err := r.start(file); err != nil {
		return err
	}
	defer r.Release()
	return r.plan(file.fs.life, noWait)
}
