// Package ondisk decodes and validates the structures of a btrfs filesystem: superblock, chunks, tree
// blocks and the items in their leaves.
//
// Bytes come from package volume, which reads them; decoded values go to volume, btree and fsread. The
// package is pure: no I/O, no state, safe for concurrent use. What it is given is hostile: every length
// is checked before a field is read, every value before it serves as size, count, shift or index, and no
// allocation is larger than its input. A tree block passes two gates: [Expect.Check] says that it is the
// block which the parent pointer meant and that its items lie inside it, [CheckLeafItems] that the items
// which a reader uses are well formed. After both, the accessors of [Block] cannot fail. Item types that
// are not known are passed over.
//
// A slice in a decoded value aliases the bytes it was decoded from, except in [Superblock] and [Chunk],
// which own their memory. Not done here: anything that needs a second block (overlapping chunks, paths,
// extents across leaves), encoding (ondisktest does that for tests), the extent, device and free space
// trees.
package ondisk
