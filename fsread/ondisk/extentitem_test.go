package ondisk_test

import (
	"slices"
	"testing"

	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/ondisk/ondisktest"
)

const extentAt = 22 << 20

func extentKey(typ uint8) ondisk.Key {
	return ondisk.Key{ObjectID: extentAt, Type: typ, Offset: 16384}
}

// inlineRefs decodes all inline references of an item.
func inlineRefs(k ondisk.Key, item []byte) (refs []ondisk.ExtentRef, err error) {
	x, err := ondisk.DecodeExtentItem(k, item)
	for rest := x.Inline(); err == nil && len(rest) > 0; {
		var r ondisk.ExtentRef
		if r, rest, err = ondisk.NextExtentRef(rest); err == nil {
			refs = append(refs, r)
		}
	}
	return refs, err
}

func TestExtentItem(t *testing.T) {
	data := []ondisk.ExtentRef{
		{Type: ondisk.TypeExtentOwnerRef, Root: 256},
		{Type: ondisk.TypeExtentDataRef, Root: 5, Inode: 257, Offset: 1 << 40, Count: 2},
		{Type: ondisk.TypeSharedDataRef, Parent: 30 << 20, Count: 7},
	}
	block := []ondisk.ExtentRef{{Type: ondisk.TypeTreeBlockRef, Root: 256, Count: 1}, {Type: ondisk.TypeSharedBlockRef, Parent: 31 << 20, Count: 1}}
	for _, c := range []struct {
		name string
		key  ondisk.Key
		kind uint64
		refs []ondisk.ExtentRef
	}{
		{"data", extentKey(ondisk.TypeExtentItem), ondisktest.ExtentData, data},
		{"skinny tree block", extentKey(ondisk.TypeMetadataItem), ondisktest.ExtentTreeBlock, block},
		{"tree block", extentKey(ondisk.TypeExtentItem), ondisktest.ExtentTreeBlock, block},
		{"all references have keys", extentKey(ondisk.TypeExtentItem), ondisktest.ExtentData, nil},
	} {
		item := ondisktest.ExtentItem(c.key, 9, c.kind, c.refs...)
		x, err := ondisk.DecodeExtentItem(c.key, item)
		if err != nil || x.Refs != 9 {
			t.Errorf("%s: got %+v, %v", c.name, x, err)
		}
		if got, err := inlineRefs(c.key, item); err != nil || !slices.Equal(got, c.refs) {
			t.Errorf("%s: got %+v, %v, want %+v", c.name, got, err, c.refs)
		}
		for _, r := range c.refs {
			k, payload := ondisktest.ExtentRef(extentAt, r)
			if got, err := ondisk.DecodeExtentRef(k, payload); err != nil || got != r || k.IsExtentRef() != (r.Count > 0) {
				t.Errorf("%s, by key %s: got %+v, %v, want %+v", c.name, k, got, err, r)
			}
		}
	}
}

func TestExtentItemRefused(t *testing.T) {
	ref := ondisk.ExtentRef{Type: ondisk.TypeExtentDataRef, Root: 5, Inode: 257, Count: 1}
	plain := extentKey(ondisk.TypeExtentItem)
	for _, c := range []struct {
		name string
		key  ondisk.Key
		item func() []byte
		part string
	}{
		{"short", plain, func() []byte { return make([]byte, 23) }, "23 bytes"},
		{"of Linux 2.6.30", plain, func() []byte { return make([]byte, 4) }, "4 bytes"},
		{"no references", plain, func() []byte { return ondisktest.ExtentItem(plain, 0, ondisktest.ExtentData, ref) }, "no references"},
		{"data and tree block", plain, func() []byte { return ondisktest.ExtentItem(plain, 1, 3) }, "flags 0x3"},
		{"neither", plain, func() []byte { return ondisktest.ExtentItem(plain, 1, 0) }, "flags 0x0"},
		{"skinny data", extentKey(ondisk.TypeMetadataItem), func() []byte { return ondisktest.ExtentItem(plain, 1, ondisktest.ExtentData) }, "METADATA_ITEM"},
		{"tree block without its key", plain, func() []byte { return ondisktest.ExtentItem(plain, 1, ondisktest.ExtentTreeBlock)[:41] }, "41 bytes of a tree block"},
		{"unknown reference", plain, func() []byte {
			b := ondisktest.ExtentItem(plain, 1, ondisktest.ExtentData, ref)
			b[24] = 190
			return b
		}, "type 190"},
		{"cut reference", plain, func() []byte { b := ondisktest.ExtentItem(plain, 1, ondisktest.ExtentData, ref); return b[:len(b)-1] }, "28 bytes left"},
		{"a byte too many", plain, func() []byte {
			return append(ondisktest.ExtentItem(plain, 1, ondisktest.ExtentData, ref), ondisk.TypeTreeBlockRef)
		}, "1 bytes left"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := inlineRefs(c.key, c.item())
			checkErr(t, err, ondisk.ErrCorrupt, c.part)
		})
	}
	for _, typ := range []uint8{ondisk.TypeExtentDataRef, ondisk.TypeSharedDataRef, ondisk.TypeTreeBlockRef, ondisk.TypeSharedBlockRef} {
		_, err := ondisk.DecodeExtentRef(extentKey(typ), make([]byte, 5))
		checkErr(t, err, ondisk.ErrCorrupt, "5 bytes")
	}
}

// FuzzExtentItem walks the inline references of whatever an item holds.
func FuzzExtentItem(f *testing.F) {
	plain := extentKey(ondisk.TypeExtentItem)
	f.Add(ondisktest.ExtentItem(plain, 2, ondisktest.ExtentData, ondisk.ExtentRef{Type: ondisk.TypeExtentDataRef, Root: 5, Count: 1},
		ondisk.ExtentRef{Type: ondisk.TypeSharedDataRef, Parent: 1 << 20, Count: 1}), ondisk.TypeExtentItem)
	f.Add(ondisktest.ExtentItem(plain, 1, ondisktest.ExtentTreeBlock, ondisk.ExtentRef{Type: ondisk.TypeTreeBlockRef, Root: 5, Count: 1}), ondisk.TypeMetadataItem)
	f.Fuzz(func(t *testing.T, item []byte, typ uint8) {
		k := extentKey(ondisk.TypeExtentItem)
		if typ == ondisk.TypeMetadataItem {
			k.Type = typ
		}
		refs, err := inlineRefs(k, item)
		if err != nil {
			known(t, err)
		}
		if len(refs) > len(item)/9 {
			t.Fatalf("%d references in %d bytes", len(refs), len(item))
		}
		if _, err := ondisk.DecodeExtentRef(extentKey(typ), item); err != nil {
			known(t, err)
		}
	})
}
