package ondisk_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/ondisk/ondisktest"
)

func TestInodeItem(t *testing.T) {
	raw := ondisktest.InodeItem(inodeItem)
	got, err := ondisk.DecodeInodeItem(raw)
	if err != nil || got != inodeItem {
		t.Errorf("got %+v, %v, want %+v", got, err, inodeItem)
	}
	for _, b := range [][]byte{nil, raw[:159], append(raw, 0)} {
		_, err := ondisk.DecodeInodeItem(b)
		checkErr(t, err, ondisk.ErrCorrupt, "inode item")
	}
}

func TestTimespec(t *testing.T) {
	tests := []struct {
		in   ondisk.Timespec
		want time.Time
	}{
		{ondisk.Timespec{}, time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC)},
		{ondisk.Timespec{Sec: -1, Nsec: 999999999}, time.Date(1969, 12, 31, 23, 59, 59, 999999999, time.UTC)},
		{ondisk.Timespec{Sec: 1 << 33, Nsec: 1}, time.Date(2242, 3, 16, 12, 56, 32, 1, time.UTC)},
	}
	for _, tt := range tests {
		if got := tt.in.Time(); !got.Equal(tt.want) {
			t.Errorf("%+v: got %s, want %s", tt.in, got, tt.want)
		}
	}
}

func TestInodeRefs(t *testing.T) {
	// A name may be of any length here: what it is good for, its user says.
	want := []ondisk.InodeRef{{Index: 2, Name: name("a")}, {Index: 1<<64 - 1, Name: name("..")}, {Index: 3, Name: name("")}}
	var got []ondisk.InodeRef
	for b := ondisktest.InodeRefs(want...); len(b) > 0; {
		r, rest, err := ondisk.NextInodeRef(b)
		if err != nil {
			t.Fatal(err)
		}
		got, b = append(got, r), rest
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("names differ (-want +got):\n%s", d)
	}
}

func TestInodeExtrefs(t *testing.T) {
	want := []ondisk.InodeExtref{{Parent: 256, Index: 2, Name: name("a")}, {Parent: 257, Index: 3, Name: name("b c")}, {Name: name("")}}
	var got []ondisk.InodeExtref
	for b := ondisktest.InodeExtrefs(want...); len(b) > 0; {
		r, rest, err := ondisk.NextInodeExtref(b)
		if err != nil {
			t.Fatal(err)
		}
		got, b = append(got, r), rest
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("names differ (-want +got):\n%s", d)
	}
}

func TestRefsCut(t *testing.T) {
	refs := ondisktest.InodeRefs(ondisk.InodeRef{Name: name("abc")})
	for n := range len(refs) {
		_, _, err := ondisk.NextInodeRef(refs[:n])
		checkErr(t, err, ondisk.ErrCorrupt, "inode ref")
	}
	extrefs := ondisktest.InodeExtrefs(ondisk.InodeExtref{Name: name("abc")})
	for n := range len(extrefs) {
		_, _, err := ondisk.NextInodeExtref(extrefs[:n])
		checkErr(t, err, ondisk.ErrCorrupt, "inode extref")
	}
}

func TestRefNamesAreClipped(t *testing.T) {
	r, rest, err := ondisk.NextInodeRef(ondisktest.InodeRefs(ondisk.InodeRef{Name: name("a")}, ondisk.InodeRef{Index: 7}))
	if err != nil {
		t.Fatal(err)
	}
	_ = append(r.Name, 0xFF)
	if r, _, err := ondisk.NextInodeRef(rest); err != nil || r.Index != 7 {
		t.Errorf("an append to a name reached the next one: got index %d, %v, want 7", r.Index, err)
	}
}
