// Package btree searches and iterates the trees of a btrfs filesystem, and caches their blocks.
//
// A block is read through the volume, which asks copy after copy until one passes every check
// (ondisk.Expect and ondisk.CheckLeafItems). What is cached was checked; it is kept by address and
// generation, so that a block written later at the same address can never stand in for it. Whoever
// else waits for a block that is being read shares the read.
//
// A Cursor allocates nothing as long as the blocks on its way are cached. Not done: writing, and
// following pointers that are not of the generation that the tree was opened at.
package btree
