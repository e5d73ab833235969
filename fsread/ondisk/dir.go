package ondisk

import (
	"hash/crc32"
	"slices"
)

const (
	dirEntryHeaderSize = 30
	maxNameLen         = 255
	fileTypeEncrypted  = 0x80 // BTRFS_FT_ENCRYPTED
)

// Values of DirEntry.Type (BTRFS_FT_*).
const (
	FileTypeUnknown  uint8 = 0
	FileTypeRegular  uint8 = 1
	FileTypeDir      uint8 = 2
	FileTypeCharDev  uint8 = 3
	FileTypeBlockDev uint8 = 4
	FileTypeFIFO     uint8 = 5
	FileTypeSocket   uint8 = 6
	FileTypeSymlink  uint8 = 7
	FileTypeXattr    uint8 = 8
)

// DirEntry is struct btrfs_dir_item, of DIR_ITEM, DIR_INDEX and XATTR_ITEM items.
type DirEntry struct {
	Location Key // (inode, INODE_ITEM, 0), or (subvolume, ROOT_ITEM, whatever)
	TransID  uint64
	Type     uint8  // FileType*
	Name     []byte // 1 to 255 bytes, unfiltered; aliases the item
	Data     []byte // of an xattr; aliases the item
}

// NextDirEntry decodes the first of the entries packed in an item; rest holds those after it, and is empty
// after the last. The error is ErrCorrupt, or ErrUnsupported for a name that fscrypt has encrypted: entry
// and rest are valid then, so that the caller may leave out that entry and go on.
func NextDirEntry(b []byte) (e DirEntry, rest []byte, err error) {
	e, rest, encrypted, err := cutDirEntry(b)
	if err == nil && encrypted {
		err = &UnsupportedError{Feature: "name encrypted by fscrypt"}
	}
	return e, rest, err
}

// struct btrfs_dir_item, 30 bytes: location [17] @0, transid u64 @17, data_len u16 @25, name_len u16 @27,
// type u8 @29, then the name, then the data.
func cutDirEntry(b []byte) (e DirEntry, rest []byte, encrypted bool, err error) {
	if len(b) < dirEntryHeaderSize {
		return DirEntry{}, nil, false, corrupt("directory entry", "%d bytes left", len(b))
	}
	dataLen, nameLen := int(le.Uint16(b[25:])), int(le.Uint16(b[27:]))
	e.Type = b[29] &^ fileTypeEncrypted
	switch {
	case nameLen < 1 || nameLen > maxNameLen:
		return DirEntry{}, nil, false, corrupt("directory entry", "name_len %d", nameLen)
	case dirEntryHeaderSize+nameLen+dataLen > len(b):
		return DirEntry{}, nil, false, corrupt("directory entry",
			"name_len %d, data_len %d, %d bytes left", nameLen, dataLen, len(b))
	case e.Type > FileTypeXattr:
		return DirEntry{}, nil, false, corrupt("directory entry", "type %d", e.Type)
	case dataLen != 0 && e.Type != FileTypeXattr:
		return DirEntry{}, nil, false, corrupt("directory entry", "type %d with data_len %d", e.Type, dataLen)
	}
	e.Location = decodeKey(b)
	e.TransID = le.Uint64(b[17:])
	body := b[dirEntryHeaderSize:]
	e.Name = slices.Clip(body[:nameLen])
	e.Data = slices.Clip(body[nameLen : nameLen+dataLen])
	return e, body[nameLen+dataLen:], b[29]&fileTypeEncrypted != 0, nil
}

// NameHash returns the offset of the DIR_ITEM under which a name is found (btrfs_name_hash): the register
// of crc32c, started at 0xFFFFFFFE and not inverted at the end.
func NameHash(name []byte) uint64 {
	return uint64(^crc32.Update(^uint32(0xFFFFFFFE), crc32.MakeTable(crc32.Castagnoli), name))
}

// checkDirItem passes encrypted names: they cost their entry, not the leaf.
func checkDirItem(k Key, item []byte) error {
	if len(item) == 0 {
		return corrupt("directory entry", "empty item")
	}
	for len(item) > 0 {
		e, rest, _, err := cutDirEntry(item)
		if err != nil {
			return err
		}
		if e.Type == FileTypeXattr {
			return corrupt("directory entry", "type %d", e.Type)
		}
		if k.Type == TypeDirItem && NameHash(e.Name) != k.Offset {
			return corrupt("directory entry", "name %q has hash %d", e.Name, NameHash(e.Name))
		}
		item = rest
	}
	return nil
}
