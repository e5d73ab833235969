// Package kernelfs makes btrfs filesystems with mkfs.btrfs and the running kernel: on loop
// devices over sparse image files, filled with every kind of file that a reader must know, and
// described by a manifest of what the kernel shows after a fresh mount. The golden images
// (package kernelfs/golden) and the end-to-end tests are built with it.
//
// It needs Linux, root, loop devices and btrfs-progs; Usable says what is missing. An FS owns its
// loop devices and mounts: Close releases them, also after a failure half way, and touches no
// others. Tree collects the operations inside a mount; its first error sticks, so that a recipe
// reads as a list and checks once.
//
//	fs, err := kernelfs.Make(ctx, dir, kernelfs.Options{Devices: 2, Data: "raid0", Metadata: "raid1"})
//	defer fs.Close()
//	mnt, err := fs.Mount("subvolid=5")
//	t := kernelfs.NewTree(ctx, mnt, kernelfs.Content{Seed: 1})
//	t.Plain("file", 1<<20)
//	err = t.Err()
//
// Everything here is for tests: no code of the program may import it.
package kernelfs
