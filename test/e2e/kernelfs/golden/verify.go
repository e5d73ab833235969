//go:build linux

package golden

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// Verify unpacks the image NAME of dir in a directory below work, mounts it read-only, and
// compares all that its manifest says with the device files, the superblock and the mounts.
func Verify(ctx context.Context, name, work, dir string) (err error) {
	want, err := fsreadtest.ReadManifest(dir, name)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(work, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	images, err := fsreadtest.Unpack(dir, want, tmp)
	if err != nil {
		return err
	}
	got, err := again(ctx, tmp, images, want)
	if err != nil {
		return fmt.Errorf("image %s: %w", name, err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		return fmt.Errorf("image %s: manifest (-) and mount (+) differ:\n%s", name, diff)
	}
	return nil
}

// again describes images anew in the way in which want was made.
func again(ctx context.Context, tmp string, images []string, want *fsreadtest.Manifest) (*fsreadtest.Manifest, error) {
	specs := Specs()
	if i := slices.IndexFunc(specs, func(s Spec) bool { return s.Name == want.Name }); i >= 0 && specs[i].Rootdir != nil {
		return specs[i].verifyRootdir(ctx, tmp, images, want)
	}
	return look(ctx, tmp, images, want.Header)
}

// look describes images anew; known gives what images do not tell about their making.
func look(ctx context.Context, tmp string, images []string, known fsreadtest.Header) (m *fsreadtest.Manifest, err error) {
	m = blank(known)
	fs, err := kernelfs.Attach(tmp, images)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, fs.Close()) }()
	if err := superblock(ctx, m, images); err != nil {
		return nil, err
	}
	return m, views(ctx, m, fs)
}

// blank is a manifest of which only the making is known.
func blank(known fsreadtest.Header) *fsreadtest.Manifest {
	return &fsreadtest.Manifest{Header: fsreadtest.Header{
		Name: known.Name, Note: known.Note,
		Mkfs: known.Mkfs, MountOptions: known.MountOptions, Seed: known.Seed,
		Kernel: known.Kernel, Progs: known.Progs,
	}}
}
