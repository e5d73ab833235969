package ondisktest

import (
	"github.com/btrexport/btrexport/fsread/csum"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// DevItem encodes the payload of a DEV_ITEM.
func DevItem(d ondisk.DevItem) []byte {
	b := make([]byte, 98)
	le.PutUint64(b, uint64(d.DevID))
	le.PutUint64(b[8:], d.TotalBytes)
	le.PutUint64(b[16:], d.BytesUsed)
	le.PutUint32(b[32:], d.SectorSize)
	le.PutUint64(b[36:], d.Type)
	le.PutUint64(b[44:], d.Generation)
	copy(b[66:], d.UUID[:])
	copy(b[82:], d.FSID[:])
	return b
}

// Chunk encodes the payload of a CHUNK_ITEM.
func Chunk(c ondisk.Chunk) []byte {
	b := make([]byte, 48+32*len(c.Stripes))
	le.PutUint64(b, c.Length)
	le.PutUint64(b[8:], c.Owner)
	le.PutUint64(b[16:], c.StripeLen)
	le.PutUint64(b[24:], c.Type)
	le.PutUint32(b[32:], ondisk.StripeLen) // io_align
	le.PutUint32(b[36:], ondisk.StripeLen) // io_width
	le.PutUint32(b[40:], c.SectorSize)
	le.PutUint16(b[44:], uint16(len(c.Stripes)))
	le.PutUint16(b[46:], c.SubStripes)
	for i, s := range c.Stripes {
		at := b[48+32*i:]
		le.PutUint64(at, uint64(s.Dev))
		le.PutUint64(at[8:], uint64(s.Physical))
		copy(at[16:], s.DevUUID[:])
	}
	return b
}

// InodeItem encodes the payload of an INODE_ITEM.
func InodeItem(n ondisk.InodeItem) []byte {
	b := make([]byte, 160)
	le.PutUint64(b, n.Generation)
	le.PutUint64(b[8:], n.TransID)
	le.PutUint64(b[16:], n.Size)
	le.PutUint64(b[24:], n.NBytes)
	le.PutUint32(b[40:], n.NLink)
	le.PutUint32(b[44:], n.UID)
	le.PutUint32(b[48:], n.GID)
	le.PutUint32(b[52:], n.Mode)
	le.PutUint64(b[56:], n.RDev)
	le.PutUint64(b[64:], n.Flags)
	le.PutUint64(b[72:], n.Sequence)
	putTimespec(b[112:], n.ATime)
	putTimespec(b[124:], n.CTime)
	putTimespec(b[136:], n.MTime)
	putTimespec(b[148:], n.OTime)
	return b
}

func putTimespec(b []byte, t ondisk.Timespec) {
	le.PutUint64(b, uint64(t.Sec))
	le.PutUint32(b[8:], t.Nsec)
}

// RootItem encodes the payload of a ROOT_ITEM, 439 bytes with a matching generation_v2. Its first 239
// bytes are the legacy item.
func RootItem(r ondisk.RootItem) []byte {
	b := make([]byte, 439)
	le.PutUint64(b[160:], r.Generation)
	le.PutUint64(b[168:], r.DirID)
	le.PutUint64(b[176:], uint64(r.Bytenr))
	le.PutUint64(b[192:], r.BytesUsed)
	le.PutUint64(b[200:], r.LastSnapshot)
	le.PutUint64(b[208:], r.Flags)
	le.PutUint32(b[216:], r.Refs)
	putKey(b[220:], r.DropProgress)
	b[237], b[238] = r.DropLevel, r.Level
	le.PutUint64(b[239:], r.Generation)
	copy(b[247:], r.UUID[:])
	copy(b[263:], r.ParentUUID[:])
	copy(b[279:], r.ReceivedUUID[:])
	le.PutUint64(b[295:], r.CTransID)
	le.PutUint64(b[303:], r.OTransID)
	le.PutUint64(b[311:], r.STransID)
	le.PutUint64(b[319:], r.RTransID)
	putTimespec(b[327:], r.CTime)
	putTimespec(b[339:], r.OTime)
	putTimespec(b[351:], r.STime)
	putTimespec(b[363:], r.RTime)
	return b
}

// RootRef encodes the payload of a ROOT_REF or ROOT_BACKREF.
func RootRef(r ondisk.RootRef) []byte {
	b := make([]byte, 18, 18+len(r.Name))
	le.PutUint64(b, r.DirID)
	le.PutUint64(b[8:], r.Sequence)
	le.PutUint16(b[16:], uint16(len(r.Name)))
	return append(b, r.Name...)
}

// DirEntries encodes the payload of a DIR_ITEM or DIR_INDEX.
func DirEntries(entries ...ondisk.DirEntry) []byte {
	var b []byte
	for _, e := range entries {
		h := make([]byte, 30)
		putKey(h, e.Location)
		le.PutUint64(h[17:], e.TransID)
		le.PutUint16(h[25:], uint16(len(e.Data)))
		le.PutUint16(h[27:], uint16(len(e.Name)))
		h[29] = e.Type
		b = append(append(append(b, h...), e.Name...), e.Data...)
	}
	return b
}

// InodeRefs encodes the payload of an INODE_REF.
func InodeRefs(refs ...ondisk.InodeRef) []byte {
	var b []byte
	for _, r := range refs {
		b = le.AppendUint64(b, r.Index)
		b = le.AppendUint16(b, uint16(len(r.Name)))
		b = append(b, r.Name...)
	}
	return b
}

// InodeExtrefs encodes the payload of an INODE_EXTREF.
func InodeExtrefs(refs ...ondisk.InodeExtref) []byte {
	var b []byte
	for _, r := range refs {
		b = le.AppendUint64(b, r.Parent)
		b = le.AppendUint64(b, r.Index)
		b = le.AppendUint16(b, uint16(len(r.Name)))
		b = append(b, r.Name...)
	}
	return b
}

// FileExtent encodes the payload of an EXTENT_DATA: the inline bytes, or the four fields of the others.
func FileExtent(x ondisk.FileExtent) []byte {
	b := make([]byte, 21, 53)
	le.PutUint64(b, x.Generation)
	le.PutUint64(b[8:], x.RAMBytes)
	b[16], b[20] = x.Compression, x.Type
	if x.Type == ondisk.ExtentInline {
		return append(b, x.Inline...)
	}
	for _, v := range []uint64{uint64(x.DiskBytenr), x.DiskNumBytes, x.Offset, x.NumBytes} {
		b = le.AppendUint64(b, v)
	}
	return b
}

// Csums encodes the payload of an EXTENT_CSUM: one sum for each sectorSize bytes of data.
func Csums(data []byte, sectorSize int, t csum.Type) []byte {
	var b []byte
	var sum [csum.MaxSize]byte
	for ; len(data) > 0; data = data[sectorSize:] {
		t.Sum(&sum, data[:sectorSize])
		b = append(b, sum[:t.Size()]...)
	}
	return b
}

// StripeExtent encodes the payload of a RAID_STRIPE; its key holds the range.
func StripeExtent(s ondisk.StripeExtent) []byte {
	var b []byte
	for _, d := range s.Strides[:s.Count] {
		b = le.AppendUint64(b, uint64(d.Dev))
		b = le.AppendUint64(b, uint64(d.Physical))
	}
	return b
}

// The kinds of an extent in its flags (BTRFS_EXTENT_FLAG_*).
const (
	ExtentData      uint64 = 1
	ExtentTreeBlock uint64 = 2
)

// ExtentItem encodes the payload of an EXTENT_ITEM or METADATA_ITEM with inline references.
func ExtentItem(k ondisk.Key, refs, flags uint64, inline ...ondisk.ExtentRef) []byte {
	b := le.AppendUint64(nil, refs)
	b = le.AppendUint64(b, 7)
	b = le.AppendUint64(b, flags)
	if flags == ExtentTreeBlock && k.Type == ondisk.TypeExtentItem {
		b = append(b, make([]byte, 18)...)
	}
	for _, r := range inline {
		k, payload := ExtentRef(0, r)
		b = append(b, r.Type)
		if r.Type != ondisk.TypeExtentDataRef {
			b = le.AppendUint64(b, k.Offset)
		}
		b = append(b, payload...)
	}
	return b
}

// ExtentRef gives the key of a back reference of the extent at an address, and its payload. Data references have
// their inode for a hash.
func ExtentRef(at ondisk.Logical, r ondisk.ExtentRef) (ondisk.Key, []byte) {
	k := ondisk.Key{ObjectID: uint64(at), Type: r.Type}
	var b []byte
	switch r.Type {
	case ondisk.TypeExtentDataRef:
		k.Offset = r.Inode
		b = le.AppendUint64(b, r.Root)
		b = le.AppendUint64(b, r.Inode)
		b = le.AppendUint64(b, r.Offset)
		b = le.AppendUint32(b, uint32(r.Count))
	case ondisk.TypeSharedDataRef:
		k.Offset = uint64(r.Parent)
		b = le.AppendUint32(b, uint32(r.Count))
	case ondisk.TypeSharedBlockRef:
		k.Offset = uint64(r.Parent)
	default:
		k.Offset = r.Root
	}
	return k, b
}

// DevErrors encodes the payload of a PERSISTENT_ITEM of a device's errors.
func DevErrors(e ondisk.DevErrors) []byte {
	b := make([]byte, 8*len(e))
	for i, n := range e {
		le.PutUint64(b[8*i:], n)
	}
	return b
}
