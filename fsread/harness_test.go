package fsread

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/devio/faultdev"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// counts is what the filesystem told of failed copies.
type counts struct {
	mu             sync.Mutex
	data, meta     map[uint64]int // checksum failures
	io, csum       map[uint64]int // retries
	repaired, lost int
}

func newCounts() *counts {
	return &counts{data: map[uint64]int{}, meta: map[uint64]int{}, io: map[uint64]int{}, csum: map[uint64]int{}}
}

func (c *counts) ChecksumFailed(devid uint64, metadata bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if metadata {
		c.meta[devid]++
	} else {
		c.data[devid]++
	}
}

func (c *counts) Retried(devid uint64, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if reason == "io" {
		c.io[devid]++
	} else {
		c.csum[devid]++
	}
}
func (c *counts) Repaired(string) { c.mu.Lock(); c.repaired++; c.mu.Unlock() }
func (c *counts) Lost(n int)      { c.mu.Lock(); c.lost += n; c.mu.Unlock() }
func (c *counts) Unverified(int)  {}

// rig is a golden image over fault devices.
type rig struct {
	img  *fsreadtest.Image
	devs []*faultdev.Dev // in the order of the manifest
	pool *devio.Pool
}

// newRig opens the devices of an image; they and the pool are checked and closed with the test or by close.
func newRig(t testing.TB, img *fsreadtest.Image) *rig {
	t.Helper()
	r := &rig{img: img, pool: devio.NewPool(16 << 20)}
	for _, p := range img.Devices {
		q, err := devio.Open(p, devio.Options{Engine: fsreadtest.Engine(t)})
		if err != nil {
			t.Fatal(err)
		}
		r.devs = append(r.devs, faultdev.New(q))
	}
	return r
}

func (r *rig) devices() []volume.Device {
	var out []volume.Device
	for _, d := range r.devs {
		out = append(out, d)
	}
	return out
}

// open opens the filesystem; o.Pool is the rig's.
func (r *rig) open(o Options) (*FS, error) {
	o.Pool = r.pool
	return Open(context.Background(), r.devices(), o)
}

// close closes what is open and checks that every buffer came back.
func (r *rig) close(t testing.TB, f *FS) {
	t.Helper()
	if f != nil {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	} else {
		for _, d := range r.devs {
			d.Close()
		}
	}
	// Reads that nobody waited for give their buffers back by themselves.
	for i := 0; r.pool.Lent() != 0 && i < 500; i++ {
		time.Sleep(10 * time.Millisecond)
	}
	if n := r.pool.Lent(); n != 0 {
		t.Errorf("%d buffers still lent", n)
	}
	r.pool.Close()
}

// mustOpen opens an image's filesystem for the whole test.
func mustOpen(t testing.TB, r *rig, o Options) *FS {
	t.Helper()
	f, err := r.open(o)
	if err != nil {
		r.close(t, nil)
		t.Fatal(err)
	}
	t.Cleanup(func() { r.close(t, f) })
	return f
}

// files reads every regular file of at most limit bytes below the top level: the truth to compare with, on
// an image whose golden test passes.
func files(t testing.TB, f *FS, limit uint64) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	if err := eachFile(f, func(path string, file *File) error {
		if file.size == 0 || file.size > limit {
			return nil
		}
		b := make([]byte, file.size)
		_, err := file.ReadAt(context.Background(), b, 0)
		out[path] = b
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// eachFile calls fn for every regular file of the top level, without crossing into subvolumes.
func eachFile(f *FS, fn func(path string, file *File) error) error {
	ctx := context.Background()
	top, err := f.SubvolumeByID(ctx, ondisk.TreeFS)
	if err != nil {
		return err
	}
	var walk func(path string, n *Node) error
	walk = func(path string, n *Node) error {
		return n.ReadDir(ctx, func(e Entry) error {
			c, err := e.Node(ctx)
			if err != nil {
				return err
			}
			switch {
			case c.IsDir() && c.sv.id == top.id:
				return walk(path+"/"+e.Name, c)
			case c.Mode().IsRegular():
				file, err := c.File()
				if err != nil {
					return err
				}
				if err := fn(path+"/"+e.Name, file); err != nil {
					return fmt.Errorf("%s/%s: %w", path, e.Name, err)
				}
			}
			return nil
		})
	}
	root, err := top.Root(ctx)
	if err != nil {
		return err
	}
	return walk("", root)
}

// typed says whether an error is of the kinds that are promised for bad disks.
func typed(err error) bool {
	var lost *volume.Lost
	var le *LostError
	return errors.As(err, &lost) || errors.As(err, &le) || errors.Is(err, volume.ErrNoFilesystem) || errors.Is(err, ondisk.ErrCorrupt)
}

// mustEqual compares a read with the file's truth, but for the ranges that were said to be lost.
func mustEqual(path string, got, want []byte, off uint64, err error) error {
	var lost *LostError
	want = bytes.Clone(want)
	if errors.As(err, &lost) {
		for _, l := range lost.Ranges {
			clear(want[l.Off-off : l.Off-off+l.Len])
		}
	} else if err != nil && err != io.EOF {
		return nil
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%s offset %d length %d: wrong bytes, error %v", path, off, len(got), err)
	}
	return nil
}

// pwrite changes an image file under everybody's feet.
func pwrite(t testing.TB, path string, off int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func smallNames(names []string) []string {
	return slices.DeleteFunc(names, func(n string) bool { return strings.HasPrefix(n, "deep") || n == "huge" })
}
