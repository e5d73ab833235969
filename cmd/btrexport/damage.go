package main

import (
	"bytes"
	"context"
	"fmt"
	"os"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// What --damage ruins, in the words of the sample: a file, spread over its data, and the topmost tree
// block of a subvolume.
const (
	damagedSubvolume = "/@images"
	damagedFile      = "/vm1.raw"
	damagedBlocks    = 16
)

// scar is what ruined bytes are overwritten with: who finds it with a hex editor is told where it is from.
const scar = "DAMAGED by btrexport sample --damage "

// damage is one range of a device that is overwritten.
type damage struct {
	at  devio.Physical
	len int
}

// damageSample overwrites the first device's copy of some blocks. It finds them as a reader does, and
// nowhere but in the sample: fsid is what the filesystem must have.
func (a *app) damageSample(ctx context.Context, paths []string, fsid string) error {
	list, data, err := a.findDamage(ctx, paths, fsid)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(paths[0], os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("damage %s: %w", paths[0], bare(err))
	}
	defer f.Close()
	total := 0
	for _, d := range list {
		b := bytes.Repeat([]byte(scar), d.len/len(scar)+1)[:d.len]
		if _, err := f.WriteAt(b, int64(d.at)); err != nil {
			return fmt.Errorf("damage %s: %w", paths[0], bare(err))
		}
		total += d.len
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("damage %s: %w", paths[0], bare(err))
	}
	_, err = fmt.Fprintf(a.out, "%s: %d ranges overwritten (%s): %d data blocks of %s%s, one metadata block\n",
		shown(paths[0]), len(list), iec(uint64(total)), data, damagedSubvolume, damagedFile)
	return err
}

// findDamage gives what to overwrite on the first device, and how many of it are data blocks.
func (a *app) findDamage(ctx context.Context, paths []string, fsid string) (list []damage, data int, err error) {
	dev := deviceFlags{devices: paths}
	fs, err := dev.open(ctx, a.log, nil)
	if err != nil {
		return nil, 0, err
	}
	defer fs.Close()
	info := fs.Info()
	if info.FSID.String() != fsid {
		return nil, 0, usagef("%s: is filesystem %s and not the sample, so it is left alone (name another DIR, or use -f to overwrite it)", paths[0], info.FSID)
	}
	sv, err := fs.SubvolumeByPath(ctx, damagedSubvolume)
	if err != nil {
		return nil, 0, err
	}
	file, err := sv.OpenFile(ctx, damagedFile)
	if err != nil {
		return nil, 0, err
	}
	sectors, err := dataSectors(ctx, file, uint64(info.SectorSize))
	if err != nil {
		return nil, 0, err
	}
	for _, l := range spread(sectors, damagedBlocks) {
		if err := ruin(fs, &list, l, int(info.SectorSize), paths[0]); err != nil {
			return nil, 0, err
		}
	}
	data = len(list)
	return list, data, ruin(fs, &list, sv.RootBlock(), int(info.NodeSize), paths[0])
}

// ruin adds the copy of n bytes at a logical address that lies on a device, if another device has one too.
func ruin(fs *fsread.FS, list *[]damage, logical ondisk.Logical, n int, device string) error {
	copies, err := fs.Copies(logical)
	if err != nil {
		return err
	}
	for _, c := range copies {
		if c.Name == device && c.Len >= uint64(n) && len(copies) > 1 {
			*list = append(*list, damage{at: c.Physical, len: n})
			return nil
		}
	}
	return nil
}

// dataSectors gives the address of every sector of a file's plain data.
func dataSectors(ctx context.Context, f *fsread.File, sector uint64) (list []ondisk.Logical, err error) {
	err = f.Extents(ctx, 0, func(s fsread.Segment) error {
		if s.Kind == fsread.Plain {
			for in := uint64(0); in < s.Len; in += sector {
				list = append(list, s.Logical+ondisk.Logical(in))
			}
		}
		return nil
	})
	return list, err
}

// spread picks n elements at even distances, the first and the last among them.
func spread[T any](list []T, n int) []T {
	if len(list) <= n {
		return list
	}
	out := make([]T, n)
	for i := range out {
		out[i] = list[i*(len(list)-1)/(n-1)]
	}
	return out
}
