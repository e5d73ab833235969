package fsread

import (
	"context"
	"fmt"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread/btree"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// DeviceErrors reads what errors the kernel has noted of each device, up to the generation that was opened: one search
// of the device tree for each. A device without a note has had none. On an error those that could be read are there.
func (fs *FS) DeviceErrors(ctx context.Context) (map[devio.DevID]ondisk.DevErrors, error) {
	noted := make(map[devio.DevID]ondisk.DevErrors)
	ri, err := fs.rootItem(ctx, ondisk.TreeDev)
	if err != nil {
		return noted, fmt.Errorf("device tree: %w", err)
	}
	t := fs.reader.Tree(ondisk.TreeDev, btree.Pointer{Logical: ri.Bytenr, Generation: ri.Generation, Level: ri.Level})
	var cur btree.Cursor
	for _, d := range fs.vol.Devices() {
		ok, err := cur.Find(ctx, t, ondisk.Key{ObjectID: ondisk.DevStatsObjectID, Type: ondisk.TypePersistentItem, Offset: uint64(d.DevID)})
		if err != nil {
			return noted, fmt.Errorf("device tree: %w", err)
		}
		var e ondisk.DevErrors
		if ok {
			if e, err = ondisk.DecodeDevErrors(cur.Item()); err != nil {
				return noted, fmt.Errorf("device tree: devid %d: %w", d.DevID, err)
			}
		}
		noted[d.DevID] = e
	}
	return noted, nil
}
