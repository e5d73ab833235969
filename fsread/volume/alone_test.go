package volume

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/devio/faultdev"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// merging is a disk whose kernel makes one of the reads of a batch that touch: an error at bad is that of all from there
// on. What is read alone fails or succeeds for itself.
type merging struct {
	*faultdev.Dev
	bad devio.Physical
}

func (d *merging) Submit(batch []*devio.Read) {
	hit := false
	for _, r := range batch {
		hit = hit || !r.Alone && r.Off <= d.bad && d.bad < r.Off+devio.Physical(r.Size())
	}
	for _, r := range batch {
		if hit && !r.Alone && r.Off+devio.Physical(r.Size()) > d.bad {
			go func() {
				r.N, r.Err = 0, unix.ENODATA
				r.Done.ReadDone(r)
			}()
			continue
		}
		d.Dev.Submit([]*devio.Read{r})
	}
}

// TestNeighboursOfABadBlock: where there is no other copy, a block is lost for its own error, not for that of one next to
// it which the kernel read together with it: small requests of a batch, and the units of a long one.
func TestNeighboursOfABadBlock(t *testing.T) {
	const bad = 5
	for name, ranges := range map[string][][2]int{
		"small requests": {{0, testUnit}, {testUnit, testUnit}, {2 * testUnit, testUnit}, {3 * testUnit, testUnit}, {4 * testUnit, testUnit},
			{5 * testUnit, testUnit}, {6 * testUnit, testUnit}, {7 * testUnit, testUnit}},
		"one request": {{0, 12 * testUnit}},
		"two of some": {{0, 6 * testUnit}, {6 * testUnit, 6 * testUnit}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, shape{ondisk.Single, 1}, 4)
			at := devio.Physical(devBase + bad*testUnit)
			r.devs[0].Fail(faultdev.Range(at, testUnit), unix.ENODATA)
			r.v.members[0].dev = &merging{r.devs[0], at}
			for i, q := range r.readAll(testUnit, true, ranges...) {
				if from, n := ranges[i][0], ranges[i][1]; from <= bad*testUnit && bad*testUnit < from+n {
					q.mustHold(t, bad*testUnit-from)
				} else {
					q.mustHold(t)
				}
			}
		})
	}
}
