package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// lsOptions say how a listing looks.
type lsOptions struct {
	recursive, long, raw, json bool
	extents                    bool // look at the extents of every file
}

func (a *app) lsCommand() *cobra.Command {
	var dev deviceFlags
	var o lsOptions
	cmd := &cobra.Command{
		Use:   "ls -d DEVICE... [PATH]",
		Short: "List a directory of a filesystem",
		Long: "ls lists a directory, sorted by name. Names that hold control characters, or bytes that are no UTF-8, stand in quotes.\n" +
			"--extents adds a column in front of the names: zlib, lzo, zstd, prealloc for what a file has of such extents, " +
			"unverified for data without checksums, shared for an extent that another file, another place of this one, or a snapshot refers to as well " +
			"(as filefrag -v has it), - for none of it.\n\n" + exitHelp,
		Example: "  btrexport ls -d /dev/sdb -d /dev/sdc -l /@images",
		Args:    arguments(0, 1, "one PATH at most"),
	}
	dev.add(cmd)
	dev.addSubvol(cmd)
	cmd.ValidArgsFunction = dev.imagePath(0)
	cmd.Flags().BoolVarP(&o.recursive, "recursive", "R", false, "list subdirectories too")
	cmd.Flags().BoolVarP(&o.long, "long", "l", false, "mode, links, owner, group, size, time and link target")
	cmd.Flags().BoolVarP(&o.raw, "zero", "0", false, "raw names, each ended by NUL; with -R paths")
	cmd.Flags().BoolVar(&o.extents, "extents", false, "with -l or --json: compression, preallocation, missing checksums, sharing")
	a.jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o.json = a.json
		if o.extents && !o.long && !o.json {
			return usagef("--extents is for long listings (add -l or --json)")
		}
		path := "/"
		if len(args) > 0 {
			path = args[0]
		}
		ctx := cmd.Context()
		f, err := dev.open(ctx, a.log, nil)
		if err != nil {
			return err
		}
		defer f.Close()
		sv, err := subvolume(ctx, f, dev.subvol, dev.subvolID)
		if err != nil {
			return err
		}
		return list(ctx, a.out, sv, path, o)
	}
	return cmd
}

// maxListErrors bounds how many entries that can't be read are named.
const maxListErrors = 20

// lister prints one listing.
type lister struct {
	w    *bufio.Writer
	o    lsOptions
	seen map[dirID]bool // directories listed: a damaged tree may lead back into itself
	errs []error
	more int // errors beyond maxListErrors
	done int // directories printed
}

// dirID is a directory; its inode number alone says nothing across subvolumes.
type dirID struct{ subvol, inode uint64 }

// list prints what path names. An entry that can't be read is told at the end and hides no other.
func list(ctx context.Context, w io.Writer, sv *fsread.Subvolume, path string, o lsOptions) error {
	l := &lister{w: bufio.NewWriter(w), o: o, seen: make(map[dirID]bool)}
	resolve := sv.Resolve
	if o.long || o.json {
		resolve = sv.ResolveLink
	}
	n, err := resolve(ctx, path)
	if err != nil {
		return err
	}
	if n.IsDir() {
		err = l.dir(ctx, path, n)
	} else {
		err = l.print([]row{l.row(ctx, path, path, n.Mode(), n, nil)})
	}
	if err != nil {
		return err
	}
	if err := l.w.Flush(); err != nil {
		return err
	}
	if l.more > 0 {
		l.errs = append(l.errs, fmt.Errorf("%s: %d more entries can't be read", path, l.more))
	}
	return errors.Join(l.errs...)
}

func (l *lister) fail(path string, err error) {
	if len(l.errs) == maxListErrors {
		l.more++
		return
	}
	var pe *fsread.PathError
	if !errors.As(err, &pe) {
		err = fmt.Errorf("%s: %w", path, err)
	}
	l.errs = append(l.errs, err)
}

// row is one entry of a listing.
type row struct {
	name   string // as it is printed: in -R -0 the path
	path   string
	mode   fs.FileMode  // without node: the type alone
	node   *fsread.Node // nil when it was not needed, or not readable
	target string
	hints  []string // of --extents
}

// dir prints a directory and, if asked, those in it. An error is one of writing or of a context that ended.
func (l *lister) dir(ctx context.Context, path string, n *fsread.Node) error {
	rows, dirs := l.read(ctx, path, n)
	if l.o.recursive && !l.o.json && !l.o.raw {
		if l.done > 0 {
			l.w.WriteByte('\n')
		}
		fmt.Fprintf(l.w, "%s:\n", shown(path))
	}
	l.done++
	if err := l.print(rows); err != nil {
		return err
	}
	if !l.o.recursive {
		return nil
	}
	for _, d := range dirs {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := l.dir(ctx, d.path, d.node); err != nil {
			return err
		}
	}
	return nil
}

// read gives a directory's entries by name, and the directories among them that are to be listed.
func (l *lister) read(ctx context.Context, path string, n *fsread.Node) (rows, dirs []row) {
	entries, err := sortedEntries(ctx, n, func(*fsread.Entry) bool { return true })
	if err != nil {
		l.fail(path, err)
	}
	for i := range entries {
		e := &entries[i]
		r := l.entry(ctx, strings.TrimSuffix(path, "/")+"/"+e.Name, e)
		rows = append(rows, r)
		if l.o.recursive && r.node != nil && r.node.IsDir() && l.first(r.node) {
			dirs = append(dirs, r)
		}
	}
	return rows, dirs
}

// sortedEntries gives the entries of a directory that keep wants, by name; with an error those read before it.
func sortedEntries(ctx context.Context, n *fsread.Node, keep func(*fsread.Entry) bool) ([]fsread.Entry, error) {
	var entries []fsread.Entry
	err := n.ReadDir(ctx, func(e fsread.Entry) error {
		if keep(&e) {
			entries = append(entries, e)
		}
		return nil
	})
	slices.SortFunc(entries, func(a, b fsread.Entry) int { return strings.Compare(a.Name, b.Name) })
	return entries, err
}

// entry reads an entry's inode where the listing needs it.
func (l *lister) entry(ctx context.Context, path string, e *fsread.Entry) row {
	name := e.Name
	if l.o.raw && l.o.recursive {
		name = path
	}
	if !l.o.long && !l.o.json && (!l.o.recursive || !e.Type.IsDir()) {
		return row{name: name, path: path, mode: e.Type}
	}
	n, err := e.Node(ctx)
	return l.row(ctx, name, path, e.Type, n, err)
}

func (l *lister) row(ctx context.Context, name, path string, mode fs.FileMode, n *fsread.Node, err error) row {
	r := row{name: name, path: path, mode: mode}
	if err == nil {
		r.node, r.mode = n, n.Mode()
		if r.mode&fs.ModeSymlink != 0 && (l.o.long || l.o.json) {
			r.target, err = n.Readlink(ctx)
		}
		if r.mode.IsRegular() && l.o.extents {
			r.hints, err = extentHints(ctx, n)
		}
	}
	if err != nil {
		l.fail(path, err)
	}
	return r
}

// extentHints says what is special about the extents of a file.
func extentHints(ctx context.Context, n *fsread.Node) ([]string, error) {
	f, err := n.File()
	if err != nil {
		return nil, err
	}
	var hints []string
	add := func(hint string) {
		if hint != "" && !slices.Contains(hints, hint) {
			hints = append(hints, hint)
		}
	}
	data := false
	err = f.Extents(ctx, 0, func(s fsread.Segment) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		x := newExtent(&s, f.Size())
		add(x.compression)
		if x.kind == fsread.Prealloc {
			add(x.kind.String())
		}
		data = data || x.hasChecksums()
		return nil
	})
	slices.Sort(hints)
	if data && !f.Verified() {
		add("unverified")
	}
	if err != nil {
		return hints, err
	}
	shared, err := f.Shared(ctx)
	if shared {
		add("shared")
	}
	return hints, err
}

// first says whether a directory was not listed yet. A directory has one name, so a second one is damage.
func (l *lister) first(n *fsread.Node) bool {
	id := dirID{n.Subvolume().ID(), n.Inode()}
	if l.seen[id] {
		return n.Inode() == emptyDirInode
	}
	l.seen[id] = true
	return true
}

// emptyDirInode is the number of the empty directories that stand for subvolumes in a snapshot of what
// held them: there may be many.
const emptyDirInode = 2

func (l *lister) print(rows []row) error {
	switch {
	case l.o.json:
		for i := range rows {
			if err := printJSON(l.w, rows[i].json()); err != nil {
				return err
			}
		}
	case l.o.long:
		l.printLong(rows)
	default:
		for _, r := range rows {
			l.w.WriteString(l.name(r.name) + l.end())
		}
	}
	// What was printed is out before more is read: a listing of a slow disk shows that it goes on.
	return l.w.Flush()
}

func (l *lister) name(s string) string {
	if l.o.raw {
		return s
	}
	return shown(s)
}

func (l *lister) end() string {
	if l.o.raw {
		return "\x00"
	}
	return "\n"
}

// printLong aligns numbers to the right, as ls does.
func (l *lister) printLong(rows []row) {
	var cells [][5]string
	var width [5]int
	hints := 1
	for i := range rows {
		hints = max(hints, len(strings.Join(rows[i].hints, ",")))
		c := rows[i].numbers()
		for j := range c {
			width[j] = max(width[j], len(c[j]))
		}
		cells = append(cells, c)
	}
	for i, r := range rows {
		c := cells[i]
		fmt.Fprintf(l.w, "%s %*s %*s %*s %*s %*s ", modeString(r.mode), width[0], c[0], width[1], c[1], width[2], c[2], width[3], c[3], width[4], c[4])
		if l.o.extents {
			fmt.Fprintf(l.w, "%-*s ", hints, dash(strings.Join(r.hints, ",")))
		}
		l.w.WriteString(l.name(r.name))
		if r.target != "" {
			l.w.WriteString(" -> " + l.name(r.target))
		}
		l.w.WriteString(l.end())
	}
}

// numbers are links, owner, group, size or device number, and time; "?" of an inode that can't be read.
func (r *row) numbers() [5]string {
	if r.node == nil {
		return [5]string{"?", "?", "?", "?", "?"}
	}
	i := r.node.Item()
	length := strconv.FormatUint(i.Size, 10)
	if r.mode&fs.ModeDevice != 0 {
		major, minor := i.Device()
		length = fmt.Sprintf("%d, %d", major, minor)
	}
	u := func(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
	return [5]string{u(i.NLink), u(i.UID), u(i.GID), length, i.MTime.Time().Local().Format("2006-01-02 15:04")}
}

// lsEntry is one entry as --json has it. Sizes in bytes; times in RFC 3339, UTC.
type lsEntry struct {
	Path      string  `json:"path"`
	RawPath   string  `json:"path_base64,omitempty"` // where path is no UTF-8
	Type      string  `json:"type"`
	Size      *uint64 `json:"size,omitempty"`
	Mode      string  `json:"mode,omitempty"` // octal, permissions and set-id bits
	UID       *uint32 `json:"uid,omitempty"`
	GID       *uint32 `json:"gid,omitempty"`
	NLink     uint32  `json:"nlink,omitempty"`
	Links     uint32  `json:"links,omitempty"` // nlink, by the name that it had first
	Modified  string  `json:"mtime,omitempty"`
	Changed   string  `json:"ctime,omitempty"`
	Subvolume uint64  `json:"subvolume,omitempty"`
	Inode     uint64  `json:"inode,omitempty"`
	RDev      string  `json:"rdev,omitempty"`   // major:minor
	Device    string  `json:"device,omitempty"` // rdev, by the name that it had first
	Target    string  `json:"target,omitempty"`
	RawTarget string  `json:"target_base64,omitempty"`

	Extents []string `json:"extents,omitempty"` // of --extents
}

func (r *row) json() lsEntry {
	e := lsEntry{Path: r.path, RawPath: rawName(r.path), Type: typeName(r.mode), Target: r.target, RawTarget: rawName(r.target), Extents: r.hints}
	if r.node == nil {
		return e
	}
	i := r.node.Item()
	e.Size, e.UID, e.GID, e.NLink, e.Links = &i.Size, &i.UID, &i.GID, i.NLink, i.NLink
	e.Mode, e.Modified, e.Changed = fmt.Sprintf("%04o", i.Mode&0o7777), rfc3339(i.MTime), rfc3339(i.CTime)
	e.Subvolume, e.Inode = r.node.Subvolume().ID(), r.node.Inode()
	if r.mode&fs.ModeDevice != 0 {
		major, minor := i.Device()
		e.RDev = fmt.Sprintf("%d:%d", major, minor)
		e.Device = e.RDev
	}
	return e
}

func rfc3339(t ondisk.Timespec) string { return t.Time().Format(time.RFC3339Nano) }
