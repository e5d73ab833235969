package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/fsread/volume"
)

func (a *app) verifyCommand() *cobra.Command {
	var dev deviceFlags
	cmd := &cobra.Command{
		Use:   "verify -d DEVICE... PATH...",
		Short: "Read every copy of every block of files and check it",
		Long: "verify reads every copy of every block of the files that PATHs name, directories with all that is below them, and of RAID5 and " +
			"RAID6 the parity that covers them. It checks each against its checksum, and parity against its row. A line tells each range of which a " +
			"copy is bad, at once; what several files share is read once and told for each. Files without checksums are unverified: their copies are " +
			"compared. Symbolic links are followed where a PATH is one, and not below a directory. Tree blocks are not part of it. Of a filesystem " +
			"that is mounted read-write, what is overwritten meanwhile looks lost.\n\n" +
			"Progress goes to standard error, as cp has it. With --json, objects of message_type status, bad_range, file and summary go to standard " +
			"output. On SIGINT the summary says how far it came.\n\n" +
			"Exit status: 0 every copy is good; 1 some copy is bad, missing or could not be read, though perhaps nothing is lost (the last line says " +
			"which); 2 what was asked for must change (flags, arguments, the set of devices, a name that is not there).",
		Example: "  btrexport verify -d /dev/sdb -d /dev/sdc /@images",
		Args:    arguments(1, math.MaxInt, "at least one PATH"),
	}
	dev.add(cmd)
	dev.addSubvol(cmd)
	cmd.ValidArgsFunction = dev.imagePath(math.MaxInt)
	a.jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return a.verify(cmd.Context(), &dev, args) }
	return cmd
}

// verifyStats counts tree blocks that were refused on the way to the files.
type verifyStats struct {
	repairs
	trees atomic.Int64
}

func (s *verifyStats) ChecksumFailed(_ uint64, metadata bool) {
	if metadata {
		s.trees.Add(1)
	}
}

// verifyJob is one run of verify.
type verifyJob struct {
	a     *app
	p     *progress
	run   *fsread.Verification
	stats *verifyStats
	sv    *fsread.Subvolume
	start time.Time

	bad    atomic.Int64 // blocks, for the progress
	copies atomic.Int64
	sum    verifySummary
	errs   errorList
	wrote  error // of standard output
}

func (a *app) verify(ctx context.Context, dev *deviceFlags, paths []string) error {
	j := &verifyJob{a: a, stats: &verifyStats{}}
	var err error
	if j.p, err = a.newProgress(paths[0], a.objects(false), func() int64 { return 0 }); err != nil {
		return err
	}
	j.p.verify = func() (int64, int) { return j.bad.Load(), int(j.copies.Load()) }
	defer j.p.stop()
	f, err := dev.open(ctx, a.log, j.stats)
	if err != nil {
		return err
	}
	defer f.Close()
	if j.sv, err = subvolume(ctx, f, dev.subvol, dev.subvolID); err != nil {
		return err
	}
	j.run = f.NewVerification(fsread.VerifyOptions{Progress: j.progress})
	return j.verify(ctx, paths)
}

// verify adds up what there is to read, reads it and tells.
func (j *verifyJob) verify(ctx context.Context, paths []string) error {
	if err := j.plan(ctx, paths); err != nil {
		return err
	}
	j.start = time.Now()
	files := newFileWalk(j.sv, j.errs.add)
	err := files.each(ctx, paths, func(path string, f *fsread.File) error { return j.file(ctx, path, f) })
	j.p.stop()
	j.sum.Names = files.names
	return j.end(ctx, err)
}

// progress counts bytes of which every copy was read.
func (j *verifyJob) progress(n uint64) {
	j.copies.Store(int64(j.run.MaxCopies()))
	j.p.add(n)
}

// plan adds up what there is to read. What can't be walked is told when its turn to be read comes.
func (j *verifyJob) plan(ctx context.Context, paths []string) error {
	var total uint64
	files := newFileWalk(j.sv, func(string, error) {})
	err := files.each(ctx, paths, func(_ string, f *fsread.File) error {
		n, err := j.run.Plan(ctx, f)
		total += n
		if ctx.Err() != nil {
			return err
		}
		return nil
	})
	j.p.start(total)
	return err
}

// file verifies one file and tells what it found.
func (j *verifyJob) file(ctx context.Context, path string, f *fsread.File) error {
	j.p.path.Store(&path)
	v, err := j.run.File(ctx, f, func(b fsread.BadRange) { j.badRange(path, &b) })
	j.sum.add(&v)
	if ctx.Err() != nil && err != nil {
		j.sum.Interrupted = &verifyPlace{Path: path, Offset: v.Checked}
		return err
	}
	if err != nil {
		j.sum.Failed++
		j.errs.add(path, err)
	}
	j.tell(func() error {
		o := newVerifyFile(path, &v, err)
		line := o.line()
		if j.a.json {
			return printJSON(j.a.out, o)
		} else if line == "" {
			return nil
		}
		_, err := fmt.Fprintln(j.a.out, line)
		return err
	})
	return j.wrote
}

// badRange tells one range.
func (j *verifyJob) badRange(path string, b *fsread.BadRange) {
	for _, c := range b.Copies {
		if c.State == volume.Bad || c.State == volume.Unreadable {
			j.bad.Add(int64(b.Disk / j.run.BlockSize()))
		}
	}
	j.tell(func() error {
		if j.a.json {
			return printJSON(j.a.out, newVerifyRange(path, b))
		}
		_, err := fmt.Fprintln(j.a.out, rangeLine(path, b))
		return err
	})
}

// tell prints, where the bar is.
func (j *verifyJob) tell(print func() error) {
	j.p.aside(func() {
		if err := print(); j.wrote == nil && err != nil {
			j.wrote = fmt.Errorf("write standard output: %w", bare(err))
		}
	})
}

// end prints the summary and gives the exit status.
func (j *verifyJob) end(ctx context.Context, err error) error {
	if err != nil && (ctx.Err() == nil || j.sum.Interrupted == nil) {
		return err
	}
	j.sum.fill(j.run.Summary(), time.Since(j.start), j.stats.trees.Load())
	if j.a.json {
		err = printJSON(j.a.out, &j.sum)
	} else {
		_, err = fmt.Fprintln(j.a.out, strings.Join(j.sum.lines(), "\n"))
	}
	switch {
	case err != nil:
		return fmt.Errorf("write standard output: %w", bare(err))
	case j.sum.Interrupted == nil && len(j.errs.list) > 0:
		return j.errs.join()
	case j.sum.Result != "good":
		return exitStatus(exitFailed)
	}
	return nil
}

// errorList keeps the errors of entries that can't be read, a bounded number of them.
type errorList struct {
	list []error
	more int
}

func (l *errorList) add(path string, err error) {
	if len(l.list) == maxListErrors {
		l.more++
		return
	}
	if !errors.As(err, new(*fsread.PathError)) {
		err = fmt.Errorf("verify %s: %w", path, err)
	}
	l.list = append(l.list, err)
}

func (l *errorList) join() error {
	if l.more > 0 {
		l.list, l.more = append(l.list, fmt.Errorf("%d more entries can't be read", l.more)), 0
	}
	return errors.Join(l.list...)
}

// maxHardLinks bounds the files of which it is remembered that they were met: those with several names.
const maxHardLinks = 1 << 17

// fileWalk goes over the regular files that paths lead to, each once.
type fileWalk struct {
	sv    *fsread.Subvolume
	fail  func(path string, err error)
	dirs  map[dirID]bool
	files map[dirID]bool // with several names, or named by the user
	names int            // further names of files that were met
	fn    func(path string, f *fsread.File) error
}

func newFileWalk(sv *fsread.Subvolume, fail func(string, error)) *fileWalk {
	return &fileWalk{sv: sv, fail: fail, dirs: make(map[dirID]bool), files: make(map[dirID]bool)}
}

// each resolves every path before it calls fn for the first file. An error is one of a path that was named, of fn,
// or of a context that ended; others are told to fail.
func (w *fileWalk) each(ctx context.Context, paths []string, fn func(path string, f *fsread.File) error) error {
	w.fn = fn
	nodes := make([]*fsread.Node, len(paths))
	for i, p := range paths {
		n, err := w.sv.Resolve(ctx, p)
		if err == nil && !n.IsDir() {
			_, err = n.File()
			if err != nil {
				err = &fsread.PathError{Path: p, Err: err}
			}
			w.files[nodeID(n)] = false
		}
		if err != nil {
			return err
		}
		nodes[i] = n
	}
	for i, n := range nodes {
		if err := w.node(ctx, paths[i], n); err != nil {
			return err
		}
	}
	return nil
}

func nodeID(n *fsread.Node) dirID { return dirID{n.Subvolume().ID(), n.Inode()} }

func (w *fileWalk) node(ctx context.Context, path string, n *fsread.Node) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if n.IsDir() {
		return w.dir(ctx, path, n)
	}
	f, err := n.File()
	if err != nil {
		w.fail(path, err)
		return nil
	}
	id := nodeID(n)
	if done, named := w.files[id]; done {
		w.names++
		return nil
	} else if named || (n.Item().NLink > 1 && len(w.files) < maxHardLinks) {
		w.files[id] = true
	}
	return w.fn(path, f)
}

// dir goes through a directory by name. It has one place, so a second one is damage, or was named twice.
func (w *fileWalk) dir(ctx context.Context, path string, n *fsread.Node) error {
	if id := nodeID(n); w.dirs[id] {
		return nil
	} else {
		w.dirs[id] = true
	}
	entries, err := sortedEntries(ctx, n, func(e *fsread.Entry) bool { return e.Type == 0 || e.Type == fs.ModeDir })
	if err != nil {
		w.fail(path, err)
	}
	for i := range entries {
		name := strings.TrimSuffix(path, "/") + "/" + entries[i].Name
		child, err := entries[i].Node(ctx)
		if err != nil {
			w.fail(name, err)
			continue
		}
		if !child.IsDir() && !child.Mode().IsRegular() {
			continue // the entry says otherwise than the inode
		}
		if err := w.node(ctx, name, child); err != nil {
			return err
		}
	}
	return nil
}
