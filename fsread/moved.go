package fsread

import (
	"context"
	"fmt"

	"github.com/btrexport/btrexport/fsread/volume"
)

// Moved reads the superblocks again and tells whether the filesystem has been written to since it was opened: a
// later commit stands on the devices, another log, or another filesystem; generation is that commit's. The
// FS goes on to show what it was opened at. What has been overwritten since fails its checksum, and bytes that have
// none are refused from then on (ErrUnverifiable). Errors are those of volume.Scan: then nothing is known.
func (fs *FS) Moved(ctx context.Context) (generation uint64, moved bool, err error) {
	set, err := volume.Scan(ctx, fs.pool, fs.devs, fs.opts.Degraded)
	if err != nil {
		return 0, false, err
	}
	was, is := fs.set.Super, set.Super
	if was.Generation == is.Generation && was.LogRoot == is.LogRoot && was.FSID == is.FSID {
		return is.Generation, false, nil
	}
	fs.moved.Store(true)
	return is.Generation, true, nil
}

// unverifiable tells why bytes without a checksum are not served; nil: they are.
func (fs *FS) unverifiable() error {
	if fs.refuse == nil && fs.moved.Load() {
		return fmt.Errorf("%w: the filesystem was written to after it was opened", ErrUnverifiable)
	}
	return fs.refuse
}
