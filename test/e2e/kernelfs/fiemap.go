//go:build linux

package kernelfs

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"unsafe"
)

// Number and flag of include/uapi/linux/fiemap.h: _IOWR('f', 11, 32 bytes).
const (
	iocFiemap    = 3<<30 | 32<<16 | 'f'<<8 | 11
	fiemapLast   = 0x1
	fiemapShared = 0x2000
)

// FileExtent is a part of a file as FIEMAP tells it, in bytes. Parts of one kind that touch are one.
type FileExtent struct {
	Off, Len uint64
	Shared   bool
}

// Fiemap asks the kernel for the extents of a file; holes have none.
// struct fiemap: start u64 @0, length u64 @8, flags u32 @16, mapped_extents u32 @20, extent_count u32 @24; then
// from 32 the extents of 56 bytes: logical u64 @0, physical u64 @8, length u64 @16, flags u32 @40.
func Fiemap(path string) ([]FileExtent, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	const head, size, count = 32, 56, 256
	var out []FileExtent
	for start := uint64(0); ; {
		arg := make([]byte, head+size*count)
		le := binary.NativeEndian
		le.PutUint64(arg, start)
		le.PutUint64(arg[8:], math.MaxUint64-start)
		le.PutUint32(arg[24:], count)
		if err := ioctlPtr(int(f.Fd()), iocFiemap, unsafe.Pointer(unsafe.SliceData(arg))); err != nil {
			return nil, fmt.Errorf("fiemap %s: %w", path, err)
		}
		n := int(le.Uint32(arg[20:]))
		for i := range n {
			e := arg[head+size*i:]
			x := FileExtent{Off: le.Uint64(e), Len: le.Uint64(e[16:]), Shared: le.Uint32(e[40:])&fiemapShared != 0}
			out, start = append(out, x), x.Off+x.Len
			if le.Uint32(e[40:])&fiemapLast != 0 {
				return out, nil
			}
		}
		if n == 0 {
			return out, nil
		}
	}
}
