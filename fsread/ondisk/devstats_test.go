package ondisk_test

import (
	"errors"
	"testing"

	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/ondisk/ondisktest"
)

func TestDecodeDevErrors(t *testing.T) {
	whole := ondisktest.DevErrors(ondisk.DevErrors{1, 2, 3, 4, 1 << 40})
	for _, tc := range []struct {
		name string
		item []byte
		want ondisk.DevErrors
		text string
		bad  bool
	}{
		{name: "all five", item: whole, want: ondisk.DevErrors{1, 2, 3, 4, 1 << 40}, text: "write 1 read 2 flush 3 corruption 4 generation 1099511627776"},
		{name: "of an older kernel", item: whole[:16], want: ondisk.DevErrors{1, 2}, text: "write 1 read 2"},
		{name: "of a newer kernel", item: append(whole[:40:40], make([]byte, 16)...), want: ondisk.DevErrors{1, 2, 3, 4, 1 << 40},
			text: "write 1 read 2 flush 3 corruption 4 generation 1099511627776"},
		{name: "no errors", item: make([]byte, 40), text: "none"},
		{name: "empty", bad: true},
		{name: "cut", item: whole[:39], bad: true},
	} {
		got, err := ondisk.DecodeDevErrors(tc.item)
		if got != tc.want || errors.Is(err, ondisk.ErrCorrupt) != tc.bad || (err != nil) != tc.bad {
			t.Errorf("%s: got %v, %v, want %v, an error %v", tc.name, got, err, tc.want, tc.bad)
		}
		if err == nil && got.String() != tc.text {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.text)
		}
	}
}

func FuzzDecodeDevErrors(f *testing.F) {
	f.Add(ondisktest.DevErrors(ondisk.DevErrors{1, 2, 3, 4, 5}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := ondisk.DecodeDevErrors(b)
		if err != nil {
			known(t, err)
			return
		}
		again, err := ondisk.DecodeDevErrors(ondisktest.DevErrors(e))
		if err != nil || again != e {
			t.Fatalf("encoded and decoded again: got %v, %v, want %v", again, err, e)
		}
	})
}
