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

// attachLoop binds a free loop device to an image file.
func attachLoop(image string) (*loop, error) {
	backing, err := os.OpenFile(image, os.O_RDWR, 0)
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
		l, err := configureLoop(fmt.Sprintf("/dev/loop%d", n), backing)
		if errors.Is(err, unix.EBUSY) { // somebody else was faster
			continue
		}
		return l, err
	}
	return nil, fmt.Errorf("no loop device for %s after %d attempts", image, attempts)
}

func configureLoop(path string, backing *os.File) (*loop, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	config := unix.LoopConfig{Fd: uint32(backing.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], backing.Name())
	if err := unix.IoctlLoopConfigure(int(f.Fd()), &config); err != nil {
		return nil, errors.Join(fmt.Errorf("configure %s: %w", path, err), f.Close())
	}
	return &loop{file: f, path: path}, nil
}

func (l *loop) close() error { return l.file.Close() }
