package ondisk_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/ondisk/ondisktest"
)

func TestRootItem(t *testing.T) {
	v1 := ondisk.RootItem{ // what an old kernel knows
		Generation: rootItem.Generation, DirID: rootItem.DirID, Bytenr: rootItem.Bytenr, Level: rootItem.Level,
		BytesUsed: rootItem.BytesUsed, LastSnapshot: rootItem.LastSnapshot, Flags: rootItem.Flags, Refs: rootItem.Refs,
		DropProgress: rootItem.DropProgress, DropLevel: rootItem.DropLevel,
	}
	stale := ondisktest.RootItem(rootItem)
	u64(stale, 239, rootItem.Generation-1)
	tests := []struct {
		name string
		raw  []byte
		want ondisk.RootItem
	}{
		{"current", ondisktest.RootItem(rootItem), rootItem},
		{"legacy", ondisktest.RootItem(rootItem)[:239], v1},
		{"changed by an old kernel", stale, v1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ondisk.DecodeRootItem(tt.raw)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("root item differs (-want +got):\n%s", d)
			}
		})
	}
}

func TestRootItemRefused(t *testing.T) {
	raw := append(ondisktest.RootItem(rootItem), 0)
	for _, n := range []int{0, 238, 240, 438, 440} {
		_, err := ondisk.DecodeRootItem(raw[:n])
		checkErr(t, err, ondisk.ErrCorrupt, fmt.Sprintf("%d bytes", n))
	}
	raw[238] = 8
	for _, n := range []int{239, 439} {
		_, err := ondisk.DecodeRootItem(raw[:n])
		checkErr(t, err, ondisk.ErrCorrupt, "level 8")
	}
}

func TestRootItemState(t *testing.T) {
	tests := []struct {
		name           string
		r              ondisk.RootItem
		readOnly, dead bool
	}{
		{"alive", ondisk.RootItem{Refs: 1}, false, false},
		{"read-only", ondisk.RootItem{Refs: 1, Flags: 1}, true, false},
		{"no refs", ondisk.RootItem{}, false, true},
		{"dead", ondisk.RootItem{Refs: 1, Flags: 1 << 48}, false, true},
		{"other flags", ondisk.RootItem{Refs: 1, Flags: ^uint64(1 | 1<<48)}, false, false},
	}
	for _, tt := range tests {
		if got := tt.r.ReadOnly(); got != tt.readOnly {
			t.Errorf("%s: ReadOnly: got %t, want %t", tt.name, got, tt.readOnly)
		}
		if got := tt.r.Dead(); got != tt.dead {
			t.Errorf("%s: Dead: got %t, want %t", tt.name, got, tt.dead)
		}
	}
}

func TestRootRef(t *testing.T) {
	long := make([]byte, 255)
	for _, want := range []ondisk.RootRef{
		{DirID: 256, Sequence: 9, Name: name("s")},
		{DirID: 1<<64 - 1, Name: long},
	} {
		got, err := ondisk.DecodeRootRef(ondisktest.RootRef(want))
		if err != nil {
			t.Errorf("%q: %v", want.Name, err)
		} else if d := cmp.Diff(want, got); d != "" {
			t.Errorf("root ref differs (-want +got):\n%s", d)
		}
	}
	raw := ondisktest.RootRef(ondisk.RootRef{Name: name("abc")})
	for n := range len(raw) {
		_, err := ondisk.DecodeRootRef(raw[:n])
		checkErr(t, err, ondisk.ErrCorrupt, "root ref")
	}
	_, err := ondisk.DecodeRootRef(append(raw, 0))
	checkErr(t, err, ondisk.ErrCorrupt, "name_len 3 in 22 bytes")
	for _, n := range []int{0, 256} {
		_, err := ondisk.DecodeRootRef(ondisktest.RootRef(ondisk.RootRef{Name: make([]byte, n)}))
		checkErr(t, err, ondisk.ErrCorrupt, fmt.Sprintf("name_len %d", n))
	}
}
