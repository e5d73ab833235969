package kernelnbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Lengths of headers, in bytes, and what everything is padded to.
const (
	messageHeader = 16 // struct nlmsghdr: len u32 @0, type u16 @4, flags u16 @6, seq u32 @8, pid u32 @12
	genericHeader = 4  // struct genlmsghdr: cmd u8 @0, version u8 @1, reserved u16 @2
	attrHeader    = 4  // struct nlattr: len u16 @0 with the header, type u16 @2
	alignment     = 4
)

// attrTypeMask drops the two flags of an attribute: nested, and network byte order.
const attrTypeMask = 0x3fff

// errWire is a message of the kernel that does not hold what it says.
var errWire = errors.New("malformed netlink message")

// Numbers are in the machine's own order.
var ne = binary.NativeEndian

// message is one netlink message. body lies in the buffer that it was decoded from.
type message struct {
	typ, flags uint16
	seq        uint32
	body       []byte
}

// appendMessage appends m with its padding.
func appendMessage(b []byte, m message) []byte {
	b = ne.AppendUint32(b, uint32(messageHeader+len(m.body)))
	b = ne.AppendUint16(b, m.typ)
	b = ne.AppendUint16(b, m.flags)
	b = ne.AppendUint32(b, m.seq)
	b = ne.AppendUint32(b, 0) // to the kernel
	return pad(append(b, m.body...))
}

// cutMessage takes the first message off b.
func cutMessage(b []byte) (m message, rest []byte, err error) {
	if len(b) < messageHeader {
		return message{}, nil, fmt.Errorf("%w: %d bytes", errWire, len(b))
	}
	n := ne.Uint32(b)
	if n < messageHeader || uint64(n) > uint64(len(b)) {
		return message{}, nil, fmt.Errorf("%w: length %d in %d bytes", errWire, n, len(b))
	}
	m = message{typ: ne.Uint16(b[4:]), flags: ne.Uint16(b[6:]), seq: ne.Uint32(b[8:]), body: b[messageHeader:n]}
	return m, b[min(padded(int(n)), len(b)):], nil
}

// failure returns the error in the body of NLMSG_ERROR, nil for an acknowledgement: an i32, negative, before
// the message that it answers.
func (m message) failure() error {
	if len(m.body) < 4 {
		return fmt.Errorf("%w: error of %d bytes", errWire, len(m.body))
	}
	switch n := int32(ne.Uint32(m.body)); {
	case n == 0:
		return nil
	case n > 0 || n < -4095: // the kernel's MAX_ERRNO
		return fmt.Errorf("%w: error %d", errWire, n)
	default:
		return syscall.Errno(-n)
	}
}

// generic splits the body of a message of a generic family.
func (m message) generic() (cmd uint8, attrs []byte, err error) {
	if len(m.body) < genericHeader {
		return 0, nil, fmt.Errorf("%w: generic message of %d bytes", errWire, len(m.body))
	}
	return m.body[0], m.body[genericHeader:], nil
}

// appendGeneric appends a generic family's header.
func appendGeneric(b []byte, cmd, version uint8) []byte { return append(b, cmd, version, 0, 0) }

// appendAttr appends an attribute with its padding. Precondition: len(data) < 2^16 - 4.
func appendAttr(b []byte, typ uint16, data []byte) []byte {
	b = ne.AppendUint16(b, uint16(attrHeader+len(data)))
	b = ne.AppendUint16(b, typ)
	return pad(append(b, data...))
}

func appendUint32(b []byte, typ uint16, v uint32) []byte {
	return appendAttr(b, typ, ne.AppendUint32(nil, v))
}

func appendUint64(b []byte, typ uint16, v uint64) []byte {
	return appendAttr(b, typ, ne.AppendUint64(nil, v))
}

// appendString appends s with the NUL that the kernel's NLA_STRING may have.
func appendString(b []byte, typ uint16, s string) []byte {
	return appendAttr(b, typ, append([]byte(s), 0))
}

func appendNested(b []byte, typ uint16, attrs []byte) []byte {
	return appendAttr(b, typ|unix.NLA_F_NESTED, attrs)
}

// eachAttr hands every attribute of b to take, its type without flags. A few bytes at the end that are too
// short for a header are an error.
func eachAttr(b []byte, take func(typ uint16, data []byte) error) error {
	for len(b) > 0 {
		if len(b) < attrHeader {
			return fmt.Errorf("%w: attribute of %d bytes", errWire, len(b))
		}
		n := int(ne.Uint16(b))
		if n < attrHeader || n > len(b) {
			return fmt.Errorf("%w: attribute length %d in %d bytes", errWire, n, len(b))
		}
		if err := take(ne.Uint16(b[2:])&attrTypeMask, b[attrHeader:n]); err != nil {
			return err
		}
		b = b[min(padded(n), len(b)):]
	}
	return nil
}

// number returns the value of an attribute that must be a u8, u16, u32 or u64: size says how many bytes.
func number(data []byte, size int) (uint64, error) {
	if len(data) != size {
		return 0, fmt.Errorf("%w: number of %d bytes, want %d", errWire, len(data), size)
	}
	switch size {
	case 1:
		return uint64(data[0]), nil
	case 2:
		return uint64(ne.Uint16(data)), nil
	case 4:
		return uint64(ne.Uint32(data)), nil
	}
	return ne.Uint64(data), nil
}

// text returns a string attribute up to its NUL.
func text(data []byte) string { return unix.ByteSliceToString(data) }

func padded(n int) int { return (n + alignment - 1) &^ (alignment - 1) }

func pad(b []byte) []byte {
	for len(b)%alignment != 0 {
		b = append(b, 0)
	}
	return b
}
