package nbdwire

import (
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// The first eight bytes of every server. 0x4e42444d41474943 spells NBDMAGIC; the protocol
// package names it for the oldstyle handshake, which begins with it as well.
const greetingMagic = protocol.NEGOTIATION_MAGIC_OLDSTYLE

// AppendGreeting appends what a server says first: both magics, then its handshake flags.
func AppendGreeting(b []byte, flags uint16) []byte {
	b = binary.BigEndian.AppendUint64(b, greetingMagic)
	b = binary.BigEndian.AppendUint64(b, protocol.NEGOTIATION_MAGIC_OPTION)
	return binary.BigEndian.AppendUint16(b, flags)
}

// DecodeGreeting returns the handshake flags of a server's first 18 bytes. A server of the
// oldstyle handshake, which has another second magic, is ErrMagic.
func DecodeGreeting(b []byte) (uint16, error) {
	if len(b) < GreetingLen {
		return 0, fmt.Errorf("greeting of %d bytes: %w", len(b), ErrShort)
	}
	if m := binary.BigEndian.Uint64(b); m != greetingMagic {
		return 0, fmt.Errorf("greeting %#x: %w", m, ErrMagic)
	}
	if m := binary.BigEndian.Uint64(b[8:]); m != protocol.NEGOTIATION_MAGIC_OPTION {
		return 0, fmt.Errorf("handshake %#x: %w", m, ErrMagic)
	}
	return binary.BigEndian.Uint16(b[16:]), nil
}

// AppendClientFlags appends the client's answer to the greeting.
func AppendClientFlags(b []byte, flags uint32) []byte {
	return binary.BigEndian.AppendUint32(b, flags)
}

// DecodeClientFlags returns the client's flags. A bit that is not in offered is ErrFlags: the
// server must then close (proto.md, "Newstyle negotiation").
func DecodeClientFlags(b []byte, offered uint32) (uint32, error) {
	if len(b) < ClientFlagsLen {
		return 0, fmt.Errorf("client flags of %d bytes: %w", len(b), ErrShort)
	}
	flags := binary.BigEndian.Uint32(b)
	if flags&^offered != 0 {
		return 0, fmt.Errorf("client flags %#x, offered %#x: %w", flags, offered, ErrFlags)
	}
	return flags, nil
}

// AppendOption appends an option with its data.
func AppendOption(b []byte, id uint32, data []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, protocol.NEGOTIATION_MAGIC_OPTION)
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// DecodeOption decodes an option's header. Its Length is the client's claim, unchecked.
func DecodeOption(b []byte) (protocol.NegotiationOptionHeader, error) {
	if len(b) < OptionLen {
		return protocol.NegotiationOptionHeader{}, fmt.Errorf("option of %d bytes: %w", len(b), ErrShort)
	}
	h := protocol.NegotiationOptionHeader{
		OptionMagic: binary.BigEndian.Uint64(b),
		ID:          binary.BigEndian.Uint32(b[8:]),
		Length:      binary.BigEndian.Uint32(b[12:]),
	}
	if h.OptionMagic != protocol.NEGOTIATION_MAGIC_OPTION {
		return protocol.NegotiationOptionHeader{}, fmt.Errorf("option %#x: %w", h.OptionMagic, ErrMagic)
	}
	return h, nil
}

// AppendOptionReply appends a reply to an option with its data, which may be nil.
func AppendOptionReply(b []byte, option, typ uint32, data []byte) []byte {
	b = appendReplyHeader(b, option, typ, len(data))
	return append(b, data...)
}

func appendReplyHeader(b []byte, option, typ uint32, length int) []byte {
	b = binary.BigEndian.AppendUint64(b, protocol.NEGOTIATION_MAGIC_REPLY)
	b = binary.BigEndian.AppendUint32(b, option)
	b = binary.BigEndian.AppendUint32(b, typ)
	return binary.BigEndian.AppendUint32(b, uint32(length))
}

// DecodeOptionReply decodes the header of an option's reply. Its Length is the server's claim.
func DecodeOptionReply(b []byte) (protocol.NegotiationReplyHeader, error) {
	if len(b) < OptionReplyLen {
		return protocol.NegotiationReplyHeader{}, fmt.Errorf("option reply of %d bytes: %w", len(b), ErrShort)
	}
	h := protocol.NegotiationReplyHeader{
		ReplyMagic: binary.BigEndian.Uint64(b),
		ID:         binary.BigEndian.Uint32(b[8:]),
		Type:       binary.BigEndian.Uint32(b[12:]),
		Length:     binary.BigEndian.Uint32(b[16:]),
	}
	if h.ReplyMagic != protocol.NEGOTIATION_MAGIC_REPLY {
		return protocol.NegotiationReplyHeader{}, fmt.Errorf("option reply %#x: %w", h.ReplyMagic, ErrMagic)
	}
	return h, nil
}

// AppendListEntry appends one NBD_REP_SERVER: an export's name and, behind it, its description.
func AppendListEntry(b []byte, name, description string) []byte {
	b = appendReplyHeader(b, protocol.NEGOTIATION_ID_OPTION_LIST, protocol.NEGOTIATION_TYPE_REPLY_SERVER,
		4+len(name)+len(description))
	b = binary.BigEndian.AppendUint32(b, uint32(len(name)))
	b = append(b, name...)
	return append(b, description...)
}

// DecodeListEntry decodes the data of one NBD_REP_SERVER.
func DecodeListEntry(data []byte) (name, description string, err error) {
	if len(data) < 4 {
		return "", "", fmt.Errorf("list entry of %d bytes: %w", len(data), ErrShort)
	}
	n := binary.BigEndian.Uint32(data)
	if uint64(n) > uint64(len(data)-4) {
		return "", "", fmt.Errorf("list entry of %d bytes names %d: %w", len(data), n, ErrLength)
	}
	name, description = string(data[4:4+n]), string(data[4+n:])
	if err := CheckString(name); err != nil {
		return "", "", err
	}
	return name, description, CheckString(description)
}

// AppendExportName appends the reply to NBD_OPT_EXPORT_NAME: size, transmission flags and,
// unless both sides agreed on NO_ZEROES, 124 zero bytes.
func AppendExportName(b []byte, size uint64, flags uint16, zeroes bool) []byte {
	b = binary.BigEndian.AppendUint64(b, size)
	b = binary.BigEndian.AppendUint16(b, flags)
	if zeroes {
		b = append(b, make([]byte, ZeroesLen)...)
	}
	return b
}

// CheckString accepts what the document calls a string: UTF-8, no NUL, at most 4096 bytes.
// Anything else is ErrName.
func CheckString(s string) error {
	switch {
	case len(s) > MaxString:
		return fmt.Errorf("string of %d bytes, at most %d are allowed: %w", len(s), MaxString, ErrName)
	case strings.IndexByte(s, 0) >= 0:
		return fmt.Errorf("string holds a NUL: %w", ErrName)
	case !utf8.ValidString(s):
		return fmt.Errorf("string is not UTF-8: %w", ErrName)
	}
	return nil
}

// Shorten cuts s to at most n bytes without splitting a character and marks the cut. n must
// be at least the three bytes of the mark.
func Shorten(s string, n int) string {
	if len(s) <= n {
		return s
	}
	n -= len("...")
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "..."
}
