package ondisk_test

import (
	"math"
	"reflect"
	"testing"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/ondisk/ondisktest"
)

var stripes = ondisk.StripeExtent{
	Logical: 1 << 30, Length: 64 << 10, Count: 2,
	Strides: [ondisk.MaxStrides]ondisk.Stride{{Dev: 1, Physical: 5 << 20}, {Dev: 2, Physical: 7 << 20}},
}

func stripeItem(s ondisk.StripeExtent) ondisktest.Item {
	return ondisktest.Item{Key: key(uint64(s.Logical), ondisk.TypeRaidStripe, s.Length), Data: ondisktest.StripeExtent(s)}
}

func TestDecodeStripeExtent(t *testing.T) {
	for n := 1; n <= ondisk.MaxStrides; n++ {
		want := ondisk.StripeExtent{Logical: math.MaxUint64 - 2*sector + 1, Length: sector, Count: n}
		for i := range n {
			want.Strides[i] = ondisk.Stride{Dev: devio.DevID(9 - i), Physical: devio.Physical(math.MaxUint64 - sector - uint64(i))}
		}
		it := stripeItem(want)
		got, err := ondisk.DecodeStripeExtent(it.Key, it.Data, sector)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%d strides: got %+v, %v, want %+v", n, got, err, want)
		}
		if got.End() != math.MaxUint64-sector+1 {
			t.Errorf("ends at %d", got.End())
		}
	}
}

func TestDecodeStripeExtentRefuses(t *testing.T) {
	good := stripeItem(stripes)
	at := func(logical, length uint64) ondisk.Key { return key(logical, ondisk.TypeRaidStripe, length) }
	wraps := ondisktest.StripeExtent(stripes)
	u64(wraps, 24, math.MaxUint64-64<<10+1)
	for _, tt := range []struct {
		name string
		key  ondisk.Key
		data []byte
		part string
	}{
		{"another type", key(1<<30, 229, 4096), good.Data, "key"},
		{"start not aligned", at(1<<30+512, 4096), good.Data, "key"},
		{"no length", at(1<<30, 0), good.Data, "length 0"},
		{"length not aligned", at(1<<30, 4097), good.Data, "length 4097"},
		{"range wraps", at(math.MaxUint64-4095, 4096), good.Data, "ends past 2^64"},
		{"no stride", at(1<<30, 4096), nil, "0 bytes"},
		{"half a stride", at(1<<30, 4096), good.Data[:8], "8 bytes"},
		{"a stride and a half", at(1<<30, 4096), good.Data[:24], "24 bytes"},
		{"five strides", at(1<<30, 4096), make([]byte, 80), "80 bytes"},
		{"second stride wraps", good.Key, wraps, "stride 1 at physical 18446744073709486080 ends past 2^64"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ondisk.DecodeStripeExtent(tt.key, tt.data, sector)
			checkErr(t, err, ondisk.ErrCorrupt, tt.part)
			if tt.key.Type == ondisk.TypeRaidStripe {
				checkErr(t, checkItems(ondisktest.Item{Key: tt.key, Data: tt.data}), ondisk.ErrCorrupt, tt.part)
			}
		})
	}
}

func FuzzStripeExtent(f *testing.F) {
	it := stripeItem(stripes)
	f.Add(it.Key.ObjectID, it.Key.Offset, it.Data)
	f.Add(uint64(math.MaxUint64-4095), uint64(4096), it.Data[:16])
	f.Fuzz(func(t *testing.T, logical, length uint64, item []byte) {
		s, err := ondisk.DecodeStripeExtent(key(logical, ondisk.TypeRaidStripe, length), item, sector)
		if err != nil {
			known(t, err)
			return
		}
		if s.Length == 0 || s.End() <= s.Logical || s.Count < 1 || s.Count > ondisk.MaxStrides {
			t.Fatalf("accepted %+v", s)
		}
		for _, d := range s.Strides[:s.Count] {
			if d.Physical+devio.Physical(s.Length) < d.Physical {
				t.Fatalf("stride wraps: %+v", s)
			}
		}
		if it := stripeItem(s); !reflect.DeepEqual(it.Data, item) {
			t.Fatalf("encoded again: %x, want %x", it.Data, item)
		}
	})
}
