package kernelnbd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrNoDriver is a kernel without the family "nbd".
	ErrNoDriver = errors.New("kernel module nbd is not loaded (sudo modprobe nbd)")
	// ErrNotDevice is a path that names no NBD device.
	ErrNotDevice = errors.New("not an NBD device (name /dev/nbd0, or another number)")
)

// Any lets the kernel choose a device, and make one if none is free.
const Any = -1

// maxIndex is the largest N of /dev/nbdN: the kernel has 2^20 minors and gives a device 16 or more of them.
const maxIndex = 1<<16 - 1

// sectorSize is the unit of the kernel's sizes, in bytes, whatever the device's own sector is.
const sectorSize = 512

// poll is how often sysfs is looked at while something is waited for.
const poll = 20 * time.Millisecond

// Kernel is the NBD client of a kernel. The zero value is the running one.
type Kernel struct {
	root string                               // in tests: the directory that holds sys, dev and proc; empty: /
	dial func(context.Context) (*conn, error) // nil: dialNetlink
	wait time.Duration                        // in tests: how long the kernel may take to show what it was told
}

func (k *Kernel) settle() time.Duration {
	if k.wait != 0 {
		return k.wait
	}
	return settleTime
}

func (k *Kernel) open(ctx context.Context) (*conn, error) {
	dial := k.dial
	if dial == nil {
		dial = dialNetlink
	}
	c, err := dial(ctx)
	if errors.Is(err, ErrNoDriver) {
		if _, e := os.Stat(k.path("sys/module/nbd")); e == nil {
			err = errors.New("kernel module nbd is loaded and does not answer here (it knows the initial network namespace only)")
		}
	}
	return c, err
}

func (k *Kernel) path(elements ...string) string {
	return filepath.Join(append([]string{k.root + "/"}, elements...)...)
}

// Device is the path of /dev/nbdN.
func (k *Kernel) Device(index int) string { return k.path("dev", deviceName(index)) }

func deviceName(index int) string { return familyName + strconv.Itoa(index) }

var deviceForm = regexp.MustCompile(`^nbd([0-9]{1,5})$`)

// Index returns N of /dev/nbdN, or Any for /dev/nbd. A device that does not exist yet is made by the kernel
// when it is attached; another file, a partition and another driver's device are ErrNotDevice.
func (k *Kernel) Index(path string) (int, error) {
	var st unix.Stat_t
	name := ""
	switch err := unix.Stat(path, &st); {
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK:
		link, err := os.Readlink(k.path("sys/dev/block", fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))))
		if err != nil {
			return 0, ErrNotDevice
		}
		name = filepath.Base(link)
	case err == nil:
		return 0, ErrNotDevice
	case filepath.Dir(path) == k.path("dev"):
		name = filepath.Base(path)
	}
	if name == familyName {
		return Any, nil
	}
	m := deviceForm.FindStringSubmatch(name)
	if m == nil {
		return 0, ErrNotDevice
	}
	index, err := strconv.Atoi(m[1])
	if err != nil || index > maxIndex {
		return 0, ErrNotDevice
	}
	return index, nil
}

// state is what sysfs tells of one device.
type state struct {
	pid      int    // of who attached it, if it is attached; 0: it is not
	backend  string // who serves it, as the one who attached it said; may be empty
	size     uint64 // bytes, rounded down to sectors
	readOnly bool
}

// state reads sysfs. A device that does not exist is not attached.
func (k *Kernel) state(index int) (state, error) {
	dir := k.path("sys/block", deviceName(index))
	var s state
	for _, f := range []struct {
		name string
		take func(text string) error
	}{
		{"pid", func(text string) (err error) { s.pid, err = strconv.Atoi(text); return err }},
		{"backend", func(text string) error { s.backend = text; return nil }},
		{"size", func(text string) error {
			n, err := strconv.ParseUint(text, 10, 64)
			s.size = n * sectorSize
			return err
		}},
		{"ro", func(text string) error { s.readOnly = text == "1"; return nil }},
	} {
		b, err := os.ReadFile(filepath.Join(dir, f.name))
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV): // also while it is being taken away
			continue
		case err != nil:
			return state{}, err
		}
		if err := f.take(strings.TrimSuffix(string(b), "\n")); err != nil {
			return state{}, fmt.Errorf("%s: %w", filepath.Join(dir, f.name), err)
		}
	}
	return s, nil
}

// holder says what uses the device: a mount, swap, or a device on top of it; "" if nothing does. Programs
// that have it open are not seen.
func (k *Kernel) holder(index int) (string, error) {
	dir := k.path("sys/block", deviceName(index))
	parts, err := filepath.Glob(filepath.Join(dir, deviceName(index)+"p*"))
	if err != nil {
		return "", err
	}
	numbers := make(map[string]bool) // "major:minor"
	names := make(map[string]bool)
	for _, d := range append(parts, dir) {
		if b, err := os.ReadFile(filepath.Join(d, "dev")); err == nil {
			numbers[strings.TrimSpace(string(b))] = true
		}
		names[k.path("dev", filepath.Base(d))] = true
		on, err := os.ReadDir(filepath.Join(d, "holders"))
		if err == nil && len(on) > 0 {
			return "/dev/" + on[0].Name(), nil
		}
	}
	at, err := k.mountOf(numbers)
	if at != "" || err != nil {
		return at, err
	}
	swaps, err := os.ReadFile(k.path("proc/swaps"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	for line := range strings.Lines(string(swaps)) {
		if f := strings.Fields(line); len(f) > 0 && names[f[0]] {
			return "swap", nil
		}
	}
	return "", nil
}

// mountOf returns a mount point of this mount namespace whose device is among numbers, or "". The third
// field of mountinfo is the device, the fifth the mount point (proc(5)).
func (k *Kernel) mountOf(numbers map[string]bool) (string, error) {
	mounts, err := os.ReadFile(k.path("proc/self/mountinfo"))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && numbers[f[2]] {
			return f[4], nil
		}
	}
	return "", nil
}

// await looks every now and then until done says so or fails, at most until ctx ends.
func await(ctx context.Context, done func() (bool, error)) error {
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
