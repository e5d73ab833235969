package fsread

import (
	"context"
	"errors"
	"strconv"
	"strings"
)

// Resolve goes from the top of the subvolume along path, across nested subvolumes and snapshots and
// through symbolic links, the last component's included. Links lead inside the filesystem only: an
// absolute one leaves it, and so does one with more ".." than there are directories above; in path
// itself ".." at the top stays there. Errors: *PathError of ErrNotExist, ErrNotDir, ErrLinkLeaves or
// ErrLinkLoop; ondisk.ErrCorrupt; *btree.BlockError.
func (s *Subvolume) Resolve(ctx context.Context, path string) (*Node, error) {
	return s.resolve(ctx, path, true)
}

// ResolveLink is Resolve without following a link that the last component is.
func (s *Subvolume) ResolveLink(ctx context.Context, path string) (*Node, error) {
	return s.resolve(ctx, path, false)
}

// walk is the state of one resolution: the directories from the top down to where it stands.
type walk struct {
	path  string // as the user wrote it
	stack []place
	links int

	rest   []string // of an error: the components of path behind the one that is not there
	inLink bool     // of an error: it lies in a link's target
}

// place is a node and the name that led to it.
type place struct {
	node *Node
	name string
}

func (s *Subvolume) resolve(ctx context.Context, path string, followLast bool) (*Node, error) {
	root, err := s.Root(ctx)
	if err != nil {
		return nil, err
	}
	w := &walk{path: path, stack: []place{{node: root}}}
	if strings.HasSuffix(path, "/") {
		followLast = true
	}
	if err := w.along(ctx, path, followLast, false); err != nil {
		s.suggestWhole(ctx, w, err)
		return nil, err
	}
	at := w.stack[len(w.stack)-1].node
	if strings.HasSuffix(path, "/") && !at.IsDir() {
		return nil, &PathError{Path: path, Err: ErrNotDir}
	}
	return at, nil
}

// along takes the components of path one by one. fromLink: path is a link's target.
func (w *walk) along(ctx context.Context, path string, followLast, fromLink bool) error {
	parts := strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
	for i, name := range parts {
		switch name {
		case ".":
			continue
		case "..":
			if err := w.mustBeDir(); err != nil {
				return err
			}
			if len(w.stack) > 1 {
				w.stack = w.stack[:len(w.stack)-1]
			} else if fromLink {
				return &PathError{Path: w.path, Err: ErrLinkLeaves, Detail: path + " (links are followed inside it only)"}
			}
			continue
		}
		last := i == len(parts)-1
		if err := w.step(ctx, name, !last || followLast); err != nil {
			if !w.inLink {
				w.rest = parts[i+1:]
			}
			w.inLink = w.inLink || fromLink
			return err
		}
	}
	return nil
}

// suggestWhole makes the suggestion of an error one for the whole path, if what is behind the name that was spelt
// alike is there.
func (s *Subvolume) suggestWhole(ctx context.Context, w *walk, err error) {
	var e *PathError
	if !errors.As(err, &e) || e.Near == "" || w.inLink || len(w.rest) == 0 {
		return
	}
	whole := e.Near + "/" + strings.Join(w.rest, "/")
	root, err := s.Root(ctx)
	if err != nil {
		return
	}
	again := &walk{path: whole, stack: []place{{node: root}}}
	if again.along(ctx, whole, true, false) == nil {
		e.Near = whole
	}
}

// step enters one name and, if asked, follows the link that it is.
func (w *walk) step(ctx context.Context, name string, follow bool) error {
	if err := w.mustBeDir(); err != nil {
		return err
	}
	dir := w.stack[len(w.stack)-1].node
	if len(w.stack) > maxDepth {
		return &PathError{Path: w.path, Err: errors.New("path is too deep")}
	}
	n, err := dir.child(ctx, []byte(name))
	if err != nil {
		return &PathError{Path: w.path, Err: err}
	}
	if n == nil {
		return w.notFound(ctx, dir, name)
	}
	if !follow || n.item.Mode&modeType != modeSymlink {
		w.stack = append(w.stack, place{node: n, name: name})
		return nil
	}
	if w.links++; w.links > maxLinks {
		return &PathError{Path: w.path, Err: ErrLinkLoop}
	}
	target, err := n.Readlink(ctx)
	if err != nil {
		return &PathError{Path: w.path, Err: err}
	}
	if strings.HasPrefix(target, "/") {
		return &PathError{Path: w.path, Err: ErrLinkLeaves, Detail: target + " (links are followed inside it only)"}
	}
	return w.along(ctx, target, true, true)
}

func (w *walk) mustBeDir() error {
	if w.stack[len(w.stack)-1].node.IsDir() {
		return nil
	}
	return &PathError{Path: w.path, Err: ErrNotDir, Detail: w.where()}
}

// where is the path of the directory that the walk stands in.
func (w *walk) where() string {
	var names []string
	for _, p := range w.stack[1:] {
		names = append(names, p.name)
	}
	return "/" + strings.Join(names, "/")
}

// notFound says what is missing where, and what is spelt alike there.
func (w *walk) notFound(ctx context.Context, dir *Node, name string) error {
	e := &PathError{Path: w.path, Err: ErrNotExist, Detail: strconv.Quote(name) + " not found in " + w.where()}
	if near := nearest(ctx, dir, name); near != "" {
		e.Near = strings.TrimSuffix(w.where(), "/") + "/" + near
	}
	return e
}
