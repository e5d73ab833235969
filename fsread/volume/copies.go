package volume

import (
	"fmt"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// Copy is one place where a logical address is stored.
type Copy struct {
	Mirror   Mirror
	DevID    devio.DevID
	Name     string // the device as the user named it; "missing" when it was not given
	Missing  bool
	Physical devio.Physical
	Len      uint64 // bytes that go on from there in one piece, in logical order, on this device
	// Parity is "P" or "Q" for a column of parity, from which the byte can be rebuilt together with the other
	// columns of its row; "" for a place that holds the byte itself. Mirror is 0 for parity.
	Parity string
}

// Copies gives every copy of the byte at a logical address, those on missing devices too, and after them the
// parity of its row. stripes is what the
// stripe tree says of it, where UsesStripeTree. Errors: ErrUnmapped, ErrNoStripe; *ondisk.UnsupportedError for
// profiles that are not read.
func (v *Volume) Copies(logical ondisk.Logical, stripes ...ondisk.StripeExtent) ([]Copy, error) {
	r := Request{vol: v, stripes: v.scatter(nil, stripes)}
	c := r.find(logical)
	if err := mappable(c); err != nil {
		return nil, fmt.Errorf("logical %d: %w", logical, err)
	}
	in := uint64(logical - c.start)
	out := make([]Copy, 0, c.copies)
	for m := Mirror(1); int(m) <= c.copies; m++ {
		d, phys := c.locate(in, m)
		out = append(out, Copy{Mirror: m, DevID: d.id, Name: d.name(), Missing: d.dev == nil, Physical: phys, Len: c.extent(in)})
	}
	for i := range c.parity() {
		d, phys := c.column(in, c.data()+i)
		out = append(out, Copy{DevID: d.id, Name: d.name(), Missing: d.dev == nil, Physical: phys, Len: c.extent(in), Parity: "PQ"[i : i+1]})
	}
	return out, nil
}
