package fsread_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"testing"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/devio/imagepack"
	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
)

// openSample opens the filesystem of the two images that "btrexport sample DIR" writes: a RAID1.
func openSample(dir string) (*fsread.FS, error) {
	var devs []volume.Device
	for _, name := range []string{"disk0.img", "disk1.img"} {
		d, err := devio.Open(filepath.Join(dir, name), devio.Options{})
		if err != nil {
			return nil, err
		}
		devs = append(devs, d)
	}
	return fsread.Open(context.Background(), devs, fsread.Options{})
}

// unpackSample does what "btrexport sample DIR" does.
func unpackSample() (dir string, err error) {
	pack, err := os.Open("../cmd/btrexport/sample/sample.tar.zst")
	if err != nil {
		return "", err
	}
	defer pack.Close()
	if dir, err = os.MkdirTemp("", "sample"); err == nil {
		_, err = imagepack.Unpack(pack, dir, imagepack.Limits{})
	}
	return dir, err
}

// ruin overwrites 4096 bytes of an image.
func ruin(image string, at ondisk.Logical) error {
	f, err := os.OpenFile(image, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(make([]byte, 4096), int64(at))
	return errors.Join(err, f.Close())
}

// ruinSample overwrites the third block of vm1.raw in the given images of the sample.
func ruinSample(dir string, images ...string) error {
	places := map[string]ondisk.Logical{"disk0.img": 92348416, "disk1.img": 71376896} // by "btrexport map"
	for _, name := range images {
		if err := ruin(filepath.Join(dir, name), places[name]); err != nil {
			return err
		}
	}
	return nil
}

// damagedSample is the sample with a block of vm1.raw that no copy has, at lost.
func damagedSample(t *testing.T) (v *fsread.View, f *fsread.File, lost uint64) {
	t.Helper()
	dir, err := unpackSample()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := ruinSample(dir, "disk0.img", "disk1.img"); err != nil {
		t.Fatal(err)
	}
	fsys, err := openSample(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fsys.Close() })
	sv, err := fsys.DefaultSubvolume(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if f, err = sv.OpenFile(t.Context(), "/@images/vm1.raw"); err != nil {
		t.Fatal(err)
	}
	return sv.View(t.Context()), f, 8192
}

// Open takes every device of the filesystem, in any order, and owns them from then on.
func ExampleOpen() {
	dir, err := unpackSample()
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	ctx := context.Background()
	var devs []volume.Device
	for _, name := range []string{"disk1.img", "disk0.img"} {
		d, err := devio.Open(filepath.Join(dir, name), devio.Options{})
		if err != nil {
			log.Fatal(err)
		}
		devs = append(devs, d)
	}
	fsys, err := fsread.Open(ctx, devs, fsread.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer fsys.Close()

	info := fsys.Info()
	fmt.Println(info.Label, info.Checksum, len(info.Devices), "devices, generation", info.Generation)
	list, err := fsys.Subvolumes(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, s := range list {
		fmt.Printf("%d /%s read-only %v\n", s.ID, s.Path, s.ReadOnly)
	}
	// Output:
	// sample crc32c 2 devices, generation 10
	// 5 / read-only false
	// 256 /@images read-only false
	// 257 /@home read-only false
	// 258 /@images-snap read-only true
}

// A View works with whatever takes an io/fs.FS.
func ExampleSubvolume_View() {
	dir, err := unpackSample()
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	fsys, err := openSample(dir)
	if err != nil {
		log.Fatal(err)
	}
	defer fsys.Close()

	ctx := context.Background()
	sv, err := fsys.SubvolumeByPath(ctx, "/@images")
	if err != nil {
		log.Fatal(err)
	}
	err = fs.WalkDir(sv.View(ctx), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			fmt.Println(info.Mode(), info.Size(), path)
		}
		return err
	})
	if err != nil {
		log.Fatal(err)
	}

	top, err := fsys.DefaultSubvolume(ctx)
	if err != nil {
		log.Fatal(err)
	}
	text, err := top.View(ctx).ReadFile("@images/link") // leads to ../@home/hello.txt
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s", text)
	// Output:
	// drwxr-xr-x 136 .
	// -rw-r--r-- 16777216 clone.raw
	// Lrwxrwxrwx 18 link
	// -rw-r--r-- 1500000 lzo.raw
	// -rw-r--r-- 1000000 plain.raw
	// -rw-r--r-- 4194304 preallocated.raw
	// -rw-r--r-- 16777216 vm1.raw
	// -rw-r--r-- 1500000 zlib.raw
	// -rw-r--r-- 1500000 zstd.raw
	// Hello from an inline file: its bytes stand in the tree block itself.
}

// One good copy is enough, and nobody need know. A block that no copy has is an error that says where it is and what each
// copy had; all other bytes are good.
func ExampleFile_ReadAt() {
	dir, err := unpackSample()
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	read := func() {
		fsys, err := openSample(dir)
		if err != nil {
			log.Fatal(err)
		}
		defer fsys.Close()
		ctx := context.Background()
		sv, err := fsys.DefaultSubvolume(ctx)
		if err != nil {
			log.Fatal(err)
		}
		f, err := sv.OpenFile(ctx, "/@images/vm1.raw")
		if err != nil {
			log.Fatal(err)
		}
		p := make([]byte, 16384)
		n, err := f.ReadAt(ctx, p, 4096)
		fmt.Println(n, "good bytes")
		var lost *fsread.LostError
		if errors.As(err, &lost) {
			for _, r := range lost.Ranges {
				fmt.Printf("lost: %d bytes at %d, logical %d\n", r.Len, r.Off, r.Cause.Logical)
			}
		} else if err != nil && err != io.EOF {
			log.Fatal(err)
		}
		var sum *fsread.ChecksumError
		fmt.Println("a checksum did not match:", errors.As(err, &sum))
	}
	if err := ruinSample(dir, "disk0.img"); err != nil {
		log.Fatal(err)
	}
	read()
	if err := ruinSample(dir, "disk1.img"); err != nil {
		log.Fatal(err)
	}
	read()
	// Output:
	// 16384 good bytes
	// a checksum did not match: false
	// 4096 good bytes
	// lost: 4096 bytes at 8192, logical 92348416
	// a checksum did not match: true
}
