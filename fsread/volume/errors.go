package volume

import (
	"errors"
	"fmt"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

var (
	// ErrMissing is the cause of a copy whose device was not given.
	ErrMissing = errors.New("device is missing")
	// ErrStale is the cause of a copy that nothing vouches for: no checksum, and a device that missed writes.
	ErrStale = errors.New("device missed writes and the block has no checksum")
	// ErrNoChecksum is a verifier's answer for a unit that should have a checksum and has none. No
	// other copy is asked: they could not be judged either.
	ErrNoChecksum = errors.New("checksum is missing")
	// ErrUnmapped is the cause of a logical range that no chunk holds.
	ErrUnmapped = errors.New("no chunk maps this address")
	// ErrNoStripe is the cause of a logical range in a chunk that the RAID stripe tree describes, of which it
	// says nothing.
	ErrNoStripe = errors.New("no item of the RAID stripe tree maps this address")
	// ErrSlow is the cause of a copy whose device took longer than Options.SlowRead.
	ErrSlow = errors.New("device is too slow")
	// ErrParity is the cause of a block without a checksum that P and Q of its row rebuild differently.
	ErrParity = errors.New("the two parities disagree and the block has no checksum")
	// ErrNoFilesystem means that a device holds no btrfs superblock.
	ErrNoFilesystem = errors.New("no btrfs superblock")
	// ErrDevices is the kind of every error that names devices which do not make one filesystem.
	ErrDevices = errors.New("devices do not make one filesystem")
)

// Mirror counts the copies of a logical range from 1, as the kernel does.
type Mirror uint8

// CopyError is one failed copy of one unit.
type CopyError struct {
	Logical  ondisk.Logical // of the block, also where Column is not ""
	Dev      devio.DevID
	Name     string // the device as the user named it
	Physical devio.Physical
	Mirror   Mirror
	Column   string // of what the block was to be rebuilt from: P, Q, or D0, D1, ... for data; "": the block itself
	Err      error  // of the device, of the verifier, ErrMissing, ErrStale or ErrSlow
}

func (e *CopyError) Error() string {
	if e.Column != "" {
		return fmt.Sprintf("column %s devid %d (%s) @%d: %v", e.Column, e.Dev, e.Name, e.Physical, e.Err)
	}
	return fmt.Sprintf("mirror %d devid %d (%s) @%d: %v", e.Mirror, e.Dev, e.Name, e.Physical, e.Err)
}

func (e *CopyError) Unwrap() error { return e.Err }

// Lost is a unit that no copy could serve: Len bytes at Off of the request's buffer.
type Lost struct {
	Off, Len int
	Logical  ondisk.Logical
	Copies   []*CopyError // every attempt; empty where there was nothing to attempt
	Err      error        // why, when it was not the copies: ErrUnmapped, ErrNoStripe, ErrNoChecksum, an unsupported profile
}

// Error lists the causes, one copy after the other; where it was, the caller says.
func (l *Lost) Error() string {
	if l.Err != nil {
		return l.Err.Error()
	}
	s := "no good copy"
	for i, c := range l.Copies {
		sep := ", "
		if i == 0 {
			sep = ": "
		}
		s += sep + c.Error()
	}
	return s
}

// Unwrap gives every cause, so that errors.Is finds ErrChecksum or an errno in any copy.
func (l *Lost) Unwrap() []error {
	if l.Err != nil {
		return []error{l.Err}
	}
	errs := make([]error, len(l.Copies))
	for i, c := range l.Copies {
		errs[i] = c
	}
	return errs
}
