// Package logtree finds out what replaying a log tree would change, without writing a byte.
//
// An fsync between two commits writes what it must keep into a log, a tree beside the subvolume's. After a
// crash the kernel replays it when it mounts the filesystem; a reader that does not shows older files than
// any mount. Replay does what the kernel's replay does, in its order, on a btree.Edit over the subvolume's
// tree: first the inodes and the names that directories lost, then the names that directories gained, then
// names and extents inode by inode, at last link counts. Every step sees the ones before it.
//
// What does not fit together is an error, and nothing is changed then: a log is replayed as a whole or not
// at all. Memory is bounded by the limit of btree.Edit, time by the size of the log and of the directories
// and files in it. Not done, since no reader sees it: extended attributes, block counts, orphans.
package logtree
