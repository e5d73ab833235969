package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"

	"github.com/btrexport/btrexport/configs"
	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/export"
	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
)

// Exit statuses. 2 tells that what was asked for must change before it can work, 1 that it was right
// and failed: one rule for every command, by the kind of the error alone.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

var (
	errInternal    = errors.New("internal error")
	errInterrupted = errors.New("interrupted")
	errMounted     = errors.New("mounted read-write")
)

// exitStatus ends the program without a word: who failed has said why.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// usageKind is a mistake of the command line.
type usageKind struct{ error }

func (e usageKind) Unwrap() error { return e.error }

// connectKind is a server that can't be reached, whatever the cause.
type connectKind struct{ error }

func (e connectKind) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageKind{fmt.Errorf(format, args...)} }

// kinds decide, the first that fits: an error may wrap several causes, and the earlier ones say more.
// What a configuration names wrongly keeps its own kind; the rest of it is "configuration".
func classify(err error) (code int, kind string) {
	var lost *fsread.LostError
	var open *devio.OpenError
	var config *configs.Error
	is := func(target error) bool { return errors.Is(err, target) }
	if code, kind, ok := attachKind(err); ok {
		return code, kind
	}
	switch {
	case is(errInternal):
		return exitFailed, "internal"
	case is(errInterrupted), is(context.Canceled):
		return exitFailed, "interrupted"
	case errors.As(err, new(usageKind)):
		return exitUsage, "usage"
	case errors.As(err, new(connectKind)):
		return exitFailed, "connect"
	case errors.As(err, &lost) && is(ondisk.ErrChecksum):
		return exitFailed, "checksum"
	case errors.As(err, &lost), errors.As(err, new(*skippedError)):
		return exitFailed, "lost"
	case is(ondisk.ErrUnsupported):
		return exitFailed, "unsupported"
	case missing(err):
		return exitUsage, "missing-device"
	case is(volume.ErrNoFilesystem), is(volume.ErrDevices):
		return exitUsage, "device"
	case is(errMounted):
		return exitUsage, "mounted"
	case is(fsread.ErrNotExist), is(fsread.ErrNotDir):
		return exitUsage, "not-found"
	case is(fsread.ErrIsDir):
		return exitUsage, "is-directory"
	case is(fsread.ErrNotRegular):
		return exitUsage, "not-regular"
	case is(fsread.ErrLinkLeaves), is(fsread.ErrLinkLoop):
		return exitUsage, "link"
	case is(ondisk.ErrChecksum):
		return exitFailed, "checksum"
	case is(ondisk.ErrCorrupt), is(fsread.ErrUnverifiable):
		return exitFailed, "corrupt"
	case is(export.ErrUnknownOwner):
		return exitUsage, "configuration"
	case is(export.ErrInUse), is(syscall.EADDRINUSE):
		return exitFailed, "in-use"
	case is(fs.ErrPermission):
		return exitFailed, "permission"
	case is(syscall.ENOSPC), is(syscall.EDQUOT):
		return exitFailed, "no-space"
	case is(fs.ErrExist):
		return exitUsage, "exists"
	case errors.As(err, &open) && (is(fs.ErrNotExist) || is(syscall.ENOTDIR) || is(devio.ErrKind) || is(devio.ErrOffset) || is(devio.ErrWorkers)):
		return exitUsage, "device"
	case is(fs.ErrNotExist), is(syscall.ENOTDIR):
		return exitUsage, "not-found"
	case errors.As(err, &open):
		return exitFailed, "io"
	case errors.As(err, &config):
		return exitUsage, "configuration"
	}
	return exitFailed, "io"
}

// missing says whether more devices are all that it takes: no copy failed that was there.
func missing(err error) bool {
	var lost *volume.Lost
	if !errors.As(err, &lost) {
		return errors.Is(err, volume.ErrMissing)
	}
	return len(lost.Copies) > 0 && !slices.ContainsFunc(lost.Copies, func(c *volume.CopyError) bool {
		return !errors.Is(c, volume.ErrMissing)
	})
}

// withRemedy is the error's line, with what to do about it where who made the error could not know.
func withRemedy(err error) string {
	s := err.Error()
	add := func(remedy string) {
		if !strings.HasSuffix(s, ")") {
			s += " (" + remedy + ")"
		}
	}
	var log *fsread.LogError
	var feature *ondisk.UnsupportedError
	switch {
	case errors.As(err, &log):
		add("--ignore-log, or ignore_log: true, shows the last commit")
	case errors.As(err, &feature) && feature.Unknown:
		s += " to btrexport " + thisBuild().Version
		add("a newer version may read it")
	case errors.Is(err, fsread.ErrIsDir):
		add("name a regular file, or use ls")
	case errors.Is(err, fsread.ErrNotRegular):
		add("name a regular file")
	case errors.Is(err, fsread.ErrNotDir):
		add("name a directory")
	case errors.Is(err, syscall.ENOSPC):
		add("free some space, or choose another place")
	}
	return s
}

// each takes apart what errors.Join has joined, however deep.
func each(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var text []string
	for _, e := range joined.Unwrap() {
		text = append(text, e.Error())
	}
	if strings.Join(text, "\n") != err.Error() {
		return []error{err} // wraps several causes of one error
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, each(e)...)
	}
	return all
}
