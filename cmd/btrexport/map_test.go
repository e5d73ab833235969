package main

import (
	"bytes"
	"compress/zlib"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
)

// TestMapCopies puts every file of some images together from the places that its map names, once by each
// mirror, with no reader of ours between: what lies there must be what the kernel showed.
func TestMapCopies(t *testing.T) {
	for _, c := range []struct {
		image   string
		mirrors int
	}{
		{"single", 1}, {"dup", 2}, {"raid0-1", 1}, {"raid0-3", 1}, {"raid1-3", 2}, {"raid10-4", 2}, {"raid10-5", 2}, {"raid1c3-4", 3},
		{"converted", 2}, {"no-holes-off", 1}, {"zlib", 1},
	} {
		t.Run(c.image, func(t *testing.T) {
			t.Parallel()
			img := fsreadtest.Load(t, c.image)
			fs, sv := openImage(t, img)
			disks := openDisks(t, img)
			checked := 0
			for _, e := range img.Manifest.Entries {
				if e.Type != "file" || e.SHA256 == "" || e.Size > 16<<20 {
					continue
				}
				objects, inline := mapObjects(t, fs, sv, "/"+string(e.Path))
				for mirror := 1; mirror <= c.mirrors; mirror++ {
					b := rebuild(t, disks, objects, inline, mirror)
					sum := sha256.Sum256(b)
					if got := hex.EncodeToString(sum[:]); got != e.SHA256 || int64(len(b)) != e.Size {
						t.Errorf("%q by mirror %d: %d bytes, sha256 %s; want %d, %s", e.Path, mirror, len(b), got, e.Size, e.SHA256)
					}
				}
				checked++
			}
			if checked == 0 {
				t.Error("no file was looked at")
			}
		})
	}
}

func openDisks(t *testing.T, img *fsreadtest.Image) map[uint64]*os.File {
	t.Helper()
	disks := make(map[uint64]*os.File)
	for i, d := range img.Manifest.Devices {
		f, err := os.Open(img.Devices[i])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		disks[d.Devid] = f
	}
	return disks
}

// mapObjects is what map --json prints of a file, and the bytes of inline extents.
func mapObjects(t *testing.T, fs *fsread.FS, sv *fsread.Subvolume, path string) (objects []extentJSON, inline []byte) {
	t.Helper()
	f, err := sv.OpenFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	m := &mapper{ctx: t.Context(), path: path, file: f, copies: fs.Copies}
	if err := m.printJSON(&out); err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(&out)
	d.DisallowUnknownFields()
	for {
		var o extentJSON
		switch err := d.Decode(&o); {
		case err == io.EOF:
		case err != nil:
			t.Fatal(err)
		default:
			if o.Kind == "inline" {
				inline = inlineBytes(t, f)
			}
			if o.Verified != (f.Verified() || (o.Kind != "plain" && o.Kind != "compressed")) {
				t.Errorf("%s offset %d: verified %v", path, o.Offset, o.Verified)
			}
			objects = append(objects, o)
			continue
		}
		return objects, inline
	}
}

func inlineBytes(t *testing.T, f *fsread.File) (b []byte) {
	t.Helper()
	if err := f.Extents(t.Context(), 0, func(s fsread.Segment) error {
		if b = s.Extent.Inline; s.Extent.Compression == ondisk.CompressZlib {
			b = inflate(t, b)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return b
}

func inflate(t *testing.T, b []byte) []byte {
	t.Helper()
	r, err := zlib.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// rebuild puts a file together from one mirror of every extent; of those with fewer, the last.
func rebuild(t *testing.T, disks map[uint64]*os.File, objects []extentJSON, inline []byte, mirror int) []byte {
	t.Helper()
	var out []byte
	for _, o := range objects {
		if o.Offset != uint64(len(out)) {
			t.Fatalf("extent at %d, want %d", o.Offset, len(out))
		}
		part := make([]byte, o.Length)
		switch o.Kind {
		case "inline":
			copy(part, inline)
		case "plain", "prealloc":
			stored := readCopy(t, disks, &o, mirror)
			if o.Kind == "plain" {
				copy(part, stored)
			}
		case "compressed":
			b := inflate(t, readCopy(t, disks, &o, mirror))
			if uint64(len(b)) > o.Extent.Decompressed {
				t.Fatalf("extent of %d bytes has %d", o.Extent.Decompressed, len(b))
			}
			if o.Extent.Offset < uint64(len(b)) {
				copy(part, b[o.Extent.Offset:])
			}
		case "hole":
		default:
			t.Fatalf("kind %q", o.Kind)
		}
		out = append(out, part...)
	}
	return out
}

func readCopy(t *testing.T, disks map[uint64]*os.File, o *extentJSON, mirror int) []byte {
	t.Helper()
	b := make([]byte, o.OnDisk)
	mirrors := 0
	for _, c := range o.Copies {
		mirrors = max(mirrors, int(c.Mirror))
	}
	var n uint64
	for _, c := range o.Copies {
		if int(c.Mirror) != min(mirror, mirrors) {
			continue
		}
		if c.Offset != n || c.Logical != o.Logical+ondisk.Logical(n) {
			t.Fatalf("copy at %d logical %d, want %d and %d", c.Offset, c.Logical, n, o.Logical+ondisk.Logical(n))
		}
		if _, err := disks[c.DevID].ReadAt(b[n:n+c.Length], int64(c.Physical)); err != nil {
			t.Fatal(err)
		}
		n += c.Length
	}
	if n != o.OnDisk {
		t.Fatalf("%d bytes located, want %d", n, o.OnDisk)
	}
	return b
}

// TestMapCompressed looks for the beginnings of zstd and LZO at the places of compressed extents.
func TestMapCompressed(t *testing.T) {
	for name, begins := range map[string]func(b []byte, o *extentJSON) bool{
		"zstd": func(b []byte, _ *extentJSON) bool { return bytes.HasPrefix(b, []byte{0x28, 0xb5, 0x2f, 0xfd}) },
		"lzo": func(b []byte, o *extentJSON) bool { // the whole length, with itself
			n := uint64(b[0]) | uint64(b[1])<<8 | uint64(b[2])<<16 | uint64(b[3])<<24
			return n <= o.OnDisk && n+4096 > o.OnDisk
		},
	} {
		img := fsreadtest.Load(t, name)
		fs, sv := openImage(t, img)
		disks := openDisks(t, img)
		checked := 0
		for _, path := range []string{"/zoo/bookends", "/zoo/size-200001", "/zoo/shared-source"} {
			objects, _ := mapObjects(t, fs, sv, path)
			for _, o := range objects {
				if o.Kind != "compressed" {
					continue
				}
				if checked++; o.Compression != name || !begins(readCopy(t, disks, &o, 1), &o) {
					t.Errorf("%s %s offset %d: no %s at %v", name, path, o.Offset, o.Compression, o.Copies)
				}
			}
		}
		if checked < 3 {
			t.Errorf("%s: %d compressed extents", name, checked)
		}
	}
}

// TestMapPrint holds the two passes against each other: rows are those of --json, their columns aligned,
// and the parts of the summary add up to the file.
func TestMapPrint(t *testing.T) {
	for _, name := range []string{"raid0-3", "raid10-4", "zstd"} {
		img := fsreadtest.Load(t, name)
		fs, sv := openImage(t, img)
		for _, e := range img.Manifest.Entries {
			if e.Type != "file" || e.Size == 0 {
				continue
			}
			path := "/" + string(e.Path)
			objects, _ := mapObjects(t, fs, sv, path)
			f, err := sv.OpenFile(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			m := &mapper{ctx: t.Context(), path: path, file: f, copies: fs.Copies, exact: true}
			if err := m.print(&out); err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
			logical := strings.Index(lines[3], "LOGICAL")
			n := 0
			for _, line := range lines[4:] {
				if cut := line[:min(logical, len(line))]; len(line) > logical && !strings.HasSuffix(cut, "  ") {
					t.Errorf("%q: row is not aligned: %q", path, line)
				}
				if strings.HasPrefix(line, " ") {
					continue
				}
				want := fmt.Sprintf("%d %d ", objects[n].Offset, objects[n].Length)
				if got := strings.Join(strings.Fields(line)[:2], " ") + " "; got != want {
					t.Errorf("%q: row %q, want %q", path, line, want)
				}
				n++
			}
			if n != len(objects) {
				t.Errorf("%q: %d rows, want %d", path, n, len(objects))
			}
		}
	}
}

// TestMapUnlocated maps a file whose extents no chunk holds: every row is there, and the errors follow.
func TestMapUnlocated(t *testing.T) {
	_, sv := openImage(t, fsreadtest.Load(t, "single"))
	f, err := sv.OpenFile(t.Context(), "/zoo/sparse-mixed")
	if err != nil {
		t.Fatal(err)
	}
	nowhere := func(ondisk.Logical) ([]volume.Copy, error) { return nil, volume.ErrUnmapped }
	for _, json := range []bool{false, true} {
		var out bytes.Buffer
		m := &mapper{ctx: t.Context(), path: "/f", file: f, copies: nowhere}
		if json {
			err = m.printJSON(&out)
		} else {
			err = m.print(&out)
		}
		if !errors.Is(err, volume.ErrUnmapped) || !strings.HasPrefix(err.Error(), "map /f offset ") {
			t.Errorf("error %v", err)
		}
		if got, want := strings.Count(out.String(), "no chunk maps this address"), len(each(err)); got != want || want == 0 {
			t.Errorf("%d rows tell it, %d errors:\n%s", got, want, &out)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m := &mapper{ctx: ctx, path: "/f", file: f, copies: nowhere}
	if err := m.print(io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	m = &mapper{ctx: t.Context(), path: "/f", file: f, copies: nowhere}
	if err := m.printJSON(failingWriter{}); !errors.Is(err, errSink) {
		t.Errorf("no room: %v", err)
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errSink }

func TestHoleMerger(t *testing.T) {
	var got []string
	h := holeMerger{fn: func(x *extent) error {
		got = append(got, fmt.Sprintf("%s %d+%d", x.name(), x.off, x.length))
		return nil
	}}
	for _, x := range []extent{hole(0, 1), hole(1, 2), plain(3, 4, 1), plain(7, 1, 5), hole(8, 1), plain(9, 1, 6), hole(10, 5), hole(15, 5)} {
		if err := h.add(x); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.flush(); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(got, ", "), "hole 0+3, plain 3+4, plain 7+1, hole 8+1, plain 9+1, hole 10+10"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestLocate(t *testing.T) {
	// Stripes of 64 KiB over devices 1 and 2; from 1 MiB on, over device 3 alone, in one piece.
	striped := func(l ondisk.Logical) ([]volume.Copy, error) {
		in, nr := uint64(l)%(64<<10), uint64(l)/(64<<10)
		c := volume.Copy{Mirror: 1, DevID: devio.DevID(1 + nr%2), Physical: devio.Physical(nr/2*(64<<10) + in), Len: 64<<10 - in}
		if l >= 1<<20 {
			c.DevID, c.Physical = 3, devio.Physical(l)
		}
		if l >= 2<<20 {
			return nil, volume.ErrUnmapped
		}
		return []volume.Copy{c}, nil
	}
	mirrored := func(l ondisk.Logical) ([]volume.Copy, error) {
		return []volume.Copy{{Mirror: 1, DevID: 1, Physical: devio.Physical(l), Len: 1 << 30}, {Mirror: 2, DevID: 2, Missing: true, Physical: devio.Physical(l + 7), Len: 1 << 30}}, nil
	}
	jumps := func(l ondisk.Logical) ([]volume.Copy, error) { // one device, two chunks
		if l < 8192 {
			return []volume.Copy{{DevID: 1, Physical: devio.Physical(l), Len: uint64(8192 - l)}}, nil
		}
		return []volume.Copy{{DevID: 1, Physical: devio.Physical(l + 4096), Len: 1 << 20}}, nil
	}
	stuck := func(ondisk.Logical) ([]volume.Copy, error) { return []volume.Copy{{}}, nil }
	endless := func(l ondisk.Logical) ([]volume.Copy, error) {
		return []volume.Copy{{DevID: devio.DevID(l % 2), Len: 1}}, nil
	}
	for _, c := range []struct {
		name    string
		logical ondisk.Logical
		n       uint64
		copies  copiesFunc
		want    string // offset+length: places, for each piece
		err     error
	}{
		{"nothing", 5, 0, stuck, "", nil},
		{"in a stripe", 4096, 8192, striped, "0+8192: 1@4096 ", nil},
		{"over three stripes", 60 << 10, 72 << 10, striped, "0+4096: 1@61440 4096+65536: 2@0 69632+4096: 1@65536 ", nil},
		{"stripes that go on", 1<<20 - 4096, 256 << 10, striped, "0+4096: 2@520192 4096+258048: 3@1048576 ", nil},
		{"to the end of the chunks", 2<<20 - 4096, 8192, striped, "0+4096: 3@2093056 ", volume.ErrUnmapped},
		{"mirrors", 4096, 4096, mirrored, "0+4096: 1@4096  2@4103(missing) ", nil},
		{"over two chunks of a device", 4096, 8192, jumps, "0+4096: 1@4096 4096+4096: 1@12288 ", nil},
		{"no length", 0, 4096, stuck, "", ondisk.ErrCorrupt},
	} {
		got, pieces := "", []piece(nil)
		pieces, err := locate(c.logical, c.n, c.copies)
		for _, p := range pieces {
			got += fmt.Sprintf("%d+%d: %s ", p.off, p.length, p.places())
		}
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: got %q, error %v; want %q, %v", c.name, got, err, c.want, c.err)
		}
	}
	if pieces, err := locate(0, 1<<62, endless); !errors.Is(err, ondisk.ErrCorrupt) || len(pieces) != maxPieces {
		t.Errorf("without end: %d pieces, error %v", len(pieces), err)
	}
}
