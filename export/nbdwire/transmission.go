package nbdwire

import (
	"encoding/binary"
	"fmt"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// AppendRequest appends a compact request: magic u32, flags u16, type u16, cookie u64,
// offset u64, length u32. RequestMagic of h is ignored.
func AppendRequest(b []byte, h protocol.TransmissionRequestHeader) []byte {
	b = binary.BigEndian.AppendUint32(b, protocol.TRANSMISSION_MAGIC_REQUEST)
	b = binary.BigEndian.AppendUint16(b, h.CommandFlags)
	b = binary.BigEndian.AppendUint16(b, h.Type)
	b = binary.BigEndian.AppendUint64(b, h.Handle)
	b = binary.BigEndian.AppendUint64(b, h.Offset)
	return binary.BigEndian.AppendUint32(b, h.Length)
}

// DecodeRequest decodes the first 28 bytes of b. It does not allocate unless it fails.
func DecodeRequest(b []byte) (protocol.TransmissionRequestHeader, error) {
	if len(b) < RequestLen {
		return protocol.TransmissionRequestHeader{}, fmt.Errorf("request of %d bytes: %w", len(b), ErrShort)
	}
	h := protocol.TransmissionRequestHeader{
		RequestMagic: binary.BigEndian.Uint32(b),
		CommandFlags: binary.BigEndian.Uint16(b[4:]),
		Type:         binary.BigEndian.Uint16(b[6:]),
		Handle:       binary.BigEndian.Uint64(b[8:]),
		Offset:       binary.BigEndian.Uint64(b[16:]),
		Length:       binary.BigEndian.Uint32(b[24:]),
	}
	if h.RequestMagic != protocol.TRANSMISSION_MAGIC_REQUEST {
		return protocol.TransmissionRequestHeader{}, fmt.Errorf("request %#x: %w", h.RequestMagic, ErrMagic)
	}
	return h, nil
}

// PutSimpleReply writes a simple reply's header: magic u32, error u32, cookie u64.
func PutSimpleReply(b *[SimpleReplyLen]byte, errno uint32, cookie uint64) {
	binary.BigEndian.PutUint32(b[0:], protocol.TRANSMISSION_MAGIC_REPLY)
	binary.BigEndian.PutUint32(b[4:], errno)
	binary.BigEndian.PutUint64(b[8:], cookie)
}

// DecodeSimpleReply decodes the first 16 bytes of b. An error value outside the document's
// list is passed on as it is.
func DecodeSimpleReply(b []byte) (protocol.TransmissionReplyHeader, error) {
	if len(b) < SimpleReplyLen {
		return protocol.TransmissionReplyHeader{}, fmt.Errorf("reply of %d bytes: %w", len(b), ErrShort)
	}
	h := protocol.TransmissionReplyHeader{
		ReplyMagic: binary.BigEndian.Uint32(b),
		Error:      binary.BigEndian.Uint32(b[4:]),
		Handle:     binary.BigEndian.Uint64(b[8:]),
	}
	if h.ReplyMagic != protocol.TRANSMISSION_MAGIC_REPLY {
		return protocol.TransmissionReplyHeader{}, fmt.Errorf("reply %#x: %w", h.ReplyMagic, ErrMagic)
	}
	return h, nil
}
