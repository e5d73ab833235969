package fsread

import (
	"errors"
	"fmt"

	"github.com/btrexport/btrexport/fsread/btree"
	"github.com/btrexport/btrexport/fsread/volume"
)

var (
	// ErrNotExist: no such name in the directory, or no such subvolume.
	ErrNotExist = errors.New("no such file")
	// ErrIsDir: a directory where a regular file is needed.
	ErrIsDir = errors.New("is a directory")
	// ErrNotDir: a path goes through something that is no directory.
	ErrNotDir = errors.New("is not a directory")
	// ErrNotRegular: a device node, socket or fifo where a regular file is needed.
	ErrNotRegular = errors.New("is not a regular file")
	// ErrLinkLeaves: a symbolic link points out of the filesystem.
	ErrLinkLeaves = errors.New("symbolic link leaves the filesystem")
	// ErrLinkLoop: more symbolic links on the way than the kernel follows.
	ErrLinkLoop = errors.New("too many symbolic links")
	// ErrClosed: the FS was closed.
	ErrClosed = errors.New("filesystem is closed")
	// ErrUnverifiable: bytes without a checksum on a filesystem that changes while it is read, or of a state
	// that is not its last: the blocks may hold something newer.
	ErrUnverifiable = errors.New("no checksum, and the blocks may have been overwritten since")
	// ErrNotCached: what was asked for can't be told without reading a tree block.
	ErrNotCached = btree.ErrNotCached
)

// PathError is a path that could not be resolved.
type PathError struct {
	Path string
	// Detail says more than Err does: which component is missing, where a link points.
	Detail string
	// Near is a path that exists and is spelt alike; "" when there is none.
	Near string
	Err  error
}

func (e *PathError) Error() string {
	s := e.Path + ": " + e.Err.Error()
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	if e.Near != "" {
		s += " (did you mean " + e.Near + "?)"
	}
	return s
}

func (e *PathError) Unwrap() error { return e.Err }

// LayoutError is a part of a file of which nobody knows what it is made of, since the tree blocks that say so
// can't be read. Len bytes at Off, whole sectors, are unknown; what follows can be asked for.
type LayoutError struct {
	Inode, Off, Len uint64
	Err             error
}

func (e *LayoutError) Error() string { return e.Err.Error() }
func (e *LayoutError) Unwrap() error { return e.Err }

// LostRange is a part of a file that no copy could serve.
type LostRange struct {
	Off, Len uint64 // in the file
	Cause    volume.Lost
}

// LostError is a read that lost at least one range. The others were read and are good.
type LostError struct {
	Inode  uint64
	Ranges []LostRange // by offset
}

func (e *LostError) Error() string {
	var n uint64
	for _, r := range e.Ranges {
		n += r.Len
	}
	first := &e.Ranges[0]
	s := fmt.Sprintf("inode %d offset %d length %d logical %d: %s", e.Inode, first.Off, first.Len, first.Cause.Logical, first.Cause.Error())
	if len(e.Ranges) > 1 {
		s += fmt.Sprintf(" (and %d more ranges, %d bytes lost in all)", len(e.Ranges)-1, n)
	}
	return s
}

// Unwrap gives the causes of every range.
func (e *LostError) Unwrap() []error {
	errs := make([]error, len(e.Ranges))
	for i := range e.Ranges {
		errs[i] = &e.Ranges[i].Cause
	}
	return errs
}
