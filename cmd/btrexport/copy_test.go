package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// openImage opens a golden image; at the end every buffer must be back.
func openImage(t *testing.T, img *fsreadtest.Image) (*fsread.FS, *fsread.Subvolume) {
	t.Helper()
	dev := deviceFlags{devices: img.Devices}
	f, err := dev.open(t.Context(), slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	sv, err := f.SubvolumeByID(t.Context(), ondisk.TreeFS)
	if err != nil {
		t.Fatal(err)
	}
	return f, sv
}

// memory is a sink that keeps what it gets, and fails at write number fail.
type memory struct {
	b      []byte
	ended  bool
	writes int
	fail   int // 0: never
}

var errSink = errors.New("sink is full")

func (m *memory) write(p []byte, off uint64) error {
	if m.writes++; m.writes == m.fail {
		return errSink
	}
	if off < uint64(len(m.b)) {
		return fmt.Errorf("write at %d after %d bytes", off, len(m.b))
	}
	m.b = append(append(m.b, make([]byte, off-uint64(len(m.b)))...), p...)
	return nil
}

func (m *memory) end(size uint64) error {
	m.b, m.ended = append(m.b, make([]byte, size-uint64(len(m.b)))...), true
	return nil
}

// TestCopyFile copies every file of some images, as a file would be and as a stream, and holds both
// against what the kernel showed.
func TestCopyFile(t *testing.T) {
	for _, name := range []string{"single", "raid10-4", "no-holes-off", "zstd", "lzo"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img := fsreadtest.Load(t, name)
			_, sv := openImage(t, img)
			for _, e := range img.Manifest.Entries {
				if e.Type != "file" || e.SHA256 == "" || e.Size > 16<<20 {
					continue
				}
				f, err := sv.OpenFile(t.Context(), "/"+string(e.Path))
				if err != nil {
					t.Fatal(err)
				}
				var m memory
				var told uint64
				small := copier{ctx: t.Context(), file: f, to: &m, chunk: 3 * 4096, depth: 3, read: func(n uint64) { told += n }} // so that all goes round often
				done, err := small.run()
				if err != nil || !m.ended || done.Bytes != uint64(e.Size) || done.Data > done.Bytes {
					t.Errorf("%q: %+v, ended %v, error %v", e.Path, done, m.ended, err)
				}
				if todo, err := dataBytes(t.Context(), f, nil); err != nil || todo != done.Data || told != todo {
					t.Errorf("%q: %d bytes of data, error %v; read %d, told %d", e.Path, todo, err, done.Data, told)
				}
				sum := sha256.Sum256(m.b)
				stream := sha256.New()
				if _, err := copyFile(t.Context(), f, &streamSink{w: stream}, nil, ignore); err != nil {
					t.Error(err)
				}
				for _, got := range [][]byte{sum[:], stream.Sum(nil)} {
					if hex.EncodeToString(got) != e.SHA256 {
						t.Errorf("%q: sha256 %x, want %s", e.Path, got, e.SHA256)
					}
				}
			}
		})
	}
}

// TestCopyFileFails ends copies at every place; no buffer may stay out.
func TestCopyFileFails(t *testing.T) {
	img := fsreadtest.Load(t, "single")
	fs, sv := openImage(t, img)
	entries := slices.DeleteFunc(slices.Clone(img.Manifest.Entries), func(e fsreadtest.Entry) bool { return e.SHA256 == "" })
	big := slices.MaxFunc(entries, func(a, b fsreadtest.Entry) int { return int(a.Size - b.Size) })
	f, err := sv.OpenFile(t.Context(), "/"+string(big.Path))
	if err != nil {
		t.Fatal(err)
	}
	for n, failed := 1, true; failed; n++ {
		m := memory{fail: n}
		c := copier{ctx: t.Context(), file: f, to: &m, chunk: 128 << 10, depth: 3, read: ignore}
		_, err := c.run()
		if failed = m.writes >= n; failed && (!errors.Is(err, errSink) || m.ended) {
			t.Fatalf("write %d failed: ended %v, error %v", n, m.ended, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := copyFile(ctx, f, &memory{}, nil, ignore); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: error %v", err)
	}
	pool := fs.Pool()
	if err := fs.Close(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return pool.Lent() == 0 })
}

// TestCopyLost ruins both copies of two blocks in a row: the error names them, and each copy's cause.
func TestCopyLost(t *testing.T) {
	img := fsreadtest.Load(t, "raid1-2")
	fs, sv := openImage(t, img)
	f, err := sv.OpenFile(t.Context(), "/rows/rows-0")
	if err != nil {
		t.Fatal(err)
	}
	var at uint64
	var logical ondisk.Logical
	if err := f.Extents(t.Context(), 0, func(s fsread.Segment) error {
		if s.Kind != fsread.Plain || s.Len < 3*4096 || at > 0 {
			return nil
		}
		at, logical = s.Off+4096, s.Logical+4096
		return ruinAll(fs, logical, 2*4096)
	}); err != nil || at == 0 {
		t.Fatalf("ruined at %d, error %v", at, err)
	}
	_, err = copyToStream(t.Context(), f, "/rows/rows-0", &countWriter{}, nil, ignore)
	want := fmt.Sprintf(`^read /rows/rows-0 offset %d length 8192 logical %d: no good copy: devid \d \(.*disk\d\.img\) @\d+: crc32c is [0-9a-f]{8}, want [0-9a-f]{8}, devid \d \(.*disk\d\.img\) @\d+: crc32c is .* \(the rest of the file can be read: .*\)$`, at, logical)
	if err == nil || !regexp.MustCompile(want).MatchString(err.Error()) {
		t.Errorf("got %v\nwant %s", err, want)
	}
	if code, kind := classify(err); code != exitFailed || kind != "checksum" {
		t.Errorf("status %d, kind %s", code, kind)
	}
}

func ignore(uint64) {}

type countWriter struct{ n int }

func (w *countWriter) Write(p []byte) (int, error) {
	w.n += len(p)
	return len(p), nil
}

// ruinAll overwrites every copy of a range.
func ruinAll(fs *fsread.FS, logical ondisk.Logical, n int) error {
	copies, err := fs.Copies(logical)
	if err != nil {
		return err
	}
	for _, c := range copies {
		f, err := os.OpenFile(c.Name, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt(make([]byte, n), int64(c.Physical))
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

func TestSpread(t *testing.T) {
	list := make([]int, 41)
	for i := range list {
		list[i] = i
	}
	if got, want := spread(list, 5), []int{0, 10, 20, 30, 40}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := spread(list[:3], 5); !slices.Equal(got, []int{0, 1, 2}) {
		t.Errorf("of a short list: %v", got)
	}
}
