// Command btrexport reads files out of btrfs filesystems and serves them over NBD, without mounting.
//
// main.go wires; cli.go holds the root command, its environment and the one place where errors become
// a line and an exit status; every other file is one command, or what several of them share: devices.go
// (flags and devices to a filesystem), site.go (a configuration to open exports), text.go (what people read),
// progress.go and status.go (how far a job is). map.go has extent.go, tally.go and picture.go beside it,
// verify.go its words in verifytext.go.
package main

import "os"

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
