//go:build linux

package kernelfs

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// loop is an attached loop device. The open file keeps it: the kernel detaches the device when
// the last user closes it (LO_FLAGS_AUTOCLEAR), so that not even a killed process leaves one.
type loop struct {
	file *os.File
	path string
}

// LoopOver attaches a block device that can only be read and reads image with O_DIRECT. detach takes it
// away once nobody reads it; a read that waits for image keeps detach waiting.
func LoopOver(image string) (path string, detach func() error, err error) {
	l, err := attachLoop(image, unix.LO_FLAGS_READ_ONLY|unix.LO_FLAGS_DIRECT_IO)
	if err != nil {
		return "", nil, err
	}
	return l.path, l.close, nil
}

// attachLoop binds a free loop device to an image file. flags are LO_FLAGS_ beside AUTOCLEAR.
func attachLoop(image string, flags uint32) (*loop, error) {
	mode := os.O_RDWR
	if flags&unix.LO_FLAGS_READ_ONLY != 0 {
		mode = os.O_RDONLY
	}
	backing, err := os.OpenFile(image, mode, 0)
	if err != nil {
		return nil, err
	}
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	const attempts = 100
	for range attempts {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("free loop device: %w", err)
		}
		l, err := configureLoop(fmt.Sprintf("/dev/loop%d", n), backing, flags|unix.LO_FLAGS_AUTOCLEAR)
		if errors.Is(err, unix.EBUSY) { // somebody else was faster
			continue
		}
		return l, err
	}
	return nil, fmt.Errorf("no loop device for %s after %d attempts", image, attempts)
}

func configureLoop(path string, backing *os.File, flags uint32) (*loop, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	config := unix.LoopConfig{Fd: uint32(backing.Fd()), Info: unix.LoopInfo64{Flags: flags}}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], backing.Name())
	if err := unix.IoctlLoopConfigure(int(f.Fd()), &config); err != nil {
		return nil, errors.Join(fmt.Errorf("configure %s: %w", path, err), f.Close())
	}
	return &loop{file: f, path: path}, nil
}

func (l *loop) close() error { return l.file.Close() }
