package ondisk

import (
	"fmt"
	"math"

	"github.com/btrexport/btrexport/devio"
)

// strideSize is the size of struct btrfs_raid_stride in bytes.
const strideSize = 16

// MaxStrides bounds the strides of an item: RAID1C4 has the most copies.
const MaxStrides = 4

// StripeExtent is an item of the RAID stripe tree: a logical range that lies in one piece, once for each
// stride. Of one that DecodeStripeExtent returned neither the range nor a stride wraps around its space.
type StripeExtent struct {
	Logical Logical
	Length  uint64 // bytes, a multiple of the sectorsize
	Count   int    // 1..MaxStrides
	Strides [MaxStrides]Stride
}

// Stride is where one copy of a StripeExtent starts.
type Stride struct {
	Dev      devio.DevID
	Physical devio.Physical
}

// End is the address behind the range.
func (s *StripeExtent) End() Logical { return s.Logical + Logical(s.Length) }

// DecodeStripeExtent decodes and validates a RAID_STRIPE item. The error is ErrCorrupt.
//
// Key: logical, RAID_STRIPE, length. Payload: an array of struct btrfs_raid_stride, 16 bytes: devid u64 @0,
// physical u64 @8 (btrfs_insert_one_raid_extent).
func DecodeStripeExtent(k Key, item []byte, sectorSize uint32) (StripeExtent, error) {
	s := StripeExtent{Logical: Logical(k.ObjectID), Length: k.Offset, Count: len(item) / strideSize}
	switch mask := uint64(sectorSize) - 1; {
	case k.Type != TypeRaidStripe || k.ObjectID&mask != 0:
		return StripeExtent{}, corruptStripe(k, "key")
	case s.Length == 0 || s.Length&mask != 0:
		return StripeExtent{}, corruptStripe(k, "length %d", s.Length)
	case k.ObjectID > math.MaxUint64-s.Length:
		return StripeExtent{}, corruptStripe(k, "length %d ends past 2^64", s.Length)
	case len(item)%strideSize != 0 || s.Count < 1 || s.Count > MaxStrides:
		return StripeExtent{}, corruptStripe(k, "%d bytes, want 1 to %d times %d", len(item), MaxStrides, strideSize)
	}
	for i := range s.Count {
		b := item[i*strideSize:]
		phys := le.Uint64(b[8:])
		if phys > math.MaxUint64-s.Length {
			return StripeExtent{}, corruptStripe(k, "stride %d at physical %d ends past 2^64", i, phys)
		}
		s.Strides[i] = Stride{Dev: devio.DevID(le.Uint64(b)), Physical: devio.Physical(phys)}
	}
	return s, nil
}

func corruptStripe(k Key, format string, args ...any) error {
	return corrupt(fmt.Sprintf("stripe item %s", k), format, args...)
}
