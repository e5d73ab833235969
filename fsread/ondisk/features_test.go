package ondisk_test

import (
	"slices"
	"testing"

	"github.com/btrexport/btrexport/fsread/ondisk"
)

func TestGate(t *testing.T) {
	readable := uint64(1<<0 | 1<<1 | 1<<2 | 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<7 | 1<<8 | 1<<9 | 1<<10 | 1<<11 | 1<<14 | 1<<16)
	tests := []struct {
		name string
		s    ondisk.Superblock
		want string // empty: passes
	}{
		{"nothing", ondisk.Superblock{}, ""},
		{"all readable features", ondisk.Superblock{Incompat: readable}, ""},
		{"compat and compat_ro are ignored", ondisk.Superblock{Compat: 1<<64 - 1, CompatRO: 1<<64 - 1}, ""},
		{"written, reloc, error, seeding", ondisk.Superblock{Flags: 1 | 2 | 4 | 1<<32}, ""},
		{"METADUMP", ondisk.Superblock{Flags: 1 | 1<<33}, "superblock flag METADUMP is not supported"},
		{"METADUMP_V2", ondisk.Superblock{Flags: 1 << 34}, "superblock flag METADUMP_V2 is not supported"},
		{"CHANGING_FSID", ondisk.Superblock{Flags: 1 << 35}, "superblock flag CHANGING_FSID is not supported"},
		{"CHANGING_FSID_V2", ondisk.Superblock{Flags: 1 << 36}, "superblock flag CHANGING_FSID_V2 is not supported"},
		{"CHANGING_BG_TREE", ondisk.Superblock{Flags: 1 << 38}, "superblock flag CHANGING_BG_TREE is not supported"},
		{"CHANGING_DATA_CSUM", ondisk.Superblock{Flags: 1 << 39}, "superblock flag CHANGING_DATA_CSUM is not supported"},
		{"CHANGING_META_CSUM", ondisk.Superblock{Flags: 1 << 40}, "superblock flag CHANGING_META_CSUM is not supported"},
		{"flag 37", ondisk.Superblock{Flags: 1 << 37}, "superblock flag bit 0x2000000000 is not known"},
		{"flag 63", ondisk.Superblock{Flags: 1 << 63}, "superblock flag bit 0x8000000000000000 is not known"},
		{"zoned", ondisk.Superblock{Incompat: readable | 1<<12}, "incompatible feature zoned is not supported"},
		{"extent tree v2", ondisk.Superblock{Incompat: 1 << 13}, "incompatible feature extent-tree-v2 is not supported"},
		{"bit 15", ondisk.Superblock{Incompat: 1 << 15}, "incompatible feature bit 0x8000 is not known"},
		{"remap tree", ondisk.Superblock{Incompat: 1 << 17}, "incompatible feature remap-tree is not supported"},
		{"bit 18", ondisk.Superblock{Incompat: readable | 1<<18}, "incompatible feature bit 0x40000 is not known"},
		{"bit 63", ondisk.Superblock{Incompat: 1 << 63}, "incompatible feature bit 0x8000000000000000 is not known"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.s.Gate()
			if tt.want == "" {
				checkErr(t, err, nil, "")
				return
			}
			checkErr(t, err, ondisk.ErrUnsupported, tt.want)
		})
	}
}

func TestFeatures(t *testing.T) {
	all := []string{
		"mixed-backref", "default-subvol", "mixed-groups", "compress-lzo", "compress-zstd", "big-metadata",
		"extended-iref", "raid56", "skinny-metadata", "no-holes", "metadata-uuid", "raid1c34", "zoned",
		"extent-tree-v2", "raid-stripe-tree", "unknown-bit-15", "simple-quota", "remap-tree",
		"free-space-tree", "free-space-tree-valid", "verity", "block-group-tree",
	}
	tests := []struct {
		name string
		s    ondisk.Superblock
		want []string
	}{
		{"none", ondisk.Superblock{}, nil},
		{"all", ondisk.Superblock{Incompat: 1<<18 - 1, CompatRO: 1<<4 - 1}, all},
		{"unknown", ondisk.Superblock{Incompat: 1 << 23, CompatRO: 1 << 63}, []string{"unknown-bit-23", "unknown-bit-63"}},
	}
	for _, tt := range tests {
		if got := tt.s.Features(); !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}
