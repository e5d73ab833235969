// Package fsread reads files out of a btrfs filesystem, given its devices.
//
// Open assembles the filesystem at its newest committed generation and pins it. Paths are resolved
// from a Subvolume as after mount; a regular file opened by its Node is a File. A Read of a File
// is planned (extents and checksums, from cached tree blocks), submitted to the volume, which reads,
// verifies and retries, and completed in any order; the blocking File.ReadAt is a wrapper around it.
// Only devices do I/O. FS, Subvolume, Node and File may be used concurrently, until the FS is closed.
//
//	FS ─► Subvolume ─► Node ─► File ─► ReadAt, Submit, Extents, Verify
//	          └─► View: io/fs.FS
//
// What is read has been held against the filesystem's checksums, where it has them (File.Verified). A part that no copy gives is
// a *LostError with its offset and what was wrong with each copy, and never other bytes. What stands on the disk is checked before
// it is used: a crafted image is an error. The package has no global state; what it logs, counts and caches is what Options say.
//
// Not done: writing; following a filesystem that changes.
package fsread
