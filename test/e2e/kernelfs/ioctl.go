//go:build linux

package kernelfs

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/btrexport/btrexport/fsread/fsreadtest"
)

// Numbers of include/uapi/linux/btrfs.h: _IOWR(0x94, 18, 4096 bytes), _IOR(0x94, 60, 504 bytes) and so on.
const (
	iocInoLookup     = 3<<30 | 4096<<16 | 0x94<<8 | 18
	iocGetSubvolInfo = 2<<30 | 504<<16 | 0x94<<8 | 60
	iocQuotaCtl      = 3<<30 | 16<<16 | 0x94<<8 | 40
	iocTreeSearch    = 3<<30 | 4096<<16 | 0x94<<8 | 17
)

// subvolumeRoot is the inode number of the root directory of every subvolume
// (BTRFS_FIRST_FREE_OBJECTID).
const subvolumeRoot = 256

// emptySubvolume is the inode number of the directory that the kernel makes up where a snapshot
// holds the name of a subvolume of its source (BTRFS_EMPTY_SUBVOL_DIR_OBJECTID). It stands in
// no tree, and the kernel answers no ioctl on it.
const emptySubvolume = 2

func ioctlPtr(fd int, request uint, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// subvolumeID returns the id of the subvolume that holds the open file: BTRFS_IOC_INO_LOOKUP
// with treeid 0 and the root directory, for which the kernel asks no privilege.
// struct btrfs_ioctl_ino_lookup_args: treeid u64 @0, objectid u64 @8, name [4080] @16.
func subvolumeID(fd int) (uint64, error) {
	var arg [4096]byte
	binary.NativeEndian.PutUint64(arg[8:], subvolumeRoot)
	if err := ioctlPtr(fd, iocInoLookup, unsafe.Pointer(&arg)); err != nil {
		return 0, err
	}
	return binary.NativeEndian.Uint64(arg[:]), nil
}

// subvolumeInfo describes the subvolume whose root directory is open.
// struct btrfs_ioctl_get_subvol_info_args: treeid u64 @0, name [256] @8, parent_id u64 @264,
// dirid u64 @272, generation u64 @280, flags u64 @288 (bit 0 read-only), uuid [16] @296,
// parent_uuid [16] @312.
func subvolumeInfo(fd int) (fsreadtest.Subvolume, error) {
	var arg [504]byte
	if err := ioctlPtr(fd, iocGetSubvolInfo, unsafe.Pointer(&arg)); err != nil {
		return fsreadtest.Subvolume{}, err
	}
	return fsreadtest.Subvolume{
		ID:         binary.NativeEndian.Uint64(arg[:]),
		Parent:     binary.NativeEndian.Uint64(arg[264:]),
		ReadOnly:   binary.NativeEndian.Uint64(arg[288:])&1 != 0,
		UUID:       formatUUID(arg[296:312]),
		ParentUUID: formatUUID(arg[312:328]),
	}, nil
}

// enableSimpleQuota is BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA (Linux 6.7), for which btrfs-progs has an
// option since 6.7. struct btrfs_ioctl_quota_ctl_args: cmd u64 @0, status u64 @8.
func enableSimpleQuota(fd int) error {
	var arg [16]byte
	binary.NativeEndian.PutUint64(arg[:], 4)
	return ioctlPtr(fd, iocQuotaCtl, unsafe.Pointer(&arg))
}

// treeLevel returns the height of a tree as its ROOT_ITEM says, which has it at byte 238.
// struct btrfs_ioctl_search_args: tree_id u64 @0, min and max objectid @8, @16, min and max offset @24,
// @32, min and max transid @40, @48, min and max type u32 @56, @60, nr_items u32 @64; then from 104 the
// items, each behind 32 bytes: transid u64, objectid u64, offset u64, type u32, len u32.
func treeLevel(fd int, tree uint64) (int, error) {
	const rootTree, rootItem, at = 1, 132, 104
	var arg [4096]byte
	put := binary.NativeEndian.PutUint64
	put(arg[0:], rootTree)
	put(arg[8:], tree)
	put(arg[16:], tree)
	put(arg[32:], math.MaxUint64)
	put(arg[48:], math.MaxUint64)
	binary.NativeEndian.PutUint32(arg[56:], rootItem)
	binary.NativeEndian.PutUint32(arg[60:], rootItem)
	binary.NativeEndian.PutUint32(arg[64:], 1)
	if err := ioctlPtr(fd, iocTreeSearch, unsafe.Pointer(&arg)); err != nil {
		return 0, err
	}
	if n, size := binary.NativeEndian.Uint32(arg[64:]), binary.NativeEndian.Uint32(arg[at+28:]); n != 1 || size < 239 {
		return 0, fmt.Errorf("tree %d: %d root items, of %d bytes", tree, n, size)
	}
	return int(arg[at+32+238]), nil
}

// formatUUID returns the usual form, or nothing for the zero UUID.
func formatUUID(b []byte) string {
	if string(b) == string(make([]byte, 16)) {
		return ""
	}
	s := hex.EncodeToString(b)
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}
