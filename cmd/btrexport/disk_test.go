package main

import (
	"bytes"
	"os"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/btrexport/btrexport/devio/parttable/parttabletest"
)

// disk mbr|logical|gpt|gpt4k FILE START=IMAGE... makes a partitioned disk of images, each at a sector of 512 bytes. An
// IMAGE that is - is a partition of 1 MiB that holds zeroes.
func cmdDisk(ts *testscript.TestScript, _ bool, args []string) {
	type image struct {
		start uint64
		data  []byte
	}
	var images []image
	end := uint64(0)
	for _, arg := range args[2:] {
		start, name, _ := strings.Cut(arg, "=")
		at, err := strconv.ParseUint(start, 10, 64)
		ts.Check(err)
		data := make([]byte, 1<<20)
		if name != "-" {
			data, err = os.ReadFile(ts.MkAbs(name))
			ts.Check(err)
		}
		images = append(images, image{at, data})
		end = max(end, at*512+uint64(len(data)))
	}
	f, err := os.Create(ts.MkAbs(args[1]))
	ts.Check(err)
	defer f.Close()
	size := int64(end + 1<<20 + 512) // no multiple of what O_DIRECT reads
	ts.Check(f.Truncate(size))
	disk, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	ts.Check(err)
	defer unix.Munmap(disk)
	sector := uint64(512)
	if args[0] == "gpt4k" {
		sector = 4096
	}
	var parts []parttabletest.Part
	for _, i := range images {
		parts = append(parts, parttabletest.Part{i.start * 512 / sector, uint64(len(i.data)) / sector})
		writeSparse(disk[i.start*512:], i.data)
	}
	switch args[0] {
	case "mbr":
		parttabletest.MBR(disk, parts, nil)
	case "logical":
		parttabletest.MBR(disk, parts[:1], parts[1:])
	default:
		parttabletest.GPT(disk, sector, parts)
	}
}

// writeSparse copies what is not zero: the file below stays small.
func writeSparse(to, from []byte) {
	zero := make([]byte, 4096)
	for len(from) > 0 {
		n := min(len(zero), len(from))
		if !bytes.Equal(from[:n], zero[:n]) {
			copy(to, from[:n])
		}
		to, from = to[n:], from[n:]
	}
}
