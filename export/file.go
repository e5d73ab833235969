package export

import (
	"context"
	"errors"
)

// MaxRead is the longest read that an export serves, in bytes, and the maximum block size
// that it advertises. 2^25 is what clients may assume unasked (proto.md, "Block size
// constraints").
const MaxRead = 1 << 25

// File is what an export serves. Methods may be called concurrently. The size is constant.
type File interface {
	// Size is the file's length in bytes.
	Size() uint64
	// Submit starts every read of the batch. It does not wait for a disk except, at most,
	// for a lone small read. Done is called exactly once for each, in any order, from any
	// goroutine, perhaps before Submit returns. The slice may be reused after return.
	Submit(batch []*Read)
	// Extents fills list from the front with what the file is made of, from off on and without a gap,
	// and returns how many there are: at least one, unless it fails. They may end behind end; off < end
	// <= Size. Without wait it answers ErrWait rather than wait for a disk; with it, until ctx ends.
	Extents(ctx context.Context, off, end uint64, wait bool, list []Extent) (int, error)
}

// Rotator is a File that knows whether spinning disks are behind it. It is asked once, when it is exported.
type Rotator interface {
	Rotational() bool
}

// ErrWait is a File's answer when it can't tell its extents without waiting for a disk.
var ErrWait = errors.New("extents are not cached")

// Extent is a part of a File: Length bytes of one kind.
type Extent struct {
	Length      uint64
	Kind        ExtentKind
	Compression Compression
	Unverified  bool // there is no checksum that its bytes are held against
}

// ExtentKind is what a part of a file is made of.
type ExtentKind uint8

// Data is stored; a hole and what is preallocated (zero) read as zeroes, and the latter takes space.
const (
	ExtentData ExtentKind = iota
	ExtentHole
	ExtentZero
)

// Compression is how a part of a file is stored. The numbers are promised to clients (docs/nbd.md).
type Compression uint8

// The numbers are those that btrfs uses.
const (
	CompressionNone Compression = iota
	CompressionZlib
	CompressionLZO
	CompressionZstd
)

// Read is one read of a File. It belongs to the File from Submit until Done.ReadDone.
type Read struct {
	// Set by export: a range inside the file, 1 <= Length <= MaxRead bytes.
	Offset uint64
	Length uint32
	Done   Completer

	// Set by the File before Done. All of it is lent until Lender.Release.
	Payload []byte // exactly Length bytes when Err is nil or Lost is not empty, verified but for Lost
	Zeroes  []Span // parts that read as zeroes because nothing is stored there; they need not travel
	Lost    []Loss // with Err: the parts that were lost, if the others are good
	Err     error  // anything but nil becomes NBD_EIO for this read alone
	Lender  Lender // takes it back; nil when there is nothing to give back
}

// Span is Length bytes at Offset of a File. Lists of them, and of Loss, are by offset, inside of the
// read, without overlap, and disjoint from each other.
type Span struct{ Offset, Length uint64 }

// Loss is a part of a read that could not be served.
type Loss struct {
	Span
	Err error // why, for people
}

// Completer is told that a read has ended. ReadDone never waits for a client.
type Completer interface {
	ReadDone(*Read)
}

// Lender takes back what a File lent with a Read. Release is called exactly once for each
// completed read that names a Lender, failed ones included, from any goroutine; it must not
// wait. Afterwards neither side touches the payload or the Read on the other's behalf.
type Lender interface {
	Release(*Read)
}
