package volume

import (
	"testing"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/devio/faultdev"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
)

// TestLargeSectors reads in sectors of 8 to 64 KiB, one copy of each ruined where there are more: what is
// checked, read again and lost is a sector, and none is lost here.
func TestLargeSectors(t *testing.T) {
	rng := fsreadtest.Seed(t)
	for _, unit := range []int{8 << 10, 16 << 10, 64 << 10} {
		for _, s := range shapes() {
			r := newRig(t, s, 6)
			ruined := 0
			for off := 0; off < len(r.data) && r.c.copies > 1; off += unit {
				m := Mirror(1 + off/unit%r.c.copies) // whichever mirror is asked first meets some
				d, phys := r.at(off, m)
				d.Corrupt(faultdev.Range(phys+devio.Physical(rng.IntN(unit)), 1))
				ruined++
			}
			r.read(0, len(r.data), unit, true).mustHold(t)
			for range 20 {
				from := rng.IntN(len(r.data) / unit)
				n := 1 + rng.IntN(len(r.data)/unit-from)
				r.read(from*unit, n*unit, unit, true).mustHold(t)
			}
			if ruined > 0 && sum(r.stats.checksum) == 0 {
				t.Errorf("%s, sectors of %d: no ruined copy was met", s, unit)
			}
		}
	}
}
