//go:build linux

package faultfs

import (
	"encoding/binary"
	"syscall"

	"golang.org/x/sys/unix"
)

// The protocol of include/uapi/linux/fuse.h, version 7.31 (Linux 5.4), as far as a flat directory of
// files that are only read needs it. All integers have the machine's byte order.
const (
	major, minor = 7, 31

	rootNode = 1

	opLookup      = 1
	opForget      = 2
	opGetattr     = 3
	opOpen        = 14
	opRead        = 15
	opRelease     = 18
	opInit        = 26
	opDestroy     = 38
	opBatchForget = 42

	initAsyncDIO = 1 << 15 // asynchronous reads of one file run side by side
	initMaxPages = 1 << 22 // the answer to INIT says how long a read may be

	openDirectIO = 1 << 0 // reads pass by the page cache
	openNoFlush  = 1 << 5 // closing asks nothing

	maxRead    = 1 << 20 // bytes of one read
	maxRequest = 8 << 10 // bytes of one request, the least that the kernel takes
	background = 1 << 12 // asynchronous reads in flight, those that hang among them

	inHeader, outHeader = 40, 16
)

var ne = binary.NativeEndian

// serve takes requests until the connection ends and answers each on its own: some wait for long.
func (fs *FS) serve() {
	for {
		b := make([]byte, maxRequest)
		n, err := unix.Read(fs.fd, b)
		switch {
		case err == nil && n >= inHeader:
			fs.wg.Go(func() { fs.answer(b[:n]) })
		case err == unix.EINTR, err == unix.ENOENT: // ENOENT: its reader was killed before we had it
		default: // ENODEV: unmounted
			return
		}
	}
}

// answer does a request. struct fuse_in_header: len u32 @0, opcode u32 @4, unique u64 @8, nodeid u64
// @16, uid u32 @24, gid u32 @28, pid u32 @32 (a thread's). struct fuse_out_header: len u32 @0, error
// i32 @4 (an errno, negative), unique u64 @8.
func (fs *FS) answer(b []byte) {
	op := ne.Uint32(b[4:])
	if op == opForget || op == opBatchForget { // have no answer
		return
	}
	data, errno := fs.do(op, ne.Uint64(b[16:]), ne.Uint32(b[32:]), b[inHeader:])
	if errno != 0 {
		data = nil
	}
	head := ne.AppendUint32(nil, uint32(outHeader+len(data)))
	head = ne.AppendUint32(head, uint32(-int32(errno)))
	head = append(head, b[8:16]...)
	_, _ = unix.Writev(fs.fd, [][]byte{head, data}) // fails when nobody waits any more
}

// do gives what follows the answer's header. ENOSYS makes the kernel do without the operation.
func (fs *FS) do(op uint32, node uint64, tid uint32, b []byte) ([]byte, syscall.Errno) {
	switch op {
	case opInit:
		return initAnswer(b), 0
	case opLookup:
		return fs.lookup(node, b)
	case opGetattr:
		return fs.getattr(node)
	case opRelease, opDestroy:
		return nil, 0
	}
	f := fs.node(node)
	switch {
	case f != nil && op == opOpen:
		return f.open()
	case f != nil && op == opRead && len(b) >= 20: // struct fuse_read_in: fh u64, offset u64 @8, size u32 @16
		return f.read(int64(ne.Uint64(b[8:])), min(ne.Uint32(b[16:]), maxRead), tid)
	}
	return nil, syscall.ENOSYS
}

// node gives the file of a node, nil for the directory.
func (fs *FS) node(node uint64) *File {
	if i := node - rootNode - 1; i < uint64(len(fs.files)) {
		return fs.files[i]
	}
	return nil
}

// initAnswer is a struct fuse_init_out, 64 bytes: major u32, minor u32, max_readahead u32, flags u32,
// max_background u16, congestion_threshold u16, max_write u32, time_gran u32, max_pages u16, and
// what later versions use. Of struct fuse_init_in, flags u32 @12 are what the kernel can do.
func initAnswer(in []byte) []byte {
	offered := uint32(0)
	if len(in) >= 16 {
		offered = ne.Uint32(in[12:])
	}
	out := make([]byte, 0, 64)
	out = ne.AppendUint32(out, major)
	out = ne.AppendUint32(out, minor)
	out = ne.AppendUint32(out, 0)
	out = ne.AppendUint32(out, offered&(initAsyncDIO|initMaxPages))
	out = ne.AppendUint16(out, background)
	out = ne.AppendUint16(out, background)
	out = ne.AppendUint32(out, 4096)
	out = ne.AppendUint32(out, 1)
	out = ne.AppendUint16(out, uint16(maxRead/4096))
	return out[:cap(out)]
}

// lookup answers a name, ended by NUL, with a struct fuse_entry_out, 128 bytes: nodeid u64,
// generation u64, entry_valid u64, attr_valid u64 (seconds), two u32 of nanoseconds, then attributes.
func (fs *FS) lookup(dir uint64, name []byte) ([]byte, syscall.Errno) {
	i, ok := fs.names[unix.ByteSliceToString(name)]
	if dir != rootNode || !ok {
		return nil, syscall.ENOENT
	}
	node := uint64(rootNode + 1 + i)
	out := ne.AppendUint64(nil, node)
	out = append(out, make([]byte, 32)...)
	return fs.appendAttr(out, node), 0
}

// getattr gives a struct fuse_attr_out, 104 bytes: attr_valid u64, two u32, then attributes.
func (fs *FS) getattr(node uint64) ([]byte, syscall.Errno) {
	return fs.appendAttr(make([]byte, 16), node), 0
}

// appendAttr appends a struct fuse_attr, 88 bytes: ino u64, size u64, blocks u64, three u64 and three
// u32 of times, mode u32, nlink u32, uid u32, gid u32, rdev u32, blksize u32, flags u32.
func (fs *FS) appendAttr(out []byte, node uint64) []byte {
	size, mode := int64(0), uint32(unix.S_IFDIR|0o555)
	if f := fs.node(node); f != nil {
		size, mode = f.size, unix.S_IFREG|0o444
	}
	out = ne.AppendUint64(out, node)
	out = ne.AppendUint64(out, uint64(size))
	out = ne.AppendUint64(out, uint64(size+511)/512)
	out = append(out, make([]byte, 36)...)
	out = ne.AppendUint32(out, mode)
	out = ne.AppendUint32(out, 1)
	out = append(out, make([]byte, 12)...)
	out = ne.AppendUint32(out, 4096)
	return ne.AppendUint32(out, 0)
}

// open gives a struct fuse_open_out, 16 bytes: fh u64, open_flags u32, u32.
func (f *File) open() ([]byte, syscall.Errno) {
	if now, _ := f.state(); now.lost {
		return nil, syscall.ENXIO
	}
	out := ne.AppendUint64(nil, 0)
	out = ne.AppendUint32(out, openDirectIO|openNoFlush)
	return ne.AppendUint32(out, 0), 0
}
