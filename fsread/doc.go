// Package fsread reads files out of a btrfs filesystem, given its devices.
//
// Open assembles the filesystem at its newest committed generation and pins it. Paths are resolved
// from a Subvolume as after mount; a regular file opened by its Node is a File. A Read of a File
// is planned (extents and checksums, from cached tree blocks), submitted to the volume, which reads,
// verifies and retries, and completed in any order; the blocking File.ReadAt is a wrapper around it.
// Only devices do I/O. FS, Subvolume, Node and File may be used concurrently, until the FS is closed.
//
// Not done: writing; following a filesystem that changes.
package fsread
