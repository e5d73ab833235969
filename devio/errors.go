package devio

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

var (
	// ErrClosed is the result of a read that Close cancelled, or that came after Close.
	ErrClosed = errors.New("device is closed")
	// ErrAlign is the result of a read that does not respect the queue's Align.
	ErrAlign = errors.New("read is not aligned")
	// ErrKind is wrapped by the OpenError of what is neither a block device nor a regular file.
	ErrKind = errors.New("neither a block device nor a regular file")
	// ErrWorkers is wrapped by the OpenError of a bad Options.Workers.
	ErrWorkers = errors.New("number of workers is out of range")
	// ErrOffset is wrapped by the OpenError of an Options.Offset behind the end of the device or file.
	ErrOffset = errors.New("offset is behind the end")
	// ErrEngine is wrapped by the OpenError of Options.Engine IOUring where io_uring does not work.
	ErrEngine = errors.New("io_uring can't be used")
)

// OpenError tells why a device cannot be opened and what its user can do about it.
type OpenError struct {
	Path   string // as the user wrote it
	Err    error  // an errno, or an error that wraps ErrKind, ErrOffset, ErrWorkers or ErrEngine
	Remedy string // may be empty
}

// Error is one line: open PATH: WHY (REMEDY).
func (e *OpenError) Error() string {
	if e.Remedy == "" {
		return fmt.Sprintf("open %s: %v", e.Path, e.Err)
	}
	return fmt.Sprintf("open %s: %v (%s)", e.Path, e.Err, e.Remedy)
}

// Unwrap gives the kind to errors.Is, for example fs.ErrNotExist.
func (e *OpenError) Unwrap() error { return e.Err }

// kindError says what a file is that cannot hold a filesystem.
type kindError string

func (k kindError) Error() string { return "is a " + string(k) }
func (k kindError) Unwrap() error { return ErrKind }

// engineError says why io_uring can't be used.
type engineError struct{ why error }

func (e *engineError) Error() string   { return fmt.Sprintf("%v: %v", ErrEngine, e.why) }
func (e *engineError) Unwrap() []error { return []error{ErrEngine, e.why} }

// offsetError is an offset behind the end; both in bytes.
type offsetError struct{ offset, size uint64 }

func (e *offsetError) Error() string {
	return fmt.Sprintf("offset %d is behind the end: it has %d bytes", e.offset, e.size)
}
func (e *offsetError) Unwrap() error { return ErrOffset }

// openError joins err with the remedy that fits it.
func openError(path string, err error) *OpenError {
	return &OpenError{Path: path, Err: err, Remedy: remedy(err)}
}

func remedy(err error) string {
	var kind kindError
	switch {
	case errors.As(err, &kind):
		return kindRemedy(kind)
	case errors.Is(err, ErrOffset):
		return "list partitions and where they begin with: fdisk -l"
	case errors.Is(err, ErrWorkers):
		return fmt.Sprintf("use 1 to %d, or 0 for %d with pread and %d with io_uring", maxWorkers, defaultWorkers, defaultDepth)
	case errors.Is(err, ErrEngine):
		return "choose the engine auto or pread; sysctl kernel.io_uring_disabled, the seccomp profile of a container and ulimit -n can forbid it"
	case errors.Is(err, unix.EACCES):
		return `run as root, or give your user read access: see "device access" in btrexport(1)`
	case errors.Is(err, unix.EPERM):
		return "run as root; inside a container, give it the device, for example with --device"
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return "list the block devices with: lsblk --fs"
	case errors.Is(err, unix.ENOMEDIUM), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return "is the disk plugged in? list the block devices with: lsblk --fs"
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return "raise the limit of open files with: ulimit -n"
	}
	return ""
}

func kindRemedy(kind kindError) string {
	if kind == kindDirectory {
		return "name the block device or image file that holds the filesystem, not where it is mounted: findmnt shows it"
	}
	return "name a block device, such as /dev/sdb, or an image file"
}
