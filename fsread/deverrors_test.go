package fsread

import (
	"errors"
	"testing"

	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/ondisk/ondisktest"
)

func TestDeviceErrors(t *testing.T) {
	want := ondisk.DevErrors{0, 3, 0, 1 << 40, 2}
	b := newBuilder(t)
	b.put(ondisk.TreeDev, ondisk.DevStatsObjectID, ondisk.TypePersistentItem, 1, ondisktest.DevErrors(want))
	if got, err := b.file().fs.DeviceErrors(t.Context()); err != nil || len(got) != 1 || got[1] != want {
		t.Errorf("got %v, %v, want devid 1: %v", got, err, want)
	}
	b = newBuilder(t)
	b.put(ondisk.TreeDev, ondisk.DevStatsObjectID, ondisk.TypePersistentItem, 1, []byte("odd"))
	if got, err := b.file().fs.DeviceErrors(t.Context()); !errors.Is(err, ondisk.ErrCorrupt) || len(got) != 0 {
		t.Errorf("an item of 3 bytes: got %v, %v", got, err)
	}
	if got, err := newBuilder(t).file().fs.DeviceErrors(t.Context()); err == nil || len(got) != 0 {
		t.Errorf("no device tree: got %v, %v", got, err)
	}
}

// TestDeviceErrorsOfImages: no device of the images has ever failed.
func TestDeviceErrorsOfImages(t *testing.T) {
	f := openPlain(t, fsreadtest.Load(t, "raid1-2"))
	got, err := f.DeviceErrors(t.Context())
	if none := (ondisk.DevErrors{}); err != nil || len(got) != 2 || got[1] != none || got[2] != none {
		t.Errorf("got %v, %v", got, err)
	}
}
