package fsread

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/btrexport/btrexport/devio/faultdev"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
)

// testSlow is how long tests wait for a device that hangs.
const testSlow = 15 * time.Millisecond

// rowImages gives the golden images of RAID5 and RAID6, and how many devices each can do without.
func rowImages(t testing.TB) map[string]int {
	out := map[string]int{}
	for _, n := range fsreadtest.Names(t) {
		if strings.HasPrefix(n, "raid5") {
			out[n] = 1
		} else if strings.HasPrefix(n, "raid6") {
			out[n] = 2
		}
	}
	if len(out) < 9 {
		t.Fatalf("%d golden images of RAID5 and RAID6, want 9", len(out))
	}
	return out
}

// eachLoss calls f for every set of one to most of n devices.
func eachLoss(n, most int, f func(name string, gone []int)) {
	for a := range n {
		f(fmt.Sprint(a+1), []int{a})
		for b := range a {
			if most > 1 {
				f(fmt.Sprint(b+1, "+", a+1), []int{b, a})
			}
		}
	}
}

// mustReadAll reads every file that truth has, with a checksum or, if unverified, without, and compares it.
func mustReadAll(t *testing.T, f *FS, truth map[string][]byte, unverified bool) {
	t.Helper()
	n := 0
	err := eachFile(f, func(path string, file *File) error {
		want, ok := truth[path]
		if !ok || (!file.Verified() && !unverified) {
			return nil
		}
		n++
		got := make([]byte, len(want))
		_, err := file.ReadAt(context.Background(), got, 0)
		return mustEqual(path, got, want, 0, err)
	})
	if err != nil {
		t.Error(err)
	}
	if n < len(truth)/2 {
		t.Errorf("%d files of %d read: the test shows little", n, len(truth))
	}
}

// TestRowsMissingDevices opens every image of RAID5 and RAID6 without each device and each pair that it can do
// without: every byte of every file is there, with a checksum or without.
func TestRowsMissingDevices(t *testing.T) {
	for name, most := range rowImages(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img := fsreadtest.Load(t, name)
			truth := files(t, mustOpen(t, newRig(t, img), Options{}), 64<<20)
			eachLoss(len(img.Devices), most, func(what string, gone []int) {
				t.Run("without "+what, func(t *testing.T) {
					r := newRig(t, img)
					var left []volume.Device
					for i, d := range r.devs {
						if i == gone[0] || i == gone[len(gone)-1] {
							d.Close()
						} else {
							left = append(left, d)
						}
					}
					if _, err := Open(t.Context(), left, Options{Pool: r.pool}); !errors.Is(err, volume.ErrMissing) {
						t.Fatalf("without --degraded: %v, want ErrMissing", err)
					}
					f, err := Open(t.Context(), left, Options{Degraded: true, Pool: r.pool})
					if err != nil {
						t.Fatal(err)
					}
					mustReadAll(t, f, truth, true)
					r.close(t, f)
				})
			})
		})
	}
}

// TestRowsWrongDevices fills each device, and each pair that the profile can do without, with junk, all but its
// superblocks: every byte that has a checksum is right.
func TestRowsWrongDevices(t *testing.T) {
	for name, most := range rowImages(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rng := fsreadtest.Seed(t)
			img := fsreadtest.Load(t, name)
			truth := files(t, mustOpen(t, newRig(t, img), Options{}), 64<<20)
			eachLoss(len(img.Devices), most, func(what string, gone []int) {
				if len(img.Devices) > 4 && len(gone) > 1 && rng.IntN(3) > 0 {
					return // a third of the pairs will do for each run
				}
				t.Run(what+" wrong", func(t *testing.T) {
					wrong := fsreadtest.Load(t, name)
					for _, i := range gone {
						junk(t, rng, wrong.Devices[i])
					}
					r := newRig(t, wrong)
					stats := newCounts()
					f, err := r.open(Options{Stats: stats})
					if err != nil {
						r.close(t, nil)
						t.Fatal(err)
					}
					mustReadAll(t, f, truth, false)
					if stats.repaired == 0 || stats.lost != 0 {
						t.Errorf("counted %d repaired and %d lost, want some and none", stats.repaired, stats.lost)
					}
					r.close(t, f)
				})
			})
		})
	}
}

// junk overwrites what an image file holds, but for holes and superblocks.
func junk(t *testing.T, rng *rand.Rand, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	supers := map[uint64]bool{}
	for _, at := range ondisk.SuperblockOffsets() {
		supers[at] = true
	}
	block := make([]byte, 4096)
	for at := 0; at+4096 <= len(b); at += 4096 {
		if supers[uint64(at)] || allZero(b[at:at+4096]) {
			continue
		}
		for i := range block {
			block[i] = byte(rng.Uint32())
		}
		pwrite(t, path, int64(at), block)
	}
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// TestRowsPulled pulls one device out, and for RAID6 a second, while files are read.
func TestRowsPulled(t *testing.T) {
	for _, name := range []string{"raid5", "raid5-5", "raid6", "raid6-6"} {
		for _, cause := range []error{nil, syscall.EIO} {
			rng := fsreadtest.Seed(t)
			img := fsreadtest.Load(t, name)
			r := newRig(t, img)
			f := mustOpen(t, r, Options{CacheBytes: 1})
			truth := files(t, f, 4<<20)
			for _, i := range rng.Perm(len(img.Devices))[:rowImages(t)[name]] {
				r.devs[i].Lose(cause)
				mustReadAll(t, f, truth, true)
			}
		}
	}
}

// TestHangingDevice has a device that stops answering, in tree blocks and data, with and without compression: the
// copies and parity serve, and what the device brings in the end harms nobody.
func TestHangingDevice(t *testing.T) {
	for _, name := range []string{"raid1-2", "raid1c3", "raid10-4", "raid5-4", "raid6-5"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rng := fsreadtest.Seed(t)
			img := fsreadtest.Load(t, imageName(t, name))
			r := newRig(t, img)
			truth := files(t, mustOpen(t, newRig(t, img), Options{}), 4<<20)
			f, err := r.open(Options{CacheBytes: 1, SlowRead: testSlow})
			if err != nil {
				t.Fatal(err)
			}
			sick := r.devs[rng.IntN(len(r.devs))]
			sick.Hang(faultdev.All())
			mustReadAll(t, f, truth, true)
			sick.Release()
			mustReadAll(t, f, truth, true)
			r.close(t, f)
		})
	}
}

// TestTruncatedDevice cuts a device off in the middle, or in front of a superblock: what it has lost is read from
// the other copies and parity.
func TestTruncatedDevice(t *testing.T) {
	for _, name := range []string{"raid1-2", "raid10-4", "raid5-4", "raid6"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rng := fsreadtest.Seed(t)
			img := fsreadtest.Load(t, imageName(t, name))
			truth := files(t, mustOpen(t, newRig(t, img), Options{}), 4<<20)
			cut := img.Devices[rng.IntN(len(img.Devices))]
			info, err := os.Stat(cut)
			if err != nil {
				t.Fatal(err)
			}
			for _, size := range []int64{info.Size() / 2, 1<<20 + 4096*rng.Int64N(256) + 1000} {
				if err := os.Truncate(cut, size); err != nil {
					t.Fatal(err)
				}
				r := newRig(t, img)
				f, err := r.open(Options{})
				if err != nil {
					r.close(t, nil)
					t.Fatalf("cut to %d bytes: %v", size, err)
				}
				mustReadAll(t, f, truth, true)
				r.close(t, f)
			}
		})
	}
}
