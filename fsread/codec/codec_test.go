package codec_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"

	"github.com/btrexport/btrexport/fsread/codec"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// kernelExtents were written by Linux 6.18 and taken from the disk, golden ones from the golden images of their
// kind; want is the SHA-256 of the file's bytes and the zeros up to ram. An inline one has no padding.
var kernelExtents = []struct {
	file string
	kind codec.Kind
	ram  int
	want string
}{
	{"golden.zlib", codec.Zlib, 131072, "b70ec442e97e9fa4e06d5e5ce972ca4314672c7b43674b7cf0230f5503d1c938"},
	{"golden.lzo", codec.LZO, 131072, "1435b577f755b698466a3c9049f452186cd1a8e922dac267394d2acd80692a87"},
	{"golden.zstd", codec.Zstd, 131072, "cbcdf0b84683f9f6d73a86386568925d566b377136ebefba45408ebfcbe91e2d"},
	{"mix.zlib", codec.Zlib, 40960, "6ec7255859efa2646390fffc0ee0c983f48ba823986042219d5597add1f633e9"},
	{"mix.lzo", codec.LZO, 40960, "6ec7255859efa2646390fffc0ee0c983f48ba823986042219d5597add1f633e9"},
	{"mix.zstd", codec.Zstd, 40960, "6ec7255859efa2646390fffc0ee0c983f48ba823986042219d5597add1f633e9"},
	{"inline.zlib", codec.Zlib, 1500, "8f93dbaa5edc655ed04317a13d86cbeca7fa151c294556e99c60668e55c38e4f"},
	{"inline.lzo", codec.LZO, 1500, "8f93dbaa5edc655ed04317a13d86cbeca7fa151c294556e99c60668e55c38e4f"},
	{"inline.zstd", codec.Zstd, 1500, "8f93dbaa5edc655ed04317a13d86cbeca7fa151c294556e99c60668e55c38e4f"},
}

func load(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// inflateAt runs d over a destination that is full of other bytes and has more of them behind its length, and
// checks what holds for every input: src and the bytes behind the length stay, an error is ErrCorrupt.
func inflateAt(t testing.TB, d *codec.Decoder, kind codec.Kind, n int, src []byte, sectorSize, from int) ([]byte, error) {
	t.Helper()
	const guard = 64
	room := bytes.Repeat([]byte{0xA5}, n+guard)
	before := bytes.Clone(src)
	err := d.InflateAt(kind, room[:n], src, sectorSize, from)
	if !bytes.Equal(room[n:], bytes.Repeat([]byte{0xA5}, guard)) {
		t.Fatalf("%s: wrote behind the %d bytes of dst: % x", kind, n, room[n:])
	}
	if !bytes.Equal(src, before) {
		t.Fatalf("%s: changed src", kind)
	}
	var e *codec.Error
	if err != nil && (!errors.Is(err, codec.ErrCorrupt) || !errors.As(err, &e) || e.Offset < 0 || e.Offset > len(src)) {
		t.Fatalf("%s: got error %#v, want an *Error inside the %d bytes of src", kind, err, len(src))
	}
	return room[:n], err
}

func mustInflate(t testing.TB, d *codec.Decoder, kind codec.Kind, n int, src []byte, sectorSize int) []byte {
	t.Helper()
	out, err := inflateAt(t, d, kind, n, src, sectorSize, 0)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func zlibOf(t testing.TB, data []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := zlib.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// zstdOf makes one frame, with the size of its content or, streamed, without.
func zstdOf(t testing.TB, data []byte, streamed bool, o ...zstd.EOption) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, append([]zstd.EOption{zstd.WithEncoderConcurrency(1), zstd.WithZeroFrames(true)}, o...)...)
	if err != nil {
		t.Fatal(err)
	}
	if !streamed {
		defer w.Close()
		return w.EncodeAll(data, nil)
	}
	for len(data) > 0 { // a flush in between gives blocks
		n := min(len(data), 40000)
		if _, err := w.Write(data[:n]); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		data = data[n:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestKernelExtents(t *testing.T) {
	d := codec.NewDecoder()
	for _, tt := range kernelExtents {
		src := load(t, tt.file)
		all := mustInflate(t, d, tt.kind, tt.ram, src, 4096)
		sum := sha256.Sum256(all)
		if got := hex.EncodeToString(sum[:]); got != tt.want {
			t.Errorf("%s: got sha256 %s, want %s", tt.file, got, tt.want)
		}
		rng := rand.New(rand.NewPCG(1, 2))
		for range 40 {
			from := rng.IntN(tt.ram + 1)
			n := rng.IntN(tt.ram - from + 1)
			got, err := inflateAt(t, d, tt.kind, n, src, 4096, from)
			if err != nil || !bytes.Equal(got, all[from:from+n]) {
				t.Fatalf("%s, bytes %d+%d: %v, or not those of the whole", tt.file, from, n, err)
			}
		}
	}
}

// encodings are the ways in which tests compress.
var encodings = []struct {
	name       string
	kind       codec.Kind
	sectorSize int
	encode     func(t testing.TB, data []byte) []byte
}{
	{"zlib stored", codec.Zlib, 4096, func(t testing.TB, data []byte) []byte { return zlibOf(t, data, 0) }},
	{"zlib 3", codec.Zlib, 4096, func(t testing.TB, data []byte) []byte { return zlibOf(t, data, 3) }},
	{"zlib 9", codec.Zlib, 4096, func(t testing.TB, data []byte) []byte { return zlibOf(t, data, 9) }},
	{"zlib huffman", codec.Zlib, 4096, func(t testing.TB, data []byte) []byte { return zlibOf(t, data, -2) }},
	{"zstd", codec.Zstd, 4096, func(t testing.TB, data []byte) []byte { return zstdOf(t, data, false, zstd.WithEncoderCRC(false)) }},
	{"zstd single segment", codec.Zstd, 4096, func(t testing.TB, data []byte) []byte {
		return zstdOf(t, data, false, zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true))
	}},
	{"zstd best, content checksum", codec.Zstd, 4096, func(t testing.TB, data []byte) []byte {
		return zstdOf(t, data, false, zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	}},
	{"zstd streamed, window 128 KiB", codec.Zstd, 4096, func(t testing.TB, data []byte) []byte {
		return zstdOf(t, data, true, zstd.WithWindowSize(128<<10))
	}},
	{"zstd streamed, window 8 MiB", codec.Zstd, 4096, func(t testing.TB, data []byte) []byte {
		return zstdOf(t, data, true, zstd.WithWindowSize(8<<20))
	}},
	{"lzo 4K", codec.LZO, 4096, func(_ testing.TB, data []byte) []byte { return lzoLiterals(4096, data) }},
	{"lzo 8K", codec.LZO, 8192, func(_ testing.TB, data []byte) []byte { return lzoLiterals(8192, data) }},
	{"lzo 64K", codec.LZO, 65536, func(_ testing.TB, data []byte) []byte { return lzoLiterals(65536, data) }},
}

// sample is data of which some compresses and some does not.
func sample(n int) []byte {
	rng := rand.New(rand.NewPCG(3, uint64(n)))
	b := make([]byte, 0, n+64)
	for len(b) < n {
		if len(b) > 0 && rng.IntN(4) > 0 {
			back := 1 + rng.IntN(len(b))
			b = append(b, b[len(b)-back:][:min(back, 64)]...)
		} else {
			b = append(b, randomBytes(rng, 30)...)
		}
	}
	return b[:n]
}

// TestLengths holds that output which is shorter than dst is followed by zeros and longer output is cut, with
// and without padding behind the extent, in every encoding.
func TestLengths(t *testing.T) {
	const sector = 4096
	d := codec.NewDecoder()
	for _, e := range encodings {
		t.Run(e.name, func(t *testing.T) {
			for _, size := range []int{1, 2, 3, 4, 20, 238, 239, 4095, 4096, 4097, 65536, 70000, 110000} {
				data := sample(size)
				src := e.encode(t, data)
				for _, n := range []int{size, max(size-1, 1), size / 2, 1, 0, size + 1, size + 1000, codec.MaxExtent} {
					want := append(bytes.Clone(data[:min(n, size)]), make([]byte, max(n-size, 0))...)
					for _, b := range [][]byte{src, append(bytes.Clone(src), make([]byte, -len(src)&(sector-1))...)} {
						if got := mustInflate(t, d, e.kind, n, b, e.sectorSize); !bytes.Equal(got, want) {
							t.Fatalf("%d bytes inflated into %d: wrong bytes", size, n)
						}
					}
					from := n / 3
					got, err := inflateAt(t, d, e.kind, n-from, src, e.sectorSize, from)
					if err != nil || !bytes.Equal(got, want[from:]) {
						t.Fatalf("%d bytes inflated into %d, from %d on: %v, or wrong bytes", size, n, from, err)
					}
				}
			}
		})
	}
}

// TestTruncated cuts kernel-written extents at every byte, long ones at every seventh. Only what does not matter
// may be missing: padding, the adler32, and the last empty blocks of a stream that has filled dst.
func TestTruncated(t *testing.T) {
	d := codec.NewDecoder()
	for _, tt := range kernelExtents {
		src := load(t, tt.file)
		all := mustInflate(t, d, tt.kind, tt.ram, src, 4096)
		padding := len(src) - len(bytes.TrimRight(src, "\x00"))
		step := 1
		if len(src) > 1000 {
			step = 7
		}
		failed := 0
		for n := 0; n < len(src); n += step {
			got, err := inflateAt(t, d, tt.kind, tt.ram, src[:n:n], 4096, 0)
			switch {
			case err != nil:
				failed++
			case n < len(src)-padding-16:
				t.Fatalf("%s cut to %d of %d bytes: no error", tt.file, n, len(src))
			case !bytes.Equal(got, all):
				t.Fatalf("%s cut to %d bytes: no error and other bytes", tt.file, n)
			}
		}
		if failed == 0 {
			t.Errorf("%s: no cut was noticed", tt.file)
		}
	}
}

// TestFlipped changes single bits of kernel-written extents: wrong bytes are possible, since only checksums
// find them, but nothing else happens, and the decoder is as good as new after it.
func TestFlipped(t *testing.T) {
	d := codec.NewDecoder()
	for _, tt := range kernelExtents {
		good := load(t, tt.file)
		rng := rand.New(rand.NewPCG(7, 7))
		for range 150 {
			src := bytes.Clone(good)
			src[rng.IntN(len(src))] ^= 1 << rng.IntN(8)
			_, _ = inflateAt(t, d, tt.kind, tt.ram, src, 4096, rng.IntN(codec.MaxExtent-tt.ram+1))
		}
		sum := sha256.Sum256(mustInflate(t, d, tt.kind, tt.ram, good, 4096))
		if got := hex.EncodeToString(sum[:]); got != tt.want {
			t.Fatalf("%s: wrong bytes after errors", tt.file)
		}
	}
}

// rleFrame is a zstd frame of blocks that repeat one byte, size bytes each.
func rleFrame(header []byte, blocks, size int) []byte {
	b := bytes.Clone(header)
	for i := range blocks {
		h := size<<3 | 1<<1
		if i == blocks-1 {
			h |= 1
		}
		b = append(b, byte(h), byte(h>>8), byte(h>>16), 'x')
	}
	return b
}

func TestCorrupt(t *testing.T) {
	magic := []byte{0x28, 0xB5, 0x2F, 0xFD}
	with := func(b []byte, more ...byte) []byte { return append(bytes.Clone(b), more...) }
	window := func(desc byte) []byte { return with(magic, 0, desc) } // no content size
	deflated := zlibOf(t, sample(5000), 6)
	tests := []struct {
		name string
		kind codec.Kind
		src  []byte
		want string // in the message
	}{
		{"no compression", 0, nil, "corrupt unknown-0 extent at byte 0: no such compression"},
		{"unknown compression", 4, make([]byte, 4096), "corrupt unknown-4 extent at byte 0: no such compression"},
		{"too long on the disk", codec.Zstd, make([]byte, codec.MaxExtent+1), "131073 bytes on the disk"},

		{"zlib, empty", codec.Zlib, nil, "header cut off"},
		{"zlib, zeros", codec.Zlib, make([]byte, 4096), "no zlib header"},
		{"zlib, check bits", codec.Zlib, with([]byte{0x78, 0x02}, deflated[2:]...), "no zlib header"},
		{"zlib, window of 64 KiB", codec.Zlib, with([]byte{0x88, 0x1C}, deflated[2:]...), "no zlib header"},
		{"zlib, preset dictionary", codec.Zlib, []byte{0x78, 0xBB, 0, 0, 0, 1}, "at byte 1: preset dictionary"},
		{"zlib, header alone", codec.Zlib, deflated[:2], "at byte 2: stream cut off"},
		{"zlib, reserved block type", codec.Zlib, []byte{0x78, 0x9C, 0x07}, "at byte 3: reserved block type"},
		{"zlib, stored length and its complement", codec.Zlib, []byte{0x78, 0x9C, 1, 5, 0, 5, 0, 1, 2, 3, 4, 5}, "at byte 3: stored length and its complement differ"},

		{"zstd, empty", codec.Zstd, nil, "frame header cut off"},
		{"zstd, zeros", codec.Zstd, make([]byte, 4096), "no zstd frame"},
		{"zstd, skippable frame", codec.Zstd, with([]byte{0x50, 0x2A, 0x4D, 0x18, 0, 0, 0, 0}, zstdOf(t, sample(10), false)...), "no zstd frame"},
		{"zstd, header cut", codec.Zstd, with(magic, 0xC0, 1, 2, 3), "frame header cut off"},
		{"zstd, no block", codec.Zstd, window(0x38), "at byte 6: block header cut off"},
		{"zstd, block longer than the extent", codec.Zstd, with(window(0x38), 0x29, 0, 0, 1, 2, 3, 4), "at byte 6: block of 5 bytes, 4 are left"},
		{"zstd, reserved block type", codec.Zstd, with(window(0x38), 0x07, 0, 0), "at byte 6: reserved block type"},
		{"zstd, no content checksum", codec.Zstd, with(magic, 4, 0x38, 0x09, 0, 0, 'x', 1, 2, 3), "at byte 10: content checksum cut off"},
		{"zstd, wrong content checksum", codec.Zstd, with(magic, 4, 0x38, 0x09, 0, 0, 'x', 1, 2, 3, 4), "extent at byte 0: "},
		{"zstd, dictionary", codec.Zstd, with(magic, 1, 0x38, 7, 0x09, 0, 0, 'x'), "dictionary"},
		{"zstd, reserved bit", codec.Zstd, with(magic, 8, 0x38, 0x09, 0, 0, 'x'), "extent at byte 0: "},
		{"zstd, window of 1 GiB", codec.Zstd, with(window(20<<3), 0x09, 0, 0, 'x'), "window size exceeded"},
		{"zstd, content of 4 GiB", codec.Zstd, rleFrame(with(magic, 0xA0, 255, 255, 255, 255), 10, 1<<17), "more than 131072"},
		{"zstd, content of 2^64-2", codec.Zstd, rleFrame(with(magic, 0xE0, 254, 255, 255, 255, 255, 255, 255, 255), 10, 1<<17), "extent at byte 0: "},
		{"zstd, one byte over", codec.Zstd, rleFrame(window(0x38), 3, 43691), "more than 131072"},
		{"zstd, bomb of 4 GiB", codec.Zstd, rleFrame(window(0x68), 32000, 1<<17), "more than 131072"},
		{"zstd, content size lies", codec.Zstd, rleFrame(with(magic, 0x20, 9), 1, 10), "extent at byte 0: "},

		{"lzo, empty", codec.LZO, nil, "total length cut off"},
		{"lzo, three bytes", codec.LZO, []byte{3, 0, 0}, "total length cut off"},
		{"lzo, zeros", codec.LZO, make([]byte, 4096), "total length 0, no segment"},
		{"lzo, total alone", codec.LZO, []byte{4, 0, 0, 0}, "no segment"},
		{"lzo, total above the extent", codec.LZO, []byte{13, 0, 0, 0, 4, 0, 0, 0, 18, 'a', 17, 0}, "total length 13 of 12 bytes"},
		{"lzo, total of 4 GiB", codec.LZO, []byte{255, 255, 255, 255, 4, 0, 0, 0, 18, 'a', 17, 0}, "total length 4294967295"},
		{"lzo, total ends a sector early", codec.LZO, with(lzoLiterals(4096, sample(9)), make([]byte, 4096)...), "extent has 8192 bytes"},
		{"lzo, total ends just a sector early", codec.LZO, with(lzoChain(4096, []byte{18, 'a', 17, 0, 0}), make([]byte, 4096)...), "total length 13, extent has 4109 bytes"},
		{"lzo, segment longer than the rest", codec.LZO, []byte{14, 0, 0, 0, 7, 0, 0, 0, 18, 'a', 17, 0, 0, 0}, "at byte 4: segment of 7 bytes, 6 are left"},
		{"lzo, segment of 4 GiB", codec.LZO, []byte{12, 0, 0, 0, 255, 255, 255, 255, 18, 'a', 17, 0}, "at byte 4: segment of 4294967295 bytes"},
		{"lzo, empty segment", codec.LZO, []byte{10, 0, 0, 0, 0, 0, 0, 0, 0, 0}, "at byte 8: no end marker"},
		{"lzo, segment length cut", codec.LZO, lzoCut(), "segment length cut off"},
		{"lzo, short segment before the last", codec.LZO, lzoExtent(4096, []byte{18, 'a', 17, 0, 0}, []byte{18, 'a', 17, 0, 0}), "at byte 8: segment inflates to 1 of 4096 bytes"},
	}
	d := codec.NewDecoder()
	for _, tt := range tests {
		if _, err := inflateAt(t, d, tt.kind, codec.MaxExtent, tt.src, 4096, 0); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

// lzoCut is a chain that ends within the length of its second segment.
func lzoCut() []byte {
	b := lzoLiterals(4096, sample(8192))
	n := 4 + 4 + int(binary.LittleEndian.Uint32(b[4:])) + 2
	binary.LittleEndian.PutUint32(b, uint32(n))
	return b[:n]
}

// TestOutOfRange refuses what the caller must not ask for, instead of a panic.
func TestOutOfRange(t *testing.T) {
	d := codec.NewDecoder()
	src := lzoLiterals(4096, sample(10))
	for _, tt := range []struct{ n, from, sectorSize int }{
		{codec.MaxExtent + 1, 0, 4096}, {1, codec.MaxExtent, 4096}, {0, codec.MaxExtent + 1, 4096}, {1, -1, 4096},
		{10, 0, 0}, {10, 0, -4096}, {10, 0, 3000}, {10, 0, 128 << 10}, {10, 0, 256},
	} {
		if _, err := inflateAt(t, d, codec.LZO, tt.n, src, tt.sectorSize, tt.from); err == nil {
			t.Errorf("%+v: no error", tt)
		}
	}
	if got, err := inflateAt(t, d, codec.LZO, 0, src, 4096, codec.MaxExtent); err != nil || len(got) != 0 {
		t.Errorf("nothing at the very end: got %x, %v", got, err)
	}
}

// TestZlibBomb stops at the end of dst: 20 MiB of zeros are there to be inflated.
func TestZlibBomb(t *testing.T) {
	src := zlibOf(t, make([]byte, 20<<20), 9)
	got := mustInflate(t, codec.NewDecoder(), codec.Zlib, codec.MaxExtent, src, 4096)
	if !bytes.Equal(got, make([]byte, codec.MaxExtent)) {
		t.Error("got other bytes than zeros")
	}
}

// TestWrongAdler reads what the kernel reads.
func TestWrongAdler(t *testing.T) {
	data := sample(3000)
	src := zlibOf(t, data, 6)
	src[len(src)-1] ^= 1
	if got := mustInflate(t, codec.NewDecoder(), codec.Zlib, 4096, src, 4096); !bytes.Equal(got[:3000], data) {
		t.Error("got other bytes")
	}
}

func TestKindString(t *testing.T) {
	for kind, want := range map[codec.Kind]string{codec.Zlib: "zlib", codec.LZO: "lzo", codec.Zstd: "zstd", 0: "unknown-0", 200: "unknown-200"} {
		if got := kind.String(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// TestNoAllocations takes the extents in turn, so that no state fits from the call before.
func TestNoAllocations(t *testing.T) {
	d := codec.NewDecoder()
	dst := make([]byte, codec.MaxExtent)
	for _, kind := range []codec.Kind{codec.Zlib, codec.LZO, codec.Zstd} {
		if kind == codec.Zstd && fsreadtest.Race {
			continue // its tables come from a sync.Pool, which then drops at random
		}
		var srcs [][]byte
		for _, tt := range kernelExtents {
			if tt.kind == kind {
				srcs = append(srcs, load(t, tt.file))
			}
		}
		for _, from := range []int{0, 700} {
			if n := testing.AllocsPerRun(20, func() {
				for _, src := range srcs {
					if err := d.InflateAt(kind, dst[:40960-from], src, 4096, from); err != nil {
						t.Fatal(err)
					}
				}
			}); n != 0 {
				t.Errorf("%s from %d: got %v allocations per run, want 0", kind, from, n)
			}
		}
	}
}

// TestBombMemory bounds what hostile frames make the decoder allocate.
func TestBombMemory(t *testing.T) {
	for name, src := range map[string][]byte{
		"blocks":        rleFrame([]byte{0x28, 0xB5, 0x2F, 0xFD, 0, 0x68}, 32000, 1<<17),
		"content size":  rleFrame([]byte{0x28, 0xB5, 0x2F, 0xFD, 0xA0, 255, 255, 255, 127}, 32000, 1<<17),
		"window 8 MiB":  rleFrame([]byte{0x28, 0xB5, 0x2F, 0xFD, 0, 13 << 3}, 1, 1000),
		"window 1 GiB ": rleFrame([]byte{0x28, 0xB5, 0x2F, 0xFD, 0, 20 << 3}, 1, 1000),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		d := codec.NewDecoder()
		dst := make([]byte, codec.MaxExtent)
		for range 10 {
			_ = d.Inflate(codec.Zstd, dst, src, 4096)
		}
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > 8<<20 {
			t.Errorf("%s: %d bytes allocated for a decoder and ten extents", name, got)
		}
	}
}

func BenchmarkInflate(b *testing.B) {
	for _, tt := range kernelExtents {
		b.Run(fmt.Sprintf("%s/%d", tt.file, tt.ram), func(b *testing.B) {
			src := load(b, tt.file)
			d := codec.NewDecoder()
			dst := make([]byte, tt.ram)
			if err := d.Inflate(tt.kind, dst, src, 4096); err != nil { // makes the state
				b.Fatal(err)
			}
			b.SetBytes(int64(tt.ram))
			b.ReportAllocs()
			for b.Loop() {
				if err := d.Inflate(tt.kind, dst, src, 4096); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkInflateAt reads one sector from the middle of an extent.
func BenchmarkInflateAt(b *testing.B) {
	for _, tt := range kernelExtents[3:6] {
		b.Run(tt.file, func(b *testing.B) {
			src := load(b, tt.file)
			d := codec.NewDecoder()
			dst := make([]byte, 4096)
			if err := d.InflateAt(tt.kind, dst, src, 4096, 5*4096); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := d.InflateAt(tt.kind, dst, src, 4096, 5*4096); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestInflateStrict refuses every zlib extent whose adler32 is wrong or cut off, which Inflate takes, and reads all
// that is whole, whatever part of the output is wanted.
func TestInflateStrict(t *testing.T) {
	d := codec.NewDecoder()
	for _, size := range []int{1, 4096, 70000, codec.MaxExtent} {
		data := sample(size)
		src := zlibOf(t, data, 6)
		padded := append(bytes.Clone(src), make([]byte, -len(src)&4095)...)
		for _, n := range []int{size, size/2 + 1, min(size+100, codec.MaxExtent)} {
			dst := make([]byte, n)
			if err := d.InflateStrict(codec.Zlib, dst, padded, 4096); err != nil || !bytes.Equal(dst[:min(n, size)], data[:min(n, size)]) {
				t.Fatalf("%d bytes into %d: %v, or wrong bytes", size, n, err)
			}
			for i := 1; i <= 4; i++ {
				bad := bytes.Clone(padded)
				bad[len(src)-i] ^= 0x10
				if err := d.InflateStrict(codec.Zlib, dst, bad, 4096); !errors.Is(err, codec.ErrCorrupt) {
					t.Errorf("adler32 wrong in byte %d: %v, want ErrCorrupt", 4-i, err)
				}
				if err := d.Inflate(codec.Zlib, dst, bad, 4096); err != nil {
					t.Errorf("adler32 wrong in byte %d: Inflate says %v", 4-i, err)
				}
				if err := d.InflateStrict(codec.Zlib, dst, src[:len(src)-i], 4096); !errors.Is(err, codec.ErrCorrupt) {
					t.Errorf("%d bytes of the adler32 cut off: %v, want ErrCorrupt", i, err)
				}
			}
		}
	}
	for _, e := range kernelExtents {
		dst := make([]byte, e.ram)
		if err := d.InflateStrict(e.kind, dst, load(t, e.file), 4096); err != nil {
			t.Errorf("%s: %v", e.file, err)
		}
	}
}
