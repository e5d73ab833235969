package devio

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// maxAlign is the largest alignment that O_DIRECT is used with: the smallest sector that btrfs has
// and the alignment of a Pool's buffers. It also stands in where the kernel does not tell.
const maxAlign = 4096

var errNoDirect = errors.New("the filesystem does not support it for this file")

// directAlign returns the power of two that addresses, offsets and lengths of O_DIRECT reads from
// fd must respect; an error says why O_DIRECT cannot be used.
func directAlign(fd int, block bool) (int, error) {
	mem, off, known := statxAlign(fd)
	sector := uint32(0)
	if block {
		if n, err := unix.IoctlGetUint32(fd, unix.BLKSSZGET); err == nil {
			sector = n
		}
	}
	return chooseAlign(mem, off, sector, known)
}

// statxAlign asks for STATX_DIOALIGN (Linux 6.1); known is false where the kernel or the
// filesystem does not answer. Both values are 0 for a file that does not support O_DIRECT.
func statxAlign(fd int) (mem, off uint32, known bool) {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st)
	if err != nil || st.Mask&unix.STATX_DIOALIGN == 0 {
		return 0, 0, false
	}
	return st.Dio_mem_align, st.Dio_offset_align, true
}

// chooseAlign returns the smallest alignment that satisfies memory, offset and logical sector
// (0: not a block device, or unknown). Without any knowledge it is maxAlign.
func chooseAlign(mem, off, sector uint32, known bool) (int, error) {
	if known && (mem == 0 || off == 0) {
		return 0, errNoDirect
	}
	if !known && sector == 0 {
		return maxAlign, nil
	}
	align := max(mem, off, sector)
	switch {
	case align > maxAlign:
		return 0, fmt.Errorf("it asks for an alignment of %d bytes, more than %d", align, maxAlign)
	case align&(align-1) != 0:
		return maxAlign, nil
	}
	return int(align), nil
}

// refusesDirect reports whether err is how a filesystem says that it has no O_DIRECT.
func refusesDirect(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)
}

// dropDirect goes on through the page cache, from now on and for every reader of f, and warns once.
func (f *file) dropDirect(why error) error {
	f.dropping.Lock()
	defer f.dropping.Unlock()
	if !f.direct.Load() {
		return nil
	}
	if err := f.clearFlags(unix.O_DIRECT); err != nil {
		return err
	}
	f.direct.Store(false)
	f.warn(why)
	return nil
}

func (f *file) warn(why error) {
	f.log.Warn("O_DIRECT refused, reading through the page cache", "device", f.name, "err", why)
}
