package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/devio/mountcheck"
	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
)

// deviceFlags are the flags of every command that reads a filesystem.
type deviceFlags struct {
	devices      []string
	subvol       string
	subvolID     uint64
	degraded     bool
	allowMounted bool
	ignoreLog    bool
	slowRead     time.Duration
	ioEngine     string
	generation   uint64
	backupRoot   uint8
	given        func(flag string) bool // nil: no flags were read
}

func (f *deviceFlags) add(cmd *cobra.Command) {
	p := cmd.Flags()
	p.StringArrayVarP(&f.devices, "device", "d", nil, "block device or image file, FILE@OFFSET for a partition in it; once for each device of the filesystem (default: BTREXPORT_DEVICES, separated by :)")
	p.BoolVar(&f.degraded, "degraded", false, "go on though devices are missing")
	p.BoolVar(&f.allowMounted, "allow-mounted", false, "read devices that this kernel has mounted read-write")
	p.DurationVar(&f.slowRead, "slow-read", 0, "ask the next copy, or rebuild from parity, when a device has not answered for so long; below 0: never (default 1s)")
	p.StringVar(&f.ioEngine, "io-engine", "", "read devices by io_uring, by pread, or auto: by io_uring where the kernel allows it (default auto)")
	p.BoolVar(&f.ignoreLog, "ignore-log", false, "show the last commit of a filesystem that was not unmounted, not what was synced after it")
	p.Uint64Var(&f.generation, "generation", 0, "open an older state of the filesystem, that of generation `N` (info lists them)")
	p.Uint8Var(&f.backupRoot, "backup-root", 0, "open the state in backup slot `K` of the superblock, 0 to 3 (info lists them)")
	f.given = p.Changed
	completeFlag(cmd, "device", completeDevice)
	completeFlag(cmd, "io-engine", oneOf("auto", "io_uring", "pread"))
	for _, flag := range []string{"slow-read", "generation", "backup-root"} {
		completeFlag(cmd, flag, nothing)
	}
}

// root is the state that the flags ask for.
func (f *deviceFlags) root() (r fsread.RootChoice, err error) {
	if f.given == nil {
		return r, nil
	}
	byGeneration, bySlot := f.given("generation"), f.given("backup-root")
	switch {
	case byGeneration && bySlot:
		return r, usagef("--generation and --backup-root are both given (keep one of the two)")
	case byGeneration && f.generation == 0:
		return r, usagef("--generation 0: the first generation is 1 (btrexport info lists them)")
	case bySlot && f.backupRoot >= ondisk.BackupSlots:
		return r, usagef("--backup-root %d: there are slots 0 to %d (btrexport info lists them)", f.backupRoot, ondisk.BackupSlots-1)
	case bySlot:
		r.Slot = int(f.backupRoot) + 1
	}
	r.Generation = f.generation
	return r, nil
}

// engine is what the flags say about how devices are read.
func (f *deviceFlags) engine() (devio.Engine, error) {
	e, err := devio.ParseEngine(f.ioEngine)
	if err != nil {
		return e, usagef("--io-engine %w", err)
	}
	return e, nil
}

func (f *deviceFlags) addSubvol(cmd *cobra.Command) {
	p := cmd.Flags()
	p.StringVar(&f.subvol, "subvol", "", "resolve paths from the subvolume of this path")
	p.Uint64Var(&f.subvolID, "subvolid", 0, "resolve paths from the subvolume of this id")
	completeFlag(cmd, "subvol", f.subvolumePaths)
	completeFlag(cmd, "subvolid", f.subvolumeIDs)
}

// paths gives the devices that were named, by flag or else by environment.
func (f *deviceFlags) paths() ([]string, error) {
	list := f.devices
	if len(list) == 0 {
		list = splitDevices(os.Getenv("BTREXPORT_DEVICES"))
	}
	if len(list) == 0 {
		return nil, usagef("no device is given (add -d DEVICE for each device of the filesystem, or set BTREXPORT_DEVICES)")
	}
	return list, nil
}

// splitDevices takes BTREXPORT_DEVICES apart.
func splitDevices(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ':' })
}

// open opens the filesystem of the flags.
func (f *deviceFlags) open(ctx context.Context, log *slog.Logger, stats volume.Stats) (*fsread.FS, error) {
	paths, err := f.paths()
	if err != nil {
		return nil, err
	}
	root, err := f.root()
	if err != nil {
		return nil, err
	}
	engine, err := f.engine()
	if err != nil {
		return nil, err
	}
	devs, err := openDevices(paths, devio.Options{Engine: engine, Log: log}, log)
	if err != nil {
		return nil, err
	}
	changing, err := mounted(devs, f.allowMounted, "--allow-mounted", log)
	if err == nil {
		var fs *fsread.FS
		fs, err = fsread.Open(ctx, devs, fsread.Options{Degraded: f.degraded, Changing: changing, IgnoreLog: f.ignoreLog, SlowRead: f.slowRead, Root: root, Stats: stats, Log: log})
		if err == nil {
			return fs, nil
		}
	}
	closeDevices(devs)
	return nil, err
}

// openDevices opens every device; errors are told for all of them.
func openDevices(paths []string, o devio.Options, log *slog.Logger) ([]volume.Device, error) {
	var set deviceSet
	var errs []error
	for _, p := range paths {
		if err := set.open(p, o, log); err != nil {
			errs = append(errs, err)
		}
	}
	return set.devices(errs)
}

// deviceSet is the devices of one filesystem as they are opened.
type deviceSet []*devio.Queue

// open adds a device. One that is there already, by another name perhaps, is left out with a warning.
func (s *deviceSet) open(path string, o devio.Options, log *slog.Logger) error {
	file, offset, err := splitOffset(path)
	if err != nil {
		return err
	}
	o.Offset, o.Name = offset, path
	q, err := devio.Open(file, o)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(*s, q.Same); i >= 0 {
		log.Warn("device is given twice: it is taken once", "device", path, "first", (*s)[i].Name())
		return q.Close()
	}
	*s = append(*s, q)
	return nil
}

// engine is what the devices are read by, and why that is not io_uring although it was tried.
func (s *deviceSet) engine() (e devio.Engine, refused error) {
	for _, q := range *s {
		if e = q.Engine(); q.Refused() != nil {
			return e, q.Refused()
		}
	}
	return e, nil
}

// devices gives the set; with errors it closes it and gives those.
func (s *deviceSet) devices(errs []error) ([]volume.Device, error) {
	devs := make([]volume.Device, len(*s))
	for i, q := range *s {
		devs[i] = q
	}
	if len(errs) > 0 {
		closeDevices(devs)
		return nil, errors.Join(errs...)
	}
	return devs, nil
}

// closeDevices closes what was only read from: nothing can be lost, so there is nothing to tell.
func closeDevices(devs []volume.Device) {
	for _, d := range devs {
		_ = d.Close()
	}
}

// mounted asks whether the kernel writes to one of the devices at this moment, and refuses that unless
// it is allowed; allow is what allows it, in the user's terms.
func mounted(devs []volume.Device, allowed bool, allow string, log *slog.Logger) (changing bool, err error) {
	for _, d := range devs {
		p := d.Name()
		file, offset := p, uint64(0)
		if q, ok := d.(*devio.Queue); ok {
			file, offset = q.Path(), q.Offset()
		}
		where, rw, err := mountcheck.ReadWrite(file, offset)
		switch {
		case err != nil:
			log.Warn("whether the device is mounted is not known", "device", p, "err", err)
		case rw && !allowed:
			if where == "" {
				where = "another mount namespace"
			}
			return false, fmt.Errorf("%s: %w on %s, so its blocks change under the reader (unmount it, mount -o remount,ro it, or pass %s)", p, errMounted, where, allow)
		}
		changing = changing || rw
	}
	return changing, nil
}

// subvolume picks what paths are resolved from: by path, by id, or the default.
func subvolume(ctx context.Context, fs *fsread.FS, path string, id uint64) (*fsread.Subvolume, error) {
	switch {
	case path != "" && id != 0:
		return nil, usagef("--subvol and --subvolid are both given (keep one of the two)")
	case path != "":
		s, err := fs.SubvolumeByPath(ctx, path)
		if err != nil {
			return nil, fmt.Errorf("subvolume %w", err)
		}
		return s, nil
	case id != 0:
		s, err := fs.SubvolumeByID(ctx, id)
		if errors.Is(err, fsread.ErrNotExist) {
			return nil, noSubvolume(id)
		}
		return s, err
	}
	return fs.DefaultSubvolume(ctx)
}

// noSubvolume is the id of a subvolume that is not there.
type noSubvolume uint64

func (id noSubvolume) Error() string {
	return fmt.Sprintf("subvolume id %d: no such subvolume (btrexport subvolumes lists them)", uint64(id))
}

func (noSubvolume) Unwrap() error { return fsread.ErrNotExist }

// openFile opens the filesystem of the flags, which is the caller's to close, and a regular file of the subvolume that they
// name, and gives the file's permissions.
func (f *deviceFlags) openFile(ctx context.Context, log *slog.Logger, stats volume.Stats, path string) (*fsread.FS, *fsread.File, os.FileMode, error) {
	fs, err := f.open(ctx, log, stats)
	if err != nil {
		return nil, nil, 0, err
	}
	file, mode, err := f.regular(ctx, fs, path)
	if err != nil {
		fs.Close()
		return nil, nil, 0, err
	}
	return fs, file, mode, nil
}

func (f *deviceFlags) regular(ctx context.Context, fs *fsread.FS, path string) (*fsread.File, os.FileMode, error) {
	sv, err := subvolume(ctx, fs, f.subvol, f.subvolID)
	if err != nil {
		return nil, 0, err
	}
	n, err := sv.Resolve(ctx, path)
	if err != nil {
		return nil, 0, err
	}
	file, err := n.File()
	if err != nil {
		return nil, 0, &fsread.PathError{Path: path, Err: err}
	}
	return file, n.Mode().Perm(), nil
}
