//go:build linux

// Package golden makes and checks the images of testdata/images: what Specs lists, built by
// package kernelfs, packed as a sparse tar in zstd, each with its manifest
// (fsreadtest.Manifest). testdata/generate.go is its command.
package golden

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// Spec is the recipe of one image.
type Spec struct {
	Name, Note string
	Options    kernelfs.Options
	Mount      string // options of the mount that Fill runs in, beside subvolid=5
	Seed       uint64
	// Fill makes the content below the top level subvolume. It may leave the tree at another mount.
	Fill func(ctx context.Context, fs *kernelfs.FS, t *kernelfs.Tree) error
	// Ext4, if set, makes the content of an ext4 that becomes the filesystem by btrfs-convert, before Fill.
	Ext4 func(t *kernelfs.Tree) error
	// Rootdir, if set, makes the directory that mkfs.btrfs copies; there is no Fill then. The kernel
	// may refuse such a filesystem, so the manifest is what the directory shows.
	Rootdir func(t *kernelfs.Tree) error
	// Crash takes the images while they are mounted, with a log tree on them. The manifest is then
	// what the kernel shows after it replayed the log of a copy.
	Crash bool
	// Needs is a feature that older versions of mkfs.btrfs do not know.
	Needs string
	// Keep keeps what free space holds. Otherwise it is discarded, which makes smaller packages.
	Keep bool
}

// Args is the command line of mkfs.btrfs, empty if something else makes the filesystem.
func (s *Spec) Args() []string {
	switch {
	case s.Ext4 != nil:
		return nil
	case s.Rootdir != nil:
		return append(s.Options.Args(), "--rootdir", "DIR")
	}
	return s.Options.Args()
}

// ErrMkfs is the error of Build if the recipe needs a newer mkfs.btrfs.
var ErrMkfs = errors.New("mkfs.btrfs is too old")

// known fails with ErrMkfs if mkfs.btrfs lacks the feature that s needs. mkfs lists features on
// standard error.
func (s *Spec) known(ctx context.Context) error {
	if s.Needs == "" {
		return nil
	}
	out, err := exec.CommandContext(ctx, "mkfs.btrfs", "-O", "list-all").CombinedOutput()
	if err != nil {
		return fmt.Errorf("mkfs.btrfs -O list-all: %w", err)
	}
	if !strings.Contains(string(out), s.Needs) {
		return fmt.Errorf("image %s: %w: it does not know %s", s.Name, ErrMkfs, s.Needs)
	}
	return nil
}

// Build makes the image in a directory below work, packs it as dir/NAME.tar.zst and writes
// dir/NAME.json. Both appear complete or not at all.
func (s *Spec) Build(ctx context.Context, work, dir string) (err error) {
	if err := s.known(ctx); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(work, s.Name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	build := s.build
	if s.Rootdir != nil {
		build = s.buildRootdir
	}
	m, images, err := build(ctx, tmp)
	if err != nil {
		return fmt.Errorf("image %s: %w", s.Name, err)
	}
	return install(ctx, m, images, dir)
}

// build makes the images and looks at them.
func (s *Spec) build(ctx context.Context, tmp string) (*fsreadtest.Manifest, []string, error) {
	images, err := s.fill(ctx, tmp)
	if err != nil {
		return nil, nil, err
	}
	if err := digHoles(ctx, images); err != nil {
		return nil, nil, err
	}
	m, err := s.inspect(ctx, tmp, images)
	return m, images, err
}

// digHoles makes holes of zeros that were written, not left out: they need no place in the package.
func digHoles(ctx context.Context, images []string) error {
	for _, image := range images {
		if err := command(ctx, "fallocate", "--dig-holes", image); err != nil {
			return err
		}
	}
	return nil
}

// fill makes the filesystem and returns its image files, unmounted and detached.
func (s *Spec) fill(ctx context.Context, tmp string) (images []string, err error) {
	content := kernelfs.Content{Seed: s.Seed}
	var fs *kernelfs.FS
	if s.Ext4 != nil {
		fs, err = kernelfs.Convert(ctx, tmp, kernelfs.MinDevice, s.Options.Label, s.Ext4, content)
	} else {
		fs, err = kernelfs.Make(ctx, tmp, s.Options)
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, fs.Close()) }()
	mnt, err := fs.Mount("subvolid=5", s.Mount)
	if err != nil {
		return nil, err
	}
	t := kernelfs.NewTree(ctx, mnt, content)
	if err := s.Fill(ctx, fs, t); err != nil {
		return nil, err
	}
	if err := t.Err(); err != nil {
		return nil, err
	}
	if s.Crash {
		return copyImages(ctx, fs.Images(), filepath.Join(tmp, "crashed"))
	}
	if !s.Keep {
		if err := command(ctx, "fstrim", t.Root()); err != nil {
			return nil, err
		}
	}
	return fs.Images(), nil
}

// inspect writes down what the images hold and what a fresh mount shows. It looks at copies, so
// that not even a log replay can change the images.
func (s *Spec) inspect(ctx context.Context, tmp string, images []string) (*fsreadtest.Manifest, error) {
	copies, err := copyImages(ctx, images, filepath.Join(tmp, "inspected"))
	if err != nil {
		return nil, err
	}
	known, err := s.header(ctx)
	if err != nil {
		return nil, err
	}
	return look(ctx, tmp, copies, *known)
}

// header is what the recipe and the programs here say of an image.
func (s *Spec) header(ctx context.Context) (*fsreadtest.Header, error) {
	h := &fsreadtest.Header{
		Name: s.Name, Note: s.Note,
		Mkfs: s.Args(), MountOptions: s.Mount, Seed: s.Seed,
	}
	return h, versions(ctx, h)
}

// views fills in what the mounts at the top level and at the default subvolume show.
func views(ctx context.Context, m *fsreadtest.Manifest, fs *kernelfs.FS) error {
	mnt, err := fs.Mount("ro", "subvolid=5")
	if err != nil {
		return err
	}
	top, err := kernelfs.Manifest(ctx, mnt)
	if err != nil {
		return err
	}
	m.Subvolumes, m.Entries = top.Subvolumes, top.Entries
	if m.Profiles, err = profiles(ctx, mnt); err != nil {
		return err
	}
	if m.FSTreeLevel, err = kernelfs.TreeLevel(mnt, fsTree); err != nil {
		return err
	}
	if mnt, err = fs.Mount("ro"); err != nil {
		return err
	}
	view, err := kernelfs.Manifest(ctx, mnt)
	if err != nil {
		return err
	}
	m.DefaultSubvolume, m.DefaultEntries = view.Entries[0].Subvol, nil
	if m.DefaultSubvolume != fsTree {
		m.DefaultEntries = view.Entries
	}
	return fs.Unmount()
}

// fsTree is the id of the top level subvolume.
const fsTree = 5

// superblock fills in the header from `btrfs inspect-internal`, the second reader of the format. What
// differs between the devices, those of seeds among them, is as the last one has it.
func superblock(ctx context.Context, m *fsreadtest.Manifest, images []string) error {
	for _, image := range images {
		out, err := output(ctx, "btrfs", "inspect-internal", "dump-super", image)
		if err != nil {
			return err
		}
		info, err := os.Stat(image)
		if err != nil {
			return err
		}
		d := fsreadtest.Device{File: filepath.Base(image), Size: info.Size()}
		if d.Devid, err = strconv.ParseUint(field(out, "dev_item.devid"), 10, 64); err != nil {
			return fmt.Errorf("devid of %s: %w", image, err)
		}
		if d.SHA256, err = fileDigest(image); err != nil {
			return err
		}
		m.Devices = append(m.Devices, d)
		m.Label, m.UUID = field(out, "label"), field(out, "fsid")
		m.Csum = strings.Trim(regexp.MustCompile(`\(.*\)`).FindString(field(out, "csum_type")), "()")
		for key, p := range map[string]*uint32{"nodesize": &m.Nodesize, "sectorsize": &m.Sectorsize} {
			n, err := strconv.ParseUint(field(out, key), 10, 32)
			if err != nil {
				return fmt.Errorf("%s of %s: %w", key, image, err)
			}
			*p = uint32(n)
		}
	}
	return nil
}

// versions fills in what made the image.
func versions(ctx context.Context, h *fsreadtest.Header) error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	h.Kernel = unix.ByteSliceToString(u.Release[:])
	out, err := output(ctx, "mkfs.btrfs", "--version")
	h.Progs = strings.TrimSpace(out)
	return err
}

// profiles returns the lines of `btrfs filesystem df` without the sizes.
func profiles(ctx context.Context, mnt string) ([]string, error) {
	out, err := output(ctx, "btrfs", "filesystem", "df", mnt)
	if err != nil {
		return nil, err
	}
	var list []string
	for line := range strings.Lines(out) {
		if name, _, ok := strings.Cut(line, ":"); ok && !strings.HasPrefix(name, "GlobalReserve") {
			list = append(list, name)
		}
	}
	return list, nil
}

// field returns the value of "key<blanks>value" in the output of dump-super.
func field(out, key string) string {
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(key) + `[ \t]+(.*)$`).FindStringSubmatch(out)
	if m == nil {
		return ""
	}
	return strings.TrimSpace(m[1])
}

func fileDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// copyImages copies sparse files into a new directory.
func copyImages(ctx context.Context, images []string, dir string) ([]string, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	var copies []string
	for _, image := range images {
		to := filepath.Join(dir, filepath.Base(image))
		if err := command(ctx, "cp", "--sparse=always", image, to); err != nil {
			return nil, err
		}
		copies = append(copies, to)
	}
	return copies, nil
}

func command(ctx context.Context, name string, args ...string) error {
	_, err := output(ctx, name, args...)
	return err
}

func output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
		}
		return "", fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return string(out), nil
}
