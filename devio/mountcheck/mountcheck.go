// Package mountcheck tells whether the running kernel has the btrfs on a device mounted read-write.
// Its blocks then change under whoever reads the device. What it asks are the kernel's own lists
// (sysfs, mountinfo), so it sees this kernel only: a disk shared with another host, or a file that a
// virtual machine has open, looks unmounted.
package mountcheck

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// kernel is where the lists lie: / outside of tests.
type kernel struct {
	root  string
	rdev  func(path string) (dev uint64, ok bool)        // of a block device
	inode func(path string) (dev, ino uint64, err error) // of any file
}

// ReadWrite says whether what begins at a byte offset of path, a block device or an image file under a loop device,
// belongs to a btrfs that is mounted read-write, and where; mountpoint is "" when that is another mount
// namespace's. An error means that the kernel's lists could not be read.
func ReadWrite(path string, offset uint64) (mountpoint string, mounted bool, err error) {
	return kernel{root: "/", rdev: blockDevice, inode: inode}.readWrite(path, offset)
}

func (k kernel) readWrite(path string, offset uint64) (string, bool, error) {
	names, err := k.blockNames(path, offset)
	if err != nil || len(names) == 0 {
		return "", false, err
	}
	members, err := k.filesystemOf(names)
	if err != nil || len(members) == 0 {
		return "", false, err
	}
	return k.mountOf(members)
}

// blockNames gives the kernel's names of the block devices that begin at an offset of path: its own, or those of the
// loop devices over the file; and their partitions.
func (k kernel) blockNames(path string, offset uint64) ([]string, error) {
	if dev, ok := k.rdev(path); ok {
		at := filepath.Join(k.root, "sys/dev/block", numbers(dev))
		link, err := os.Readlink(at)
		if err != nil {
			return nil, absent(err)
		}
		return beginAt(at, filepath.Base(link), 0, offset), nil
	}
	dev, ino, err := k.inode(path)
	if err != nil {
		return nil, err
	}
	loops, err := filepath.Glob(filepath.Join(k.root, "sys/block/loop*/loop/backing_file"))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, l := range loops {
		backing, err := os.ReadFile(l)
		if err != nil {
			continue // detached since
		}
		if d, i, err := k.inode(strings.TrimSuffix(string(backing), "\n")); err == nil && d == dev && i == ino {
			disk := filepath.Dir(filepath.Dir(l))
			names = append(names, beginAt(disk, filepath.Base(disk), number(filepath.Join(disk, "loop/offset")), offset)...)
		}
	}
	return names, nil
}

// sectorSize is the unit of start in sysfs, whatever the device's sectors are.
const sectorSize = 512

// beginAt gives of a disk, whose directory of sysfs is dir and which begins at byte base, and of its partitions the
// names of those that begin at offset.
func beginAt(dir, disk string, base, offset uint64) (names []string) {
	if base == offset {
		names = append(names, disk)
	}
	starts, _ := filepath.Glob(filepath.Join(dir, "*", "start")) // the pattern is well-formed
	for _, s := range starts {
		if base+sectorSize*number(s) == offset {
			names = append(names, filepath.Base(filepath.Dir(s)))
		}
	}
	return names
}

// number reads one of sysfs's files; 0 where there is none, as for what is gone since.
func number(file string) uint64 {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// filesystemOf gives all devices of the mounted btrfs that has one of these.
func (k kernel) filesystemOf(names []string) ([]string, error) {
	dirs, err := filepath.Glob(filepath.Join(k.root, "sys/fs/btrfs/*/devices"))
	if err != nil {
		return nil, err
	}
	for _, d := range dirs {
		entries, err := os.ReadDir(d)
		if err != nil {
			continue // unmounted since
		}
		var members []string
		found := false
		for _, e := range entries {
			members = append(members, e.Name())
			for _, n := range names {
				found = found || n == e.Name()
			}
		}
		if found {
			return members, nil
		}
	}
	return nil, nil
}

// mountOf looks for the mount whose source is one of the devices. The superblock's own rw or ro counts,
// not the mount's: a read-only bind mount of a filesystem that is written elsewhere is no safety.
func (k kernel) mountOf(members []string) (string, bool, error) {
	f, err := os.Open(filepath.Join(k.root, "proc/self/mountinfo"))
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	seen := false
	for s := bufio.NewScanner(f); s.Scan(); {
		before, after, ok := strings.Cut(s.Text(), " - ")
		where, what := strings.Fields(before), strings.Fields(after)
		if !ok || len(where) < 5 || len(what) < 3 || what[0] != "btrfs" || !k.isMember(unescape(what[1]), members) {
			continue
		}
		seen = true
		if strings.HasPrefix(what[2]+",", "rw,") {
			return unescape(where[4]), true, nil
		}
	}
	return "", !seen, nil
}

func (k kernel) isMember(source string, members []string) bool {
	names, err := k.blockNames(source, 0)
	if err != nil || len(names) == 0 {
		names = []string{filepath.Base(source)}
	}
	for _, m := range members {
		if names[0] == m {
			return true
		}
	}
	return false
}

// unescape undoes mountinfo's octal escapes of space, tab, newline and backslash.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func numbers(dev uint64) string { return fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev)) }

// absent takes a missing list for an empty one: sysfs need not be mounted in a container.
func absent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func blockDevice(path string) (uint64, bool) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, false
	}
	return uint64(st.Rdev), true
}

func inode(path string) (dev, ino uint64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, 0, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return uint64(st.Dev), st.Ino, nil
}
