package fsread

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/btrexport/btrexport/fsread/btree"
	"github.com/btrexport/btrexport/fsread/logtree"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// maxLog bounds the memory that all logs together take, in bytes. A log is what was synced within one
// commit, 30 seconds by default.
const maxLog = 128 << 20

// LogError is a subvolume that has a log which can't be replayed: what was synced there last is not known.
type LogError struct {
	Subvolume uint64
	Err       error
}

func (e *LogError) Error() string {
	return fmt.Sprintf("subvolume id %d: log tree can't be replayed: %v", e.Subvolume, e.Err)
}

func (e *LogError) Unwrap() error { return e.Err }

// LogInfo tells what became of the logs that a filesystem has when it was not unmounted.
type LogInfo struct {
	Present bool
	// Ignored: a commit is shown as it was, since Options say so.
	Ignored    bool
	Subvolumes []uint64         // those that have a log, by id
	Refused    map[uint64]error // those of them that can't be opened, and why
}

// logs is what replaying found.
type logs struct {
	info     LogInfo
	overlays map[uint64]*btree.Overlay
	bytes    int64
}

// Log tells what became of the filesystem's logs.
func (fs *FS) Log() LogInfo {
	i := fs.logs.info
	i.Subvolumes, i.Refused = slices.Clone(i.Subvolumes), maps.Clone(i.Refused)
	return i
}

// openLogs replays in memory the log of every subvolume that has one, as the kernel does when it mounts
// the filesystem. A log that does not fit costs its subvolume alone.
func (fs *FS) openLogs(ctx context.Context) error {
	fs.logs = logs{overlays: make(map[uint64]*btree.Overlay)}
	sb, l := fs.super, &fs.logs
	if fs.set.Super.LogRoot == 0 {
		return nil
	}
	if l.info.Present = true; fs.opts.IgnoreLog || fs.opts.Changing || sb.LogRoot == 0 { // an older state has none
		l.info.Ignored = true
		fs.opts.Log.Warn("log tree is ignored: what was synced after the last commit is not shown", "generation", sb.Generation)
		return nil
	}
	roots, err := fs.readLogRoots(ctx)
	if err != nil {
		return fmt.Errorf("log tree (the last commit can be read without it): %w", err)
	}
	if err := fs.replayLogs(ctx, roots); err != nil {
		return err
	}
	fs.opts.Log.Info("filesystem was not unmounted: its log is replayed in memory", "subvolumes", len(l.info.Subvolumes),
		"refused", len(l.info.Refused))
	return nil
}

// logRoot is the root of one subvolume's log.
type logRoot struct {
	subvolume uint64
	root      btree.Pointer
}

// readLogRoots lists the logs, by subvolume.
func (fs *FS) readLogRoots(ctx context.Context) ([]logRoot, error) {
	var roots []logRoot
	t := fs.reader.Log(btree.Pointer{Logical: fs.super.LogRoot, Generation: fs.super.Generation + 1, Level: fs.super.LogRootLevel})
	err := t.All(ctx, ondisk.Key{}, func(k ondisk.Key, item []byte) (bool, error) {
		if k.ObjectID != ondisk.TreeLog || k.Type != ondisk.TypeRootItem {
			return false, &ondisk.Error{Item: "log root tree", Detail: fmt.Sprintf("item %s", k)}
		}
		ri, err := ondisk.DecodeRootItem(item)
		if err != nil {
			return false, err
		}
		roots = append(roots, logRoot{k.Offset, btree.Pointer{Logical: ri.Bytenr, Generation: ri.Generation, Level: ri.Level}})
		return true, nil
	})
	return roots, err
}

// replayLogs replays each log, the highest subvolume first, as the kernel does.
func (fs *FS) replayLogs(ctx context.Context, roots []logRoot) error {
	var sums []logtree.Csums
	var summed []uint64 // whose checksums are among them
	for _, lr := range slices.Backward(roots) {
		res, err := fs.replayLog(ctx, lr)
		if errors.Is(err, ErrNotExist) {
			continue // the subvolume was deleted, and the log with it
		}
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		fs.logs.info.Subvolumes = append(fs.logs.info.Subvolumes, lr.subvolume)
		if err != nil {
			fs.refuseLog(lr.subvolume, err)
			continue
		}
		fs.logs.overlays[lr.subvolume] = res.Overlay
		if fs.logs.bytes += res.Bytes; len(res.Csums) > 0 {
			sums, summed = append(sums, res.Csums...), append(summed, lr.subvolume)
		}
	}
	slices.Reverse(fs.logs.info.Subvolumes)
	sb := fs.super
	over, err := logtree.OverlayCsums(ctx, fs.csums, sb.SectorSize, sb.CsumType.Size(), sums, 2*maxLog)
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if err != nil {
		for _, id := range summed {
			fs.refuseLog(id, fmt.Errorf("checksum tree: %w", err))
		}
		return nil
	}
	fs.csums = fs.csums.With(over)
	return nil
}

func (fs *FS) replayLog(ctx context.Context, lr logRoot) (*logtree.Result, error) {
	s, err := fs.subvolume(ctx, lr.subvolume)
	if err != nil {
		return nil, err
	}
	sb := fs.super
	return logtree.Replay(ctx, logtree.Input{Tree: s.tree, Log: fs.reader.Log(lr.root), Generation: sb.Generation,
		SectorSize: sb.SectorSize, NodeSize: sb.NodeSize, CsumSize: sb.CsumType.Size(),
		NoHoles: sb.Incompat&ondisk.IncompatNoHoles != 0, MaxBytes: maxLog - fs.logs.bytes})
}

// refuseLog keeps a subvolume from being opened.
func (fs *FS) refuseLog(id uint64, err error) {
	if fs.logs.info.Refused == nil {
		fs.logs.info.Refused = make(map[uint64]error)
	}
	e := &LogError{Subvolume: id, Err: err}
	fs.logs.info.Refused[id] = e
	delete(fs.logs.overlays, id)
	fs.opts.Log.Warn("subvolume is refused", "err", e)
}
