//go:build linux

package golden

import (
	"bytes"
	"context"
	"os"
	"path/filepath"

	"github.com/btrexport/btrexport/fsread/fsreadtest"
)

// install packs images, which stand in one directory, and puts package and manifest into dir by
// renaming, the manifest last.
func install(ctx context.Context, m *fsreadtest.Manifest, images []string, dir string) error {
	var text bytes.Buffer
	if err := m.Encode(&text); err != nil {
		return err
	}
	packed := filepath.Join(dir, "."+m.Name+".tar.zst.tmp")
	manifest := filepath.Join(dir, "."+m.Name+".json.tmp")
	if err := pack(ctx, images, packed); err != nil {
		return err
	}
	if err := os.WriteFile(manifest, text.Bytes(), 0o644); err != nil {
		return err
	}
	if err := os.Rename(packed, filepath.Join(dir, m.Name+".tar.zst")); err != nil {
		return err
	}
	return os.Rename(manifest, filepath.Join(dir, m.Name+".json"))
}

// pack writes images into a sparse POSIX tar in one zstd frame. zstd reads a file and no pipe:
// then the frame states its size, and a decoder needs no more memory than that.
func pack(ctx context.Context, images []string, packed string) error {
	dir := filepath.Dir(images[0])
	tarball := filepath.Join(dir, "images.tar")
	args := []string{
		"--create", "--file=" + tarball, "--directory=" + dir, "--format=posix", "--sparse",
		"--owner=root:0", "--group=root:0", "--mode=0644", "--mtime=@0", "--pax-option=delete=atime,delete=ctime",
	}
	for _, image := range images {
		args = append(args, filepath.Base(image))
	}
	if err := command(ctx, "tar", args...); err != nil {
		return err
	}
	return command(ctx, "zstd", "-q", "-f", "-19", "--long=27", "--rm", tarball, "-o", packed)
}
