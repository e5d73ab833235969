//go:build linux

package golden

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// firstInode is the number of a top directory (BTRFS_FIRST_FREE_OBJECTID). mkfs.btrfs 6.2 adds it to
// the inode numbers of the directory that it copies, but for the top.
const firstInode = 256

// buildRootdir has mkfs.btrfs copy a directory and describes that.
func (s *Spec) buildRootdir(ctx context.Context, tmp string) (*fsreadtest.Manifest, []string, error) {
	source, err := s.source(ctx, tmp)
	if err != nil {
		return nil, nil, err
	}
	out := filepath.Join(tmp, "image")
	if err := os.Mkdir(out, 0o700); err != nil {
		return nil, nil, err
	}
	image, err := kernelfs.Rootdir(ctx, out, s.Options, source)
	if err != nil {
		return nil, nil, err
	}
	images := []string{image}
	if err := digHoles(ctx, images); err != nil {
		return nil, nil, err
	}
	known, err := s.header(ctx)
	if err != nil {
		return nil, nil, err
	}
	m, err := s.describe(ctx, *known, images, source)
	return m, images, err
}

// verifyRootdir makes the directory again. Of the inodes it can't say what numbers they had.
func (s *Spec) verifyRootdir(ctx context.Context, tmp string, images []string, want *fsreadtest.Manifest) (*fsreadtest.Manifest, error) {
	source, err := s.source(ctx, tmp)
	if err != nil {
		return nil, err
	}
	m, err := s.describe(ctx, want.Header, images, source)
	if err != nil {
		return nil, err
	}
	for i := range min(len(m.Entries), len(want.Entries)) {
		m.Entries[i].Ino = want.Entries[i].Ino
	}
	return m, nil
}

// source makes the directory. All times are the same, and of whole seconds: mkfs drops the rest.
func (s *Spec) source(ctx context.Context, tmp string) (string, error) {
	dir := filepath.Join(tmp, "source")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	t := kernelfs.NewTree(ctx, dir, kernelfs.Content{Seed: s.Seed})
	if err := s.Rootdir(t); err != nil {
		return "", err
	}
	at := unix.NsecToTimespec(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixNano())
	return dir, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW)
	})
}

// describe gives the manifest of what mkfs makes of the directory source.
func (s *Spec) describe(ctx context.Context, known fsreadtest.Header, images []string, source string) (*fsreadtest.Manifest, error) {
	m := blank(known)
	if err := superblock(ctx, m, images); err != nil {
		return nil, err
	}
	m.DefaultSubvolume = fsTree
	m.Profiles = []string{"Data, " + s.Options.Data, "System, " + s.Options.Metadata, "Metadata, " + s.Options.Metadata}
	var err error
	if m.Entries, err = kernelfs.Directory(ctx, source); err != nil {
		return nil, err
	}
	for i := range m.Entries {
		e := &m.Entries[i]
		if e.Ino += firstInode; e.Path == "." {
			e.Ino = firstInode
			if e.MtimeSec, err = topTime(ctx, images[0]); err != nil {
				return nil, err
			}
		}
		if e.Type == "dir" { // what a directory's size and links are, every filesystem says in its own way
			e.Size, e.Nlink = 0, 1
		}
		if e.Rdev != "" { // mkfs.btrfs 6.2 leaves the number of a device node out
			e.Rdev = "0:0"
		}
	}
	return m, nil
}

// topTime returns the modification time, in seconds, of the top directory, which is that of mkfs itself.
func topTime(ctx context.Context, image string) (int64, error) {
	out, err := output(ctx, "btrfs", "inspect-internal", "dump-tree", "-t", strconv.Itoa(fsTree), image)
	if err != nil {
		return 0, err
	}
	// The first item of the tree is the top's inode.
	m := regexp.MustCompile(`(?m)^\s+mtime (\d+)\.\d+ `).FindStringSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("%s: no mtime in the tree's dump", image)
	}
	return strconv.ParseInt(m[1], 10, 64)
}
