package fsread

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/btrexport/btrexport/fsread/btree"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// Subvolume is a subvolume or snapshot: the root that paths are resolved from.
type Subvolume struct {
	fs   *FS
	id   uint64
	root ondisk.RootItem
	tree btree.Tree
}

// ID is the subvolume's id: 5 for the top level, else 256 and above.
func (s *Subvolume) ID() uint64 { return s.id }

// ReadOnly says whether it is a read-only snapshot or was made read-only.
func (s *Subvolume) ReadOnly() bool { return s.root.ReadOnly() }

// rootItem finds the root of a tree. A snapshot's key has the transaction that made it as its offset, so
// the highest offset is taken. Errors: ErrNotExist; ondisk.ErrCorrupt; *btree.BlockError.
func (fs *FS) rootItem(ctx context.Context, id uint64) (ondisk.RootItem, error) {
	var c btree.Cursor
	if err := c.Seek(ctx, fs.roots, ondisk.Key{ObjectID: id, Type: ondisk.TypeRootItem, Offset: math.MaxUint64}); err != nil {
		return ondisk.RootItem{}, err
	}
	if !c.Valid() || c.Key().ObjectID != id || c.Key().Type != ondisk.TypeRootItem {
		return ondisk.RootItem{}, fmt.Errorf("tree %d: %w", int64(id), ErrNotExist)
	}
	return ondisk.DecodeRootItem(c.Item())
}

// SubvolumeByID opens a subvolume. Deleted ones that wait for cleaning are not there: ErrNotExist. One
// whose log can't be replayed is refused: *LogError.
func (fs *FS) SubvolumeByID(ctx context.Context, id uint64) (*Subvolume, error) {
	if err := fs.logs.info.Refused[id]; err != nil {
		return nil, err
	}
	return fs.subvolume(ctx, id)
}

// subvolume opens a subvolume, and one whose log can't be replayed as it was at the last commit.
func (fs *FS) subvolume(ctx context.Context, id uint64) (*Subvolume, error) {
	if !ondisk.IsSubvolume(id) {
		return nil, fmt.Errorf("subvolume id %d: %w (5 is the top level, others are 256 and above)", id, ErrNotExist)
	}
	ri, err := fs.rootItem(ctx, id)
	if err != nil {
		return nil, err
	}
	if ri.Refs == 0 || ri.Dead() {
		return nil, fmt.Errorf("subvolume id %d was deleted: %w", id, ErrNotExist)
	}
	tree := fs.reader.Subvolume(id, btree.Pointer{Logical: ri.Bytenr, Generation: ri.Generation, Level: ri.Level})
	return &Subvolume{fs: fs, id: id, root: ri, tree: tree.With(fs.logs.overlays[id])}, nil
}

// DefaultSubvolume is the one that a plain mount shows: named by the entry "default" of the root
// tree's directory, without it the top level.
func (fs *FS) DefaultSubvolume(ctx context.Context) (*Subvolume, error) {
	id, err := fs.defaultID(ctx)
	if err != nil {
		return nil, err
	}
	s, err := fs.SubvolumeByID(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("default subvolume: %w", err)
	}
	return s, nil
}

func (fs *FS) defaultID(ctx context.Context) (uint64, error) {
	name := []byte("default")
	e, err := lookup(ctx, fs.roots, ondisk.TreeRootDir, name)
	if err != nil {
		return 0, fmt.Errorf("default subvolume: %w", err)
	}
	if e == nil {
		return ondisk.TreeFS, nil
	}
	return e.Location.ObjectID, nil
}

// SubvolumeByPath opens a subvolume by its path from the top level, as mount's subvol option does.
func (fs *FS) SubvolumeByPath(ctx context.Context, path string) (*Subvolume, error) {
	top, err := fs.SubvolumeByID(ctx, ondisk.TreeFS)
	if err != nil {
		return nil, err
	}
	n, err := top.Resolve(ctx, path)
	if err != nil {
		return nil, err
	}
	if n.ino != ondisk.FirstFree || n.ghost {
		return nil, &PathError{Path: path, Err: ErrNotExist, Detail: "it is no subvolume (btrexport subvolumes lists them)"}
	}
	return n.sv, nil
}

// SubvolumeInfo describes one subvolume.
type SubvolumeInfo struct {
	ID         uint64
	Parent     uint64 // the subvolume that it lies in; 0 for the top level
	Path       string // from the top level, without a slash in front; "" for the top level
	Generation uint64
	UUID       ondisk.UUID
	ParentUUID ondisk.UUID // of the subvolume that it is a snapshot of; zero when it is none
	ReadOnly   bool
	Default    bool
}

// Subvolumes lists the subvolumes and snapshots, by id, the top level first.
func (fs *FS) Subvolumes(ctx context.Context) ([]SubvolumeInfo, error) {
	def, err := fs.defaultID(ctx)
	if err != nil {
		return nil, err
	}
	var out []SubvolumeInfo
	c := climber{fs: fs, paths: make(map[uint64]string)}
	for next := uint64(ondisk.TreeFS); ; {
		id, ok, err := fs.nextSubvolume(ctx, next)
		if err != nil {
			return nil, err
		}
		if !ok {
			return out, nil
		}
		next = id + 1
		s, err := fs.subvolume(ctx, id)
		if err != nil {
			continue // deleted, waiting for cleaning
		}
		path, parent, err := c.path(ctx, id)
		if err != nil {
			return nil, fmt.Errorf("subvolume id %d: %w", id, err)
		}
		out = append(out, SubvolumeInfo{ID: id, Parent: parent, Path: path, Generation: s.root.Generation, UUID: s.root.UUID,
			ParentUUID: s.root.ParentUUID, ReadOnly: s.ReadOnly(), Default: id == def})
	}
}

// nextSubvolume finds the first subvolume whose id is at least id.
func (fs *FS) nextSubvolume(ctx context.Context, id uint64) (uint64, bool, error) {
	var c btree.Cursor
	ok, err := c.SeekFrom(ctx, fs.roots, ondisk.Key{ObjectID: id, Type: ondisk.TypeRootItem})
	for ; ok && err == nil; ok, err = c.Next(ctx) {
		k := c.Key()
		if k.ObjectID > ondisk.LastFree {
			return 0, false, nil
		}
		if k.Type == ondisk.TypeRootItem && ondisk.IsSubvolume(k.ObjectID) {
			return k.ObjectID, true, nil
		}
	}
	return 0, false, err
}

// climber builds paths of subvolumes from their back references.
type climber struct {
	fs    *FS
	paths map[uint64]string
	depth int
}

// maxDepth bounds a climb through crafted references; PATH_MAX allows no deeper path.
const maxDepth = 4096

func (c *climber) path(ctx context.Context, id uint64) (path string, parent uint64, err error) {
	if id == ondisk.TreeFS {
		return "", 0, nil
	}
	if c.depth++; c.depth > maxDepth {
		return "", 0, &ondisk.Error{Item: "ROOT_BACKREF", Detail: "references go in a circle"}
	}
	defer func() { c.depth-- }()
	ref, parent, err := c.fs.backref(ctx, id)
	if err != nil {
		return "", 0, err
	}
	above, ok := c.paths[parent]
	if !ok {
		if above, _, err = c.path(ctx, parent); err != nil {
			return "", 0, err
		}
		c.paths[parent] = above
	}
	sv, err := c.fs.subvolume(ctx, parent)
	if err != nil {
		return "", 0, err
	}
	dir, err := sv.dirPath(ctx, ref.DirID)
	if err != nil {
		return "", 0, err
	}
	return join(above, dir, string(ref.Name)), parent, nil
}

func join(parts ...string) string {
	var kept []string
	for _, p := range parts {
		if p != "" {
			kept = append(kept, p)
		}
	}
	return strings.Join(kept, "/")
}

// backref finds the one ROOT_BACKREF of a subvolume.
func (fs *FS) backref(ctx context.Context, id uint64) (ondisk.RootRef, uint64, error) {
	var c btree.Cursor
	ok, err := c.FindFirst(ctx, fs.roots, id, ondisk.TypeRootBackref)
	if err != nil {
		return ondisk.RootRef{}, 0, err
	}
	if !ok {
		return ondisk.RootRef{}, 0, &ondisk.Error{Item: "ROOT_BACKREF", Detail: fmt.Sprintf("subvolume %d has none", id)}
	}
	ref, err := ondisk.DecodeRootRef(c.Item())
	return ref, c.Key().Offset, err
}

// dirPath gives the path of a directory from the subvolume's root, climbing its INODE_REFs. A directory has one.
func (s *Subvolume) dirPath(ctx context.Context, ino uint64) (string, error) {
	var names []string
	for depth := 0; ino != ondisk.FirstFree; depth++ {
		if depth == maxDepth {
			return "", &ondisk.Error{Item: "INODE_REF", Detail: "references go in a circle"}
		}
		var c btree.Cursor
		ok, err := c.FindFirst(ctx, s.tree, ino, ondisk.TypeInodeRef)
		if err != nil {
			return "", err
		}
		if !ok {
			return "", &ondisk.Error{Item: "INODE_REF", Detail: fmt.Sprintf("directory %d has none", ino)}
		}
		ref, _, err := ondisk.NextInodeRef(c.Item())
		if err != nil {
			return "", err
		}
		names = append(names, string(ref.Name))
		ino = c.Key().Offset
	}
	slices.Reverse(names)
	return strings.Join(names, "/"), nil
}
