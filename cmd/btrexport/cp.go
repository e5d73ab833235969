package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/btrexport/btrexport/fsread"
)

func (a *app) cpCommand() *cobra.Command {
	var dev deviceFlags
	var force bool
	cmd := &cobra.Command{
		Use:   "cp -d DEVICE... PATH DEST",
		Short: "Copy a file out, every block verified",
		Long: "cp copies a regular file out of a filesystem. It writes DEST.partial, sparse where the file is, and gives it its name " +
			"only when every byte was read and verified. A DEST that is a directory takes the file's name; - is standard output.\n\n" +
			"Progress goes to standard error: a bar on a terminal, else a line each 10 s (BTREXPORT_PROGRESS_INTERVAL: 30s, 1m; 0 for none), " +
			"and a line at once on SIGUSR1. With --json, objects of message_type status, then summary, go to standard output, " +
			"or to standard error when DEST is -.\n\n" + exitHelp,
		Example: "  btrexport cp -d /dev/sdb -d /dev/sdc /@images/vm1.raw .",
		Args:    arguments(2, 2, "PATH and DEST"),
	}
	dev.add(cmd)
	dev.addSubvol(cmd)
	cmd.Flags().BoolVarP(&force, "force", "f", false, "overwrite DEST, and a DEST.partial that was left behind")
	a.jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.cp(cmd.Context(), &dev, args[0], args[1], force)
	}
	return cmd
}

func (a *app) cp(ctx context.Context, dev *deviceFlags, from, dest string, force bool) error {
	toStdout := dest == "-"
	if toStdout && isTerminal(a.out) {
		return usagef("cp %s -: standard output is a terminal (redirect it, or name a DEST)", from)
	}
	if !toStdout {
		var err error
		if dest, err = destination(dest, from, force); err != nil {
			return err
		}
	}
	stats := &repairs{}
	p, err := a.newProgress(from, a.objects(toStdout), stats.repaired.Load)
	if err != nil {
		return err
	}
	defer p.stop()
	fs, err := dev.open(ctx, a.log, stats)
	if err != nil {
		return err
	}
	defer fs.Close()
	sv, err := subvolume(ctx, fs, dev.subvol, dev.subvolID)
	if err != nil {
		return err
	}
	file, mode, err := openFile(ctx, sv, from)
	if err != nil {
		return err
	}
	start := time.Now()
	todo, err := dataBytes(ctx, file)
	if err != nil {
		return copyError(from, dest, err)
	}
	p.start(todo)
	var done copied
	if toStdout {
		done, err = copyToStream(ctx, file, from, a.out, p.add)
	} else {
		done, err = copyToFile(ctx, file, from, dest, mode, force, p.add)
	}
	p.stop()
	if errors.Is(err, unix.EPIPE) && toStdout {
		_, _ = a.out.Write([]byte{0}) // reaches nobody, and ends the program as it ends every other one
	}
	if err != nil {
		return err
	}
	return a.summarize(&summary{MessageType: "summary", Path: from, Dest: dest, Bytes: done.Bytes, Data: done.Data, Holes: done.Bytes - done.Data,
		Seconds: time.Since(start).Seconds(), Repaired: stats.repaired.Load(), Verified: file.Verified()})
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

// openFile opens a regular file and gives its permissions.
func openFile(ctx context.Context, sv *fsread.Subvolume, path string) (*fsread.File, os.FileMode, error) {
	n, err := sv.Resolve(ctx, path)
	if err != nil {
		return nil, 0, err
	}
	f, err := n.File()
	if err != nil {
		return nil, 0, &fsread.PathError{Path: path, Err: err}
	}
	return f, n.Mode().Perm(), nil
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

func copyToStream(ctx context.Context, f *fsread.File, from string, w io.Writer, read func(uint64)) (copied, error) {
	done, err := copyFile(ctx, f, &streamSink{w: w}, read)
	return done, copyError(from, "standard output", err)
}

// copyToFile writes DEST.partial and renames it when all of it is on the disk.
func copyToFile(ctx context.Context, f *fsread.File, from, dest string, mode os.FileMode, force bool, read func(uint64)) (done copied, err error) {
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
	done, err = copyFile(ctx, f, &fileSink{out}, read)
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
}

// summarize prints the last line: to standard error, which JSON leaves to errors unless the file itself
// goes to standard output.
func (a *app) summarize(s *summary) error {
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
	_, err := fmt.Fprintln(a.err, line)
	return err
}
