package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/btrexport/btrexport/fsread"
)

func (a *app) cpCommand() *cobra.Command {
	var dev deviceFlags
	var o cpOptions
	var fill string
	cmd := &cobra.Command{
		Use:   "cp -d DEVICE... PATH DEST",
		Short: "Copy a file out, every block verified",
		Long: "cp copies a regular file out of a filesystem. It writes DEST.partial, sparse where the file is, and gives it its name " +
			"only when every byte was read and verified. A DEST that is a directory takes the file's name; - is standard output.\n\n" +
			"With --skip-bad a part that can't be read does not end the copy: zeroes stand there, or bytes of --fill, and the copy gets its name. What " +
			"was lost is listed at the end, on standard error or with --json as objects of message_type lost, and the exit status is 1. " +
			"Of a compressed extent all is lost or nothing.\n\n" +
			"Progress goes to standard error: a bar on a terminal, else a line each 10 s (BTREXPORT_PROGRESS_INTERVAL: 30s, 1m; 0 for none), " +
			"and a line at once on SIGUSR1. With --json, objects of message_type status, then summary, go to standard output, " +
			"or to standard error when DEST is -.\n\n" + exitHelp,
		Example: "  btrexport cp -d /dev/sdb -d /dev/sdc /@images/vm1.raw .\n" +
			"  btrexport cp -d /dev/sdb --degraded --skip-bad /@images/vm1.raw /mnt/rescue",
		Args: arguments(2, 2, "PATH and DEST"),
	}
	dev.add(cmd)
	dev.addSubvol(cmd)
	cmd.ValidArgsFunction = dev.copyArgs
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "overwrite DEST, and a DEST.partial that was left behind")
	cmd.Flags().BoolVar(&o.skipBad, "skip-bad", false, "go on where data can't be read, with zeroes in their place")
	cmd.Flags().StringVar(&fill, "fill", "00", "with --skip-bad: `BYTE`, two hex digits, to write in place of what can't be read")
	completeFlag(cmd, "fill", nothing)
	a.jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if cmd.Flags().Changed("fill") && !o.skipBad {
			return usagef("--fill is for --skip-bad (add it, or leave out --fill)")
		}
		b, err := strconv.ParseUint(strings.TrimPrefix(fill, "0x"), 16, 8)
		if err != nil {
			return usagef("--fill %q is no byte (write two hex digits, 00 to ff)", fill)
		}
		o.fill = byte(b)
		return a.cp(cmd.Context(), &dev, args[0], args[1], o)
	}
	return cmd
}

// cpOptions are the flags of cp beside those of devices.
type cpOptions struct {
	force, skipBad bool
	fill           byte
}

func (a *app) cp(ctx context.Context, dev *deviceFlags, from, dest string, o cpOptions) error {
	toStdout := dest == "-"
	if toStdout && isTerminal(a.out) {
		return usagef("cp %s -: standard output is a terminal (redirect it, or name a DEST)", from)
	}
	if !toStdout {
		var err error
		if dest, err = destination(dest, from, o.force); err != nil {
			return err
		}
	}
	stats := &repairs{}
	p, err := a.newProgress(from, a.objects(toStdout), stats.repaired.Load)
	if err != nil {
		return err
	}
	defer p.stop()
	fs, file, mode, err := dev.openFile(ctx, a.log, stats, from)
	if err != nil {
		return err
	}
	defer fs.Close()
	start := time.Now()
	var lost *losses
	var skip func(*fsread.LayoutError) error
	if o.skipBad {
		lost, skip = &losses{fill: o.fill}, func(*fsread.LayoutError) error { return nil }
	}
	todo, err := dataBytes(ctx, file, skip)
	if err != nil {
		return copyError(from, dest, err)
	}
	p.start(todo)
	var done copied
	if toStdout {
		done, err = copyToStream(ctx, file, from, a.out, lost, p.add)
	} else {
		done, err = copyToFile(ctx, file, from, dest, mode, o.force, lost, p.add)
	}
	p.stop()
	if errors.Is(err, unix.EPIPE) && toStdout {
		_, _ = a.out.Write([]byte{0}) // reaches nobody, and ends the program as it ends every other one
	}
	if err != nil {
		return err
	}
	s := &summary{MessageType: "summary", Path: from, Dest: dest, Bytes: done.Bytes, Data: done.Data, Holes: done.Bytes - done.Data,
		Seconds: time.Since(start).Seconds(), Repaired: stats.repaired.Load(), Verified: file.Verified()}
	if lost == nil {
		return a.summarize(s, nil)
	}
	s.Holes, s.Lost, s.LostRanges = s.Holes-lost.bytes, &lost.bytes, &lost.ranges
	if err := errors.Join(lost.print(from, a.objects(toStdout), a.err), a.summarize(s, lost)); err != nil || lost.ranges == 0 {
		return err
	}
	if a.json {
		return &skippedError{from, lost.sentence()}
	}
	return exitStatus(exitFailed) // the summary has told
}

// objects is where cp's JSON goes; nil without --json.
func (a *app) objects(toStdout bool) io.Writer {
	switch {
	case !a.json:
		return nil
	case toStdout:
		return a.err // standard output has the file
	}
	return a.out
}

// destination gives the name of the file to write, and refuses what cp must not touch.
func destination(dest, from string, force bool) (string, error) {
	st, err := os.Stat(dest)
	if err == nil && st.IsDir() {
		name := path.Base(from)
		if name == "/" || name == "." || name == ".." {
			return "", usagef("cp %s: %w (name a regular file, or use ls)", from, fsread.ErrIsDir)
		}
		dest = filepath.Join(dest, name)
		st, err = os.Stat(dest)
	}
	switch {
	case err == nil && !st.Mode().IsRegular():
		return "", usagef("%s: is not a regular file (name another DEST, or write to - and redirect)", dest)
	case err == nil && !force:
		return "", fmt.Errorf("%s: %w (use -f to overwrite it)", dest, os.ErrExist)
	case err == nil:
		return filepath.EvalSymlinks(dest) // what a link leads to is replaced, not the link
	case !errors.Is(err, os.ErrNotExist):
		return "", fmt.Errorf("%s: %w", dest, bare(err))
	case strings.HasSuffix(dest, "/"):
		return "", fmt.Errorf("%s: %w (create it, or leave out the / at the end)", dest, os.ErrNotExist)
	}
	if _, err := os.Lstat(dest); err == nil {
		return "", fmt.Errorf("%s: symbolic link to a file that is not there: %w (remove it, or name another DEST)", dest, os.ErrExist)
	}
	return dest, nil
}

// bare drops the call and the path that the operating system's errors begin with.
func bare(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	var le *os.LinkError
	if errors.As(err, &le) {
		return le.Err
	}
	return err
}

func copyToStream(ctx context.Context, f *fsread.File, from string, w io.Writer, lost *losses, read func(uint64)) (copied, error) {
	done, err := copyFile(ctx, f, &streamSink{w: w}, lost, read)
	return done, copyError(from, "standard output", err)
}

// copyToFile writes DEST.partial and renames it when all of it is on the disk.
func copyToFile(ctx context.Context, f *fsread.File, from, dest string, mode os.FileMode, force bool, lost *losses, read func(uint64)) (done copied, err error) {
	partial := dest + ".partial"
	if force {
		if err := os.Remove(partial); err != nil && !errors.Is(err, os.ErrNotExist) {
			return done, fmt.Errorf("remove %s: %w", partial, bare(err))
		}
	}
	out, err := os.OpenFile(partial, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode|0o200)
	switch {
	case errors.Is(err, os.ErrExist):
		return done, fmt.Errorf("%s: %w: left behind by another cp, or being written by it (use -f to replace it)", partial, os.ErrExist)
	case errors.Is(err, os.ErrNotExist):
		return done, fmt.Errorf("create %s: %w (create the directory first)", partial, bare(err))
	case err != nil:
		return done, fmt.Errorf("create %s: %w", partial, bare(err))
	}
	defer func() {
		if err != nil {
			_ = os.Remove(partial)
		}
	}()
	done, err = copyFile(ctx, f, &fileSink{out}, lost, read)
	if cerr := out.Close(); err == nil && cerr != nil {
		err = &writeError{cerr}
	}
	if err != nil {
		return done, copyError(from, partial, err)
	}
	return done, publish(partial, dest, force)
}

// copyError tells reading from writing.
func copyError(from, to string, err error) error {
	var we *writeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &we):
		return fmt.Errorf("write %s: %w", to, bare(we.err))
	}
	return explainLost(from, err)
}

// publish gives the finished file its name. Without force a file that came to be meanwhile stays.
func publish(partial, dest string, force bool) error {
	var err error
	if force {
		err = os.Rename(partial, dest)
	} else {
		err = renameNew(partial, dest)
	}
	if err != nil {
		return fmt.Errorf("rename %s to %s: %w", partial, dest, bare(err))
	}
	dir, err := os.Open(filepath.Dir(dest))
	if err != nil {
		return nil // a directory that may be written and not read: its entry can't be forced to the disk
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("write directory of %s: %w", dest, bare(err))
	}
	return nil
}

// renameNew renames where nothing stands. Filesystems without RENAME_NOREPLACE get a link in its place.
func renameNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if err != unix.EINVAL && err != unix.ENOSYS {
		return err
	}
	if err := os.Link(from, to); err != nil {
		return err
	}
	return os.Remove(from)
}

// fileSink writes into a file that was empty: what is not written stays a hole.
type fileSink struct{ f *os.File }

func (s *fileSink) write(p []byte, off uint64) error {
	if _, err := s.f.WriteAt(p, int64(off)); err != nil {
		return &writeError{err}
	}
	return nil
}

func (s *fileSink) end(size uint64) error {
	err := s.f.Truncate(int64(size))
	if err == nil {
		err = s.f.Sync()
	}
	if err != nil {
		return &writeError{err}
	}
	return nil
}

// summary is what a copy did, as --json has it.
type summary struct {
	MessageType string  `json:"message_type"`
	Path        string  `json:"path"`
	Dest        string  `json:"dest"`
	Bytes       uint64  `json:"bytes"`
	Data        uint64  `json:"data_bytes"` // read from the devices
	Holes       uint64  `json:"hole_bytes"`
	Seconds     float64 `json:"seconds"`
	Repaired    int64   `json:"repaired_blocks"` // bad in one copy, good in another
	Verified    bool    `json:"verified"`        // false: the file has no checksums
	Lost        *uint64 `json:"lost_bytes,omitempty"`
	LostRanges  *int    `json:"lost_ranges,omitempty"` // both of --skip-bad alone
}

// summarize prints the last line: to standard error, which JSON leaves to errors unless the file itself
// goes to standard output.
func (a *app) summarize(s *summary, lost *losses) error {
	if w := a.objects(s.Dest == "-"); w != nil {
		return printJSON(w, s)
	}
	line := fmt.Sprintf("%s: %d bytes (%s data) in %.1f s", shown(s.Path), s.Bytes, iec(s.Data), s.Seconds)
	if s.Repaired > 0 {
		line += fmt.Sprintf(", %d blocks bad in one copy and good in another (btrfs scrub on the mounted filesystem rewrites them)", s.Repaired)
	}
	if !s.Verified {
		line += ", not verified: the file has no checksums"
	}
	if lost != nil && lost.ranges > 0 {
		line += ", " + lost.sentence()
	}
	_, err := fmt.Fprintln(a.err, line)
	return err
}
