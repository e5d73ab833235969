package ondisk

// BlockGroupUsed decodes how many bytes of a block group of length bytes are in use. The error is ErrCorrupt.
//
// struct btrfs_block_group_item, 24 bytes: used u64 @0, chunk_objectid u64 @8, flags u64 @16.
func BlockGroupUsed(item []byte, length uint64) (uint64, error) {
	if len(item) != 24 {
		return 0, corrupt("block group item", "%d bytes", len(item))
	}
	used := le.Uint64(item)
	if used > length {
		return 0, corrupt("block group item", "%d bytes of %d are in use", used, length)
	}
	return used, nil
}
