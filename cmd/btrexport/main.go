// Command btrexport reads files out of btrfs filesystems and serves them over NBD, without mounting.
//
// main.go wires; cli.go holds the root command, its environment and the one place where errors become
// a line and an exit status; every other file is one command, or what several of them share: devices.go
// (flags and devices to a filesystem), site.go (a configuration to open exports), text.go (what people read),
// progress.go and status.go (how far a job is). map.go has extent.go, tally.go and picture.go beside it,
// verify.go its words in verifytext.go.
package main

import (
	"os"
	"runtime"
)

// init ties the main goroutine to the process's first thread, which so never reads a device. The kernel gives
// a signal for the process to that thread if it can; one that a disk holds in an uninterruptible read takes
// it and sleeps on, and neither this SIGTERM nor the next reaches another thread.
func init() { runtime.LockOSThread() }

func main() {
	status := make(chan int)
	go func() { status <- run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr) }()
	os.Exit(<-status)
}
