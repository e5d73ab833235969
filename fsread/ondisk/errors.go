package ondisk

import (
	"errors"
	"fmt"

	"github.com/btrexport/btrexport/fsread/csum"
)

// The kinds of error that this package returns, for errors.Is. They exclude each other.
var (
	// ErrCorrupt is a structure that breaks the format although its checksum, if it has one, is right.
	ErrCorrupt = errors.New("corrupt")
	// ErrChecksum is a superblock or tree block whose bytes do not match its checksum.
	ErrChecksum = errors.New("checksum mismatch")
	// ErrUnsupported is a structure that is well formed and uses a feature which this reader refuses.
	ErrUnsupported = errors.New("not supported")
	// ErrNoMagic is a superblock place that holds no btrfs superblock at all: another filesystem, an
	// empty or a removed device.
	ErrNoMagic = errors.New("no btrfs superblock")
)

// Error says which structure is corrupt and how. It is ErrCorrupt.
type Error struct {
	Item   string // what was decoded: "superblock", "chunk 22020096", "tree block 30408704"
	Detail string // the field and its value
}

func (e *Error) Error() string { return "corrupt " + e.Item + ": " + e.Detail }

// Is makes the error ErrCorrupt.
func (e *Error) Is(target error) bool { return target == ErrCorrupt }

// UnsupportedError names a feature of the filesystem that is refused. It is ErrUnsupported.
type UnsupportedError struct {
	Feature string // a noun: "incompatible feature zoned", "checksum type sha256"
	Unknown bool   // the feature has no name that this program knows; Feature holds its number
}

func (e *UnsupportedError) Error() string {
	if e.Unknown {
		return e.Feature + " is not known"
	}
	return e.Feature + " is not supported"
}

// Is makes the error ErrUnsupported.
func (e *UnsupportedError) Is(target error) bool { return target == ErrUnsupported }

// ChecksumError is a block whose checksum is wrong. It is ErrChecksum.
type ChecksumError struct {
	Item string // "superblock", "tree block 30408704"
	Type csum.Type
	Want [csum.MaxSize]byte // as stored in the block
	Got  [csum.MaxSize]byte // of the bytes that were read
}

func (e *ChecksumError) Error() string {
	n := e.Type.Size()
	return fmt.Sprintf("%s: %s of the bytes read is %x, stored is %x", e.Item, e.Type, e.Got[:n], e.Want[:n])
}

// Is makes the error ErrChecksum.
func (e *ChecksumError) Is(target error) bool { return target == ErrChecksum }

func corrupt(item, format string, args ...any) error {
	return &Error{Item: item, Detail: fmt.Sprintf(format, args...)}
}

// checksumError computes the sum of b again, for the message. want holds at least MaxSize bytes.
func checksumError(item string, t csum.Type, want, b []byte) error {
	e := &ChecksumError{Item: item, Type: t}
	copy(e.Want[:], want[:t.Size()])
	t.Sum(&e.Got, b)
	return e
}
