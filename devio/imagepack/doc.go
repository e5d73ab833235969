// Package imagepack unpacks disk images that were packed for shipping: the embedded sample and the
// golden images of the tests. A pack is a tar archive, compressed with zstd, made by
//
//	tar --sparse --format=posix -cf - disk1.img disk2.img | zstd -19 --long > NAME.tar.zst
//
// The archive is not trusted: names, sizes, counts and memory are bounded.
package imagepack
