package devio

import (
	"fmt"
	"log/slog"
)

const (
	defaultWorkers = 8    // of the pread engine
	defaultDepth   = 32   // of the io_uring engine
	maxWorkers     = 1024 // each may hold an operating system thread; the Go runtime ends at 10000
)

// Engine is how reads of a queue are carried out.
type Engine uint8

// The engines.
const (
	Auto    Engine = iota // io_uring where the kernel allows it, else pread
	IOUring               // io_uring
	Pread                 // workers that block in preadv
)

var engineNames = [...]string{Auto: "auto", IOUring: "io_uring", Pread: "pread"}

// String is the name in configurations: auto, io_uring or pread.
func (e Engine) String() string {
	if int(e) < len(engineNames) {
		return engineNames[e]
	}
	return fmt.Sprintf("Engine(%d)", uint8(e))
}

// ParseEngine is the inverse of String; "" is auto.
func ParseEngine(s string) (Engine, error) {
	for i, name := range engineNames {
		if s == name {
			return Engine(i), nil
		}
	}
	if s == "" {
		return Auto, nil
	}
	return Auto, fmt.Errorf("%q is no I/O engine (auto, io_uring or pread)", s)
}

// Options say how a device is opened. The zero value is a good choice.
type Options struct {
	// Workers is the number of reads in flight on this device, up to 1024; 0 means 8 with pread, where each may hold a
	// thread, and 32 with io_uring. One read done by its submitter comes on top.
	Workers  int
	Buffered bool   // read through the page cache, not with O_DIRECT
	Engine   Engine // IOUring makes Open fail where the kernel does not allow it
	// Offset is where in the device or file the queue begins, in bytes: a partition. Where O_DIRECT needs another
	// alignment, reads go through the page cache.
	Offset uint64
	Name   string       // what Queue.Name and errors say; empty: the path
	Log    *slog.Logger // nil: silent. One warning, naming the device, when O_DIRECT is refused
}

// check refuses Options that mean nothing.
func (o Options) check() error {
	if o.Workers < 0 || o.Workers > maxWorkers {
		return ErrWorkers
	}
	return nil
}

// name is Name, or else the path.
func (o Options) name(path string) string {
	if o.Name == "" {
		return path
	}
	return o.Name
}

// workers is Workers, or what stands in for 0.
func (o Options) workers(otherwise int) int {
	if o.Workers == 0 {
		return otherwise
	}
	return o.Workers
}

func (o Options) log() *slog.Logger {
	if o.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Log
}
