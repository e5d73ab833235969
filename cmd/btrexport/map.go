package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
)

func (a *app) mapCommand() *cobra.Command {
	var dev deviceFlags
	var exact bool
	cmd := &cobra.Command{
		Use:   "map -d DEVICE... PATH",
		Short: "Show where a file lies: extents, logical addresses, every copy on every device",
		Long: "map shows the extents of a regular file: a summary, a picture (each of its 64 columns is one 64th of the file), and a " +
			"row for each extent. FILE OFFSET, LOGICAL and devid@physical are exact bytes. ON DISK is what lies on the devices, each copy " +
			"of it; of a compressed extent that is all of it, even where the file has only a part. An extent that is split over " +
			"stripes or chunks has a row for each piece below it, with the offset in the extent's part on the disk.\n" +
			"Nothing of the file is read: a copy that is listed may be bad.\n\n" + exitHelp,
		Example: "  btrexport map -d /dev/sdb -d /dev/sdc /@images/vm1.raw",
		Args:    arguments(1, 1, "one PATH"),
	}
	dev.add(cmd)
	dev.addSubvol(cmd)
	cmd.ValidArgsFunction = dev.imagePath(0)
	cmd.Flags().BoolVar(&exact, "bytes", false, "exact sizes in bytes")
	a.jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		fs, file, _, err := dev.openFile(ctx, a.log, nil, args[0])
		if err != nil {
			return err
		}
		defer fs.Close()
		m := &mapper{ctx: ctx, path: args[0], file: file, copies: fs.Copies, exact: exact}
		if a.json {
			return m.printJSON(a.out)
		}
		return m.print(a.out)
	}
	return cmd
}

// mapper prints the map of one file. It walks the extents twice for people, first for the summary and
// the widths of columns, so that a file of millions of extents takes no memory by its rows.
type mapper struct {
	ctx    context.Context
	path   string
	file   *fsread.File
	copies copiesFunc
	exact  bool
	errs   []error
	more   int // errors beyond maxListErrors
}

// copiesFunc is FS.Copies.
type copiesFunc func(ondisk.Logical) ([]volume.Copy, error)

// extents calls fn for every extent, adjacent holes taken together.
func (m *mapper) extents(fn func(*extent) error) error {
	row := holeMerger{fn: fn}
	err := m.file.Extents(m.ctx, 0, func(s fsread.Segment) error {
		if m.ctx.Err() != nil {
			return context.Cause(m.ctx)
		}
		return row.add(newExtent(&s, m.file.Size()))
	})
	if err == nil {
		err = row.flush()
	}
	if err != nil && !errors.As(err, new(*writeError)) {
		return fmt.Errorf("map %s: %w", m.path, err)
	}
	return err
}

// holeMerger passes extents on, holes that follow each other as one.
type holeMerger struct {
	fn   func(*extent) error
	hole extent // not passed on yet, if it has a length
}

func (h *holeMerger) add(x extent) error {
	if x.kind == fsread.Hole && h.hole.length > 0 {
		h.hole.length += x.length
		return nil
	}
	if err := h.flush(); err != nil {
		return err
	}
	if x.kind == fsread.Hole {
		h.hole = x
		return nil
	}
	return h.fn(&x)
}

func (h *holeMerger) flush() error {
	if h.hole.length == 0 {
		return nil
	}
	x := h.hole
	h.hole = extent{}
	return h.fn(&x)
}

func (m *mapper) printJSON(out io.Writer) error {
	w := bufio.NewWriter(out)
	err := m.extents(func(x *extent) error {
		pieces, err := m.locate(x)
		return wrote(printJSON(w, x.object(pieces, m.file.Verified(), err)))
	})
	return m.end(w, err)
}

func (m *mapper) print(out io.Writer) error {
	t := newTally(m.file.Size(), m.file.Verified(), m.exact)
	if err := m.extents(func(x *extent) error {
		t.add(x)
		return nil
	}); err != nil {
		return err
	}
	w := bufio.NewWriter(out)
	fmt.Fprintln(w, t.summary(m.path))
	if m.file.Size() == 0 {
		return m.end(w, nil)
	}
	w.WriteString(t.picture.String())
	fmt.Fprintln(w, t.columns.row("FILE OFFSET", "LENGTH", "KIND", "ON DISK", "LOGICAL", "COPIES devid@physical"))
	err := m.extents(func(x *extent) error {
		pieces, err := m.locate(x)
		for _, cells := range x.rows(pieces, err, m.exact) {
			if _, err := fmt.Fprintln(w, t.columns.row(cells[:]...)); err != nil {
				return &writeError{err}
			}
		}
		return nil
	})
	return m.end(w, err)
}

// locate finds every copy of an extent. An error is told in its row, and again at the end.
func (m *mapper) locate(x *extent) ([]piece, error) {
	pieces, err := locate(x.logical, x.onDisk, m.copies)
	if err != nil {
		if len(m.errs) < maxListErrors {
			m.errs = append(m.errs, fmt.Errorf("map %s offset %d length %d: %w", m.path, x.off, x.length, err))
		} else {
			m.more++
		}
	}
	return pieces, err
}

// end flushes and joins what went wrong.
func (m *mapper) end(w *bufio.Writer, err error) error {
	if ferr := w.Flush(); err == nil && ferr != nil {
		err = ferr
	}
	if m.more > 0 {
		m.errs = append(m.errs, fmt.Errorf("map %s: %d more extents can't be located", m.path, m.more))
	}
	return errors.Join(append(m.errs, err)...)
}

func wrote(err error) error {
	if err != nil {
		return &writeError{err}
	}
	return nil
}
