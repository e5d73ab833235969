package mountcheck

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// fakeKernel lays out sysfs and mountinfo: loop0 (7:0) and loop1 (7:1) are one btrfs, the files a.img and
// b.img lie under them; sda1 (8:1) is another device.
func fakeKernel(t *testing.T, mountinfo string) kernel {
	t.Helper()
	root := t.TempDir()
	write := func(name, content string) {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	link := func(name, target string) {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, p); err != nil {
			t.Fatal(err)
		}
	}
	write("sys/fs/btrfs/features/raid1c34", "")
	link("sys/dev/block/7:0", "../../devices/virtual/block/loop0")
	link("sys/dev/block/7:1", "../../devices/virtual/block/loop1")
	link("sys/dev/block/8:1", "../../devices/pci0000:00/block/sda/sda1")
	// sdb is a disk; its second partition is a btrfs of its own. loop2 lies in a file from 1 MiB on.
	link("sys/dev/block/8:16", "../../devices/pci0000:00/block/sdb")
	write("sys/devices/pci0000:00/block/sdb/sdb1/start", "2048\n")
	write("sys/devices/pci0000:00/block/sdb/sdb2/start", "4096\n")
	write("sys/fs/btrfs/5c0ffee0-1a63-4e8b-91e9-87f2e5e23855/devices/sdb2/x", "")
	write("sys/fs/btrfs/0df206d9-1a63-4e8b-91e9-87f2e5e23855/devices/loop2/x", "")
	write("sys/fs/btrfs/11111111-1a63-4e8b-91e9-87f2e5e23855/devices/loop2p1/x", "")
	write("sys/block/loop2/loop/backing_file", "/img/p.img\n")
	write("sys/block/loop2/loop/offset", "1048576\n")
	write("sys/block/loop2/loop2p1/start", "2048\n")
	write("sys/fs/btrfs/03086119-1a63-4e8b-91e9-87f2e5e23855/devices/loop0/x", "")
	write("sys/fs/btrfs/03086119-1a63-4e8b-91e9-87f2e5e23855/devices/loop1/x", "")
	write("sys/block/loop0/loop/backing_file", "/img/a.img\n")
	write("sys/block/loop1/loop/backing_file", "/img/b.img\n")
	write("proc/self/mountinfo", mountinfo)
	devs := map[string]uint64{"/dev/loop0": unix.Mkdev(7, 0), "/dev/loop1": unix.Mkdev(7, 1), "/dev/sda1": unix.Mkdev(8, 1), "/dev/sdb": unix.Mkdev(8, 16)}
	inodes := map[string]uint64{"/img/a.img": 1, "/img/b.img": 2, "/other/a-again": 1, "/img/c.img": 3, "/img/p.img": 4}
	return kernel{root: root,
		rdev: func(p string) (uint64, bool) { d, ok := devs[p]; return d, ok },
		inode: func(p string) (uint64, uint64, error) {
			if i, ok := inodes[p]; ok {
				return 42, i, nil
			}
			return 0, 0, &fs.PathError{Op: "stat", Path: p, Err: fs.ErrNotExist}
		}}
}

func TestReadWrite(t *testing.T) {
	const (
		rw    = "36 35 0:45 / /mnt/a\\040b rw,relatime shared:1 - btrfs /dev/loop0 rw,space_cache=v2,subvolid=5\n"
		ro    = "36 35 0:45 / /mnt/ro ro,relatime - btrfs /dev/loop0 ro,space_cache=v2\n"
		robnd = "36 35 0:45 / /mnt/ro ro,relatime - btrfs /dev/loop0 rw,space_cache=v2\n"
		sdb2  = "36 35 0:45 / /mnt rw - btrfs /dev/sdb2 rw\n"
		loop2 = "36 35 0:46 / /mnt rw - btrfs /dev/loop2 rw\n"
		p1    = "37 35 0:47 / /mnt1 rw - btrfs /dev/loop2p1 rw\n"
		ext4  = "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
	)
	for _, c := range []struct {
		name, mountinfo, path string
		offset                uint64
		where                 string
		mounted, fails        bool
	}{
		{"the device that mountinfo names", ext4 + rw, "/dev/loop0", 0, "/mnt/a b", true, false},
		{"another device of the filesystem", rw, "/dev/loop1", 0, "/mnt/a b", true, false},
		{"the file under it", rw, "/img/a.img", 0, "/mnt/a b", true, false},
		{"the file by another name", rw, "/other/a-again", 0, "/mnt/a b", true, false},
		{"another file", rw, "/img/c.img", 0, "", false, false},
		{"another device", rw + ext4, "/dev/sda1", 0, "", false, false},
		{"mounted read-only", ro, "/dev/loop0", 0, "", false, false},
		{"a read-only bind of one written elsewhere", robnd, "/dev/loop1", 0, "/mnt/ro", true, false},
		{"mounted in another namespace", ext4, "/img/b.img", 0, "", true, false},
		{"no such file", rw, "/img/none", 0, "", false, true},
		{"inside a device that is mounted", rw, "/dev/loop0", 1 << 20, "", false, false},
		{"a disk's partition", sdb2, "/dev/sdb", 2 << 20, "/mnt", true, false},
		{"another partition", sdb2, "/dev/sdb", 1 << 20, "", false, false},
		{"the disk, not its partition", sdb2, "/dev/sdb", 0, "", false, false},
		{"a file under a loop device with an offset", loop2, "/img/p.img", 1 << 20, "/mnt", true, false},
		{"that file's beginning", loop2, "/img/p.img", 0, "", false, false},
		{"a partition of a loop device with an offset", loop2 + p1, "/img/p.img", 2 << 20, "/mnt1", true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			where, mounted, err := fakeKernel(t, c.mountinfo).readWrite(c.path, c.offset)
			if where != c.where || mounted != c.mounted || (err != nil) != c.fails {
				t.Errorf("got %q %v %v, want %q %v, error %v", where, mounted, err, c.where, c.mounted, c.fails)
			}
		})
	}
}

// TestReadWriteHere asks the running kernel about a file that nothing has mounted.
func TestReadWriteHere(t *testing.T) {
	p := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(p, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	if where, mounted, err := ReadWrite(p, 0); mounted || err != nil {
		t.Errorf("got %q %v %v, want not mounted", where, mounted, err)
	}
}
