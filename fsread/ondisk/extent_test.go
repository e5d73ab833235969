package ondisk_test

import (
	"bytes"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/ondisk/ondisktest"
)

func TestFileExtentAccepts(t *testing.T) {
	tests := []struct {
		name string
		at   uint64
		x    ondisk.FileExtent
		edit func(x *ondisk.FileExtent)
	}{
		{"inline", 0, inline, nil},
		{"inline, empty", 0, ondisk.FileExtent{Inline: []byte{}}, nil},
		{"inline, compressed", 0, ondisk.FileExtent{RAMBytes: 3000, Compression: 2, Inline: name("lzo")}, nil},
		{"inline, compressed to the limit", 0, ondisk.FileExtent{RAMBytes: 128 << 10, Compression: 1, Inline: name("z")}, nil},
		{"regular", 4096, regular, nil},
		{"all of it", 0, regular, func(x *ondisk.FileExtent) { x.Offset, x.NumBytes = 0, 64<<10 }},
		{"end of it", 0, regular, func(x *ondisk.FileExtent) { x.Offset = 48 << 10 }},
		{"wrong ram_bytes", 0, regular, func(x *ondisk.FileExtent) { x.RAMBytes = 4097 }},
		{"ram_bytes 0", 0, regular, func(x *ondisk.FileExtent) { x.RAMBytes = 0 }},
		{"larger than 4 GiB", 1 << 40, regular, func(x *ondisk.FileExtent) { x.DiskNumBytes, x.Offset, x.NumBytes = 1<<40, 1<<39, 1<<39 }},
		{"hole", 4096, ondisk.FileExtent{RAMBytes: 1 << 40, Type: 1, NumBytes: 1 << 40}, nil},
		{"compressed hole", 4096, ondisk.FileExtent{RAMBytes: 1 << 40, Type: 1, Compression: 3, NumBytes: 1 << 40}, nil},
		{"prealloc", 0, regular, func(x *ondisk.FileExtent) { x.Type = ondisk.ExtentPrealloc }},
		{"prealloc, asked past its end", 0, regular, func(x *ondisk.FileExtent) { x.Type, x.NumBytes = ondisk.ExtentPrealloc, 1<<20 }},
		{"compressed", 1 << 20, compressed, nil},
		{"compressed to its full size", 0, compressed, func(x *ondisk.FileExtent) { x.DiskNumBytes = 128 << 10 }},
		{"zlib", 0, compressed, func(x *ondisk.FileExtent) { x.Compression = ondisk.CompressZlib }},
		{"lzo", 0, compressed, func(x *ondisk.FileExtent) { x.Compression = ondisk.CompressLZO }},
		{"ends at the last byte of a file", math.MaxUint64 - 16<<10 - sector + 1, regular, nil},
		{"ends at the last logical address", 0, regular, func(x *ondisk.FileExtent) { x.DiskBytenr = math.MaxUint64 - 64<<10 - sector + 1 }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			x := tt.x
			if tt.edit != nil {
				tt.edit(&x)
			}
			got, err := ondisk.DecodeFileExtent(ondisktest.FileExtent(x), tt.at, sector)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(x, got); d != "" {
				t.Errorf("extent differs (-want +got):\n%s", d)
			}
		})
	}
}

func TestFileExtentRefuses(t *testing.T) {
	raw := func(x ondisk.FileExtent, edit func(x *ondisk.FileExtent)) []byte {
		edit(&x)
		return ondisktest.FileExtent(x)
	}
	patch := func(x ondisk.FileExtent, at int, v byte) []byte {
		b := ondisktest.FileExtent(x)
		b[at] = v
		return b
	}
	type X = ondisk.FileExtent
	tests := []struct {
		name string
		at   uint64
		raw  []byte
		part string
	}{
		{"shorter than its header", 0, make([]byte, 20), "20 bytes"},
		{"empty", 0, nil, "0 bytes"},
		{"offset not aligned", 512, ondisktest.FileExtent(regular), "file extent at 512: not aligned"},
		{"type", 0, patch(regular, 20, 3), "type 3"},
		{"compression", 0, patch(regular, 16, 4), "compression 4"},
		{"encryption", 0, patch(regular, 17, 1), "encryption 1"},
		{"encryption of inline", 0, patch(inline, 17, 1), "encryption 1"},
		{"inline not at 0", 4096, ondisktest.FileExtent(inline), "inline, but not at 0"},
		{"inline, ram_bytes more", 0, patch(inline, 8, 6), "ram_bytes 6, 5 bytes inline"},
		{"inline, ram_bytes less", 0, patch(inline, 8, 4), "ram_bytes 4, 5 bytes inline"},
		{"inline, compressed bomb", 0, raw(inline, func(x *X) { x.Compression, x.RAMBytes = 1, 128<<10+1 }), "ram_bytes 131073"},
		{"a byte missing", 0, ondisktest.FileExtent(regular)[:52], "52 bytes, want 53"},
		{"a byte too many", 0, append(ondisktest.FileExtent(regular), 0), "54 bytes, want 53"},
		{"prealloc, a byte too many", 0, append(raw(regular, func(x *X) { x.Type = 2 }), 0), "54 bytes, want 53"},
		{"disk_bytenr not aligned", 0, raw(regular, func(x *X) { x.DiskBytenr += 512 }), "disk_bytenr 1073742336"},
		{"disk_num_bytes not aligned", 0, raw(regular, func(x *X) { x.DiskNumBytes += 512 }), "disk_num_bytes 66048"},
		{"offset not aligned in the extent", 0, raw(regular, func(x *X) { x.Offset += 512 }), "offset 8704"},
		{"num_bytes not aligned", 0, raw(regular, func(x *X) { x.NumBytes += 512 }), "num_bytes 16896"},
		{"prealloc not aligned", 0, raw(regular, func(x *X) { x.Type, x.NumBytes = 2, 1 }), "num_bytes 1: not aligned"},
		{"num_bytes 0", 0, raw(regular, func(x *X) { x.NumBytes = 0 }), "num_bytes 0"},
		{"hole of no bytes", 0, raw(regular, func(x *X) { x.DiskBytenr, x.NumBytes = 0, 0 }), "num_bytes 0"},
		{"end of the file past 2^64", math.MaxUint64 - 16<<10 + 1, ondisktest.FileExtent(regular), "num_bytes 16384 end past 2^64"},
		{"offset + num_bytes past 2^64", 0, raw(regular, func(x *X) { x.Offset = math.MaxUint64 - 16<<10 + 1 }), "offset 18446744073709535232, num_bytes 16384"},
		{"end of the extent past 2^64", 0, raw(regular, func(x *X) { x.DiskBytenr = math.MaxUint64 - 64<<10 + 1 }), "disk_num_bytes 65536 end past 2^64"},
		{"past the end of the extent", 0, raw(regular, func(x *X) { x.Offset = 52 << 10 }), "offset 53248, num_bytes 16384, disk_num_bytes 65536"},
		{"of no extent", 0, raw(regular, func(x *X) { x.DiskNumBytes = 0 }), "disk_num_bytes 0"},
		{"compressed, on the disk too large", 0, raw(compressed, func(x *X) { x.DiskNumBytes = 132 << 10 }), "compressed, disk_num_bytes 135168"},
		{"compressed, on the disk nothing", 0, raw(compressed, func(x *X) { x.DiskNumBytes = 0 }), "compressed, disk_num_bytes 0"},
		{"compressed, ram_bytes too large", 0, raw(compressed, func(x *X) { x.RAMBytes = 132 << 10 }), "compressed, ram_bytes 135168"},
		{"compressed, ram_bytes not aligned", 0, raw(compressed, func(x *X) { x.RAMBytes-- }), "compressed, ram_bytes 131071"},
		{"compressed, past the end", 0, raw(compressed, func(x *X) { x.Offset = 68 << 10 }), "offset 69632, num_bytes 65536, ram_bytes 131072"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ondisk.DecodeFileExtent(tt.raw, tt.at, sector)
			checkErr(t, err, ondisk.ErrCorrupt, tt.part)
			if d := cmp.Diff(ondisk.FileExtent{}, got); d != "" {
				t.Errorf("the refused extent was returned:\n%s", d)
			}
		})
	}
}

// TestFileExtentSectorSize: what is aligned depends on the filesystem, not on this machine's pages.
func TestFileExtentSectorSize(t *testing.T) {
	for size := uint32(4096); size <= 64<<10; size *= 2 {
		s := uint64(size)
		x := ondisk.FileExtent{Type: 1, DiskBytenr: ondisk.Logical(4 * s), DiskNumBytes: 4 * s, Offset: s, NumBytes: 2 * s}
		_, err := ondisk.DecodeFileExtent(ondisktest.FileExtent(x), 3*s, size)
		checkErr(t, err, nil, "")
		_, err = ondisk.DecodeFileExtent(ondisktest.FileExtent(x), 3*s, 2*size)
		checkErr(t, err, ondisk.ErrCorrupt, "not aligned")
	}
}

func TestSpan(t *testing.T) {
	tests := []struct {
		name string
		x    ondisk.FileExtent
		want uint64
	}{
		{"regular", regular, 16 << 10},
		{"inline", inline, 4096},
		{"inline of a whole sector", ondisk.FileExtent{RAMBytes: 4096}, 4096},
		{"inline of more", ondisk.FileExtent{RAMBytes: 4097, Compression: 1}, 8192},
		{"inline, empty", ondisk.FileExtent{}, 0},
	}
	for _, tt := range tests {
		if got := tt.x.Span(sector); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestInlineAliasesTheItem(t *testing.T) {
	raw := append(ondisktest.FileExtent(inline), "after"...)
	x, err := ondisk.DecodeFileExtent(raw[:26], 0, sector)
	if err != nil {
		t.Fatal(err)
	}
	_ = append(x.Inline, '!')
	raw[21] = 'H'
	if got, want := string(x.Inline), "Hello"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if !bytes.HasSuffix(raw, name("after")) {
		t.Error("an append to the inline bytes reached what follows")
	}
}
