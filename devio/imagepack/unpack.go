package imagepack

import (
	"archive/tar"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// Unpack writes the images of the pack r into the directory dir, which must exist, and returns
// their paths in the order of the pack. Blocks of 4 KiB that are all zero become holes. Errors wrap
// ErrLimit, ErrName, ErrType or ErrExists where one applies; what has been written is then removed
// again (files that Overwrite has replaced are not brought back).
func Unpack(r io.Reader, dir string, limits Limits) ([]string, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, fmt.Errorf("unpack: %w", err)
	}
	defer z.Close()
	paths, err := unpackArchive(z, dir, limits.withDefaults())
	if err != nil {
		return nil, fmt.Errorf("unpack: %w", err)
	}
	return paths, nil
}

// unpackArchive is Unpack for the archive inside the pack.
func unpackArchive(r io.Reader, dir string, limits Limits) ([]string, error) {
	u := &unpacker{dir: dir, limits: limits, stream: &bounded{r: r, left: limits.stream()}, buf: make([]byte, chunk)}
	if err := u.run(); err != nil {
		for _, path := range u.paths {
			os.Remove(path)
		}
		return nil, err
	}
	return u.paths, nil
}

// unpacker is one run of unpackArchive.
type unpacker struct {
	dir    string
	limits Limits
	stream io.Reader
	buf    []byte   // for copying
	paths  []string // created so far
	bytes  int64    // sum of the sizes of the images so far
}

func (u *unpacker) run() error {
	archive := tar.NewReader(u.stream)
	for {
		h, err := archive.Next()
		if err == io.EOF {
			return u.end()
		}
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeXGlobalHeader || isTop(h) {
			continue
		}
		if err := u.entry(h, archive); err != nil {
			return fmt.Errorf("entry %q: %w", h.Name, err)
		}
	}
}

// isTop recognises the directory itself, which tar stores when it is told to pack ".".
func isTop(h *tar.Header) bool {
	return h.Typeflag == tar.TypeDir && strings.Trim(h.Name, "./") == "" && !strings.Contains(h.Name, "..")
}

// end reads what follows the archive: zstd checks its checksum only at its end.
func (u *unpacker) end() error {
	n, err := io.Copy(io.Discard, io.LimitReader(u.stream, trailer+1))
	if err == nil && n > trailer {
		err = fmt.Errorf("more than %d bytes after the archive: %w", trailer, ErrLimit)
	}
	return err
}

// entry checks one file of the archive, then writes it.
func (u *unpacker) entry(h *tar.Header, data io.Reader) error {
	if h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeGNUSparse {
		return ErrType
	}
	name, err := baseName(h.Name)
	if err != nil {
		return err
	}
	if len(u.paths) == u.limits.Files {
		return fmt.Errorf("more than %d files: %w", u.limits.Files, ErrLimit)
	}
	if h.Size < 0 || h.Size > u.limits.Bytes-u.bytes {
		return fmt.Errorf("%d bytes, after %d of other files, are more than %d: %w", h.Size, u.bytes, u.limits.Bytes, ErrLimit)
	}
	u.bytes += h.Size
	return u.write(filepath.Join(u.dir, name), data, h.Size)
}

// write makes the file path out of size bytes of data.
func (u *unpacker) write(path string, data io.Reader, size int64) (err error) {
	if err := u.clear(path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644) // O_EXCL follows no link
	if os.IsExist(err) {
		return fmt.Errorf("%s: %w", path, ErrExists)
	}
	if err != nil {
		return err
	}
	u.paths = append(u.paths, path)
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	return writeSparse(f, data, size, u.buf)
}

// clear removes the file that path names, if it is to be overwritten and is a regular file that
// this pack has not brought itself.
func (u *unpacker) clear(path string) error {
	if !u.limits.Overwrite {
		return nil
	}
	for _, p := range u.paths {
		if p == path {
			return fmt.Errorf("twice in the pack: %w", ErrExists)
		}
	}
	st, err := os.Lstat(path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file: %w", path, ErrExists)
	}
	return os.Remove(path)
}

// bounded is a reader that fails, rather than ends, when it has given left bytes.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, ErrLimit
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}
