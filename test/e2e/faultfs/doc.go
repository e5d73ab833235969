// Package faultfs shows image files through FUSE, so that their reads fail as those of a dying disk
// do: for real, in the kernel, under O_DIRECT, and as the test decides while readers are at work.
//
//	fs := faultfs.Mount(t, map[string]string{"disk0": image0, "disk1": image1})
//	f := fs.File("disk0")
//	f.Fail(1<<20, 64<<10, syscall.EIO) // reads that touch this range fail
//	f.After(100, f.Lose)               // and the hundredth from now on finds no disk
//	program -d f.Path() …
//
// Nothing is cached: every read of a file, with O_DIRECT or without, comes here, split by the kernel
// at 1 MiB. File.Loop lays a block device over a file.
//
// A read that hangs or is delayed is answered when the fault is taken back, and with EINTR when its
// reader was killed: a process can be ended as if it waited for a hard NFS mount. A process that
// reads through the loop device can not, as with a real disk, until the fault is taken back. The
// end of the test answers all with EIO and unmounts.
//
// It needs Linux, root and /dev/fuse; Usable says what is missing. Faults may be set from any
// goroutine. Not done: writing, directories, listing the directory. No code of the program may
// import it.
package faultfs
