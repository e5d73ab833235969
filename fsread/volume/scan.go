package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// Found is one device and the superblock that speaks for it.
type Found struct {
	Dev   Device
	Super *ondisk.Superblock
	// Copy is which superblock copy was taken: 0 is the primary at 64 KiB. A mirror does not know
	// of a log that was written after the last commit.
	Copy int
	// Copies are all superblocks of the device that are good and of this filesystem, Super among them: a copy
	// that missed writes knows of older roots.
	Copies []SuperCopy
	// Ruined lists what was wrong with copies that hold a btrfs superblock no more, or a broken one.
	Ruined []error
	// Seed marks a device of another filesystem that can be a seed of this one. The chunk tree tells
	// whether it is: Volume.WithChunks refuses it otherwise.
	Seed bool
	// Stale marks a device that missed writes: others of its own filesystem have a newer superblock.
	// A seed is not stale for being older than what sprouted from it.
	Stale bool
}

// SuperCopy is one copy of a superblock; Index 0 is the primary at 64 KiB.
type SuperCopy struct {
	Index int
	*ondisk.Superblock
}

// Set is the devices of one filesystem, those of its seeds among them, as far as they were given.
type Set struct {
	Devices []Found
	// Super is the filesystem's: of the highest generation among its own devices.
	Super *ondisk.Superblock
	// Copy is which copy of its device Super was.
	Copy int
	// Ignored names devices that were left out, with the reason.
	Ignored []string
}

// ErrNoAnswer is the cause for a device that did not answer while its superblocks were read.
var ErrNoAnswer = errors.New("the device does not answer (if it is broken, leave it out and add --degraded)")

// patience is how long a device may take for its superblocks: a disk that sleeps needs seconds.
const patience = 10 * time.Second

// Scan reads every superblock copy of every device and groups the devices into one filesystem.
// Errors: ErrNoFilesystem for a device without one, ErrDevices for devices of two filesystems of
// which neither can be the other's seed or one device given twice, *ondisk.UnsupportedError, with
// the Set, for a filesystem that is refused by name. degraded: a device that has no superblock that can be
// read, or does not answer, is left out like one that is missing.
func Scan(ctx context.Context, pool *devio.Pool, devs []Device, degraded bool) (*Set, error) {
	return scanFor(ctx, pool, devs, degraded, patience)
}

func scanFor(ctx context.Context, pool *devio.Pool, devs []Device, degraded bool, wait time.Duration) (*Set, error) {
	if len(devs) == 0 {
		return nil, fmt.Errorf("%w: no device given (add -d DEVICE)", ErrDevices)
	}
	found, errs := scanAll(ctx, pool, devs, wait)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	s := &Set{}
	var bad error
	for i, d := range devs {
		switch {
		case errs[i] != nil && !degraded:
			return nil, errs[i]
		case errs[i] != nil:
			if bad == nil {
				bad = errs[i]
			}
			s.Ignored = append(s.Ignored, errs[i].Error())
		case found[i].Super.Dev.DevID == 0:
			s.Ignored = append(s.Ignored, fmt.Sprintf("%s: target of an unfinished replace (devid 0)", d.Name()))
		default:
			s.Devices = append(s.Devices, found[i])
		}
	}
	if len(s.Devices) == 0 && bad != nil {
		return nil, bad
	}
	if len(s.Devices) == 0 {
		return nil, fmt.Errorf("%w: %s", ErrDevices, strings.Join(s.Ignored, "; "))
	}
	if err := s.group(); err != nil {
		return nil, err
	}
	return s, s.gate()
}

// scanAll reads the superblocks of all devices at the same time.
func scanAll(ctx context.Context, pool *devio.Pool, devs []Device, wait time.Duration) ([]Found, []error) {
	ctx, cancel := context.WithTimeoutCause(ctx, wait, ErrNoAnswer)
	defer cancel()
	found, errs := make([]Found, len(devs)), make([]error, len(devs))
	var scans sync.WaitGroup
	for i, d := range devs {
		scans.Go(func() { found[i], errs[i] = scanDevice(ctx, pool, d) })
	}
	scans.Wait()
	return found, errs
}

// At gives the same devices under another superblock of theirs, which has older roots.
func (s *Set) At(sb *ondisk.Superblock) *Set {
	at := *s
	at.Super = sb
	return &at
}

// scanDevice reads the superblock copies of one device. Among the good ones of the primary's
// filesystem the highest generation wins, and the primary where they are equal: an fsync writes its
// log's address to the primary alone.
func scanDevice(ctx context.Context, pool *devio.Pool, d Device) (Found, error) {
	f := Found{Dev: d, Copy: -1}
	var firstErr error
	for i, at := range ondisk.SuperblockOffsets() {
		if at+ondisk.SuperblockSize > d.Size() {
			break
		}
		sb, err := readSuper(ctx, pool, d, at)
		if ctx.Err() != nil {
			return f, fmt.Errorf("open %s: %w", d.Name(), context.Cause(ctx))
		}
		if err != nil {
			f.Ruined = append(f.Ruined, fmt.Errorf("superblock @%d: %w", at, err))
			if firstErr == nil || errors.Is(firstErr, ondisk.ErrNoMagic) {
				firstErr = err
			}
			continue
		}
		f.Copies = append(f.Copies, SuperCopy{Index: i, Superblock: sb})
		if f.Super == nil || (sb.FSID == f.Super.FSID && sb.Generation > f.Super.Generation) {
			f.Super, f.Copy = sb, i
		}
	}
	switch {
	case f.Super != nil:
		f.Copies = slices.DeleteFunc(f.Copies, func(c SuperCopy) bool { return c.FSID != f.Super.FSID })
		return f, nil
	case firstErr == nil:
		return f, fmt.Errorf("open %s: %w: %d bytes are too few (is it the right file?)", d.Name(), ErrNoFilesystem, d.Size())
	case errors.Is(firstErr, ondisk.ErrNoMagic):
		return f, noFilesystem(ctx, pool, d)
	}
	return f, fmt.Errorf("open %s: no usable superblock: %w", d.Name(), firstErr)
}

func readSuper(ctx context.Context, pool *devio.Pool, d Device, at uint64) (*ondisk.Superblock, error) {
	buf, err := readDevice(ctx, pool, d, devio.Physical(at), ondisk.SuperblockSize)
	if err != nil {
		return nil, err
	}
	return ondisk.DecodeSuperblock(buf, at)
}

// waiter turns one completion into something to wait for.
type waiter struct {
	read devio.Read
	buf  *devio.Buffer
	done chan struct{}
}

func (w *waiter) ReadDone(*devio.Read) { close(w.done) }

// readDevice reads n bytes outside of any chunk: the superblocks. A context that ends stops the
// waiting; the buffer goes back to the pool when the device is done with it.
func readDevice(ctx context.Context, pool *devio.Pool, d Device, off devio.Physical, n int) ([]byte, error) {
	b, err := readSome(ctx, pool, d, off, n)
	if err != nil {
		return nil, err
	}
	return b, nil
}

// readSome is readDevice that gives, with an error, what was read before it.
func readSome(ctx context.Context, pool *devio.Pool, d Device, off devio.Physical, n int) ([]byte, error) {
	w := &waiter{buf: pool.Get(n), done: make(chan struct{})}
	w.read = devio.Read{Off: off, Bufs: [][]byte{w.buf.B}, Done: w}
	d.Submit([]*devio.Read{&w.read})
	select {
	case <-w.done:
	case <-ctx.Done():
		go func() {
			<-w.done
			w.buf.Release()
		}()
		return nil, context.Cause(ctx)
	}
	defer w.buf.Release()
	return append([]byte(nil), w.buf.B[:w.read.N]...), w.read.Err
}
