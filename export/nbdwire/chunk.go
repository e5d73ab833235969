package nbdwire

import (
	"encoding/binary"
	"fmt"
)

// The magics of structured replies and extended headers.
const (
	magicChunk           = uint32(0x668e33ef)
	magicExtendedRequest = uint32(0x21e41c71)
	magicExtendedChunk   = uint32(0x6e8a278c)
)

// Request is a request of either form. With CmdFlagPayloadLen in an extended one, Length is
// that of the payload behind it.
type Request struct {
	Flags, Type    uint16
	Cookie, Offset uint64
	Length         uint64
}

// AppendExtendedRequest appends magic u32, flags u16, type u16, cookie u64, offset u64, length u64.
func AppendExtendedRequest(b []byte, r Request) []byte {
	return appendExtended(b, magicExtendedRequest, r)
}

// DecodeExtendedRequest decodes the first 32 bytes of b. It does not allocate unless it fails.
func DecodeExtendedRequest(b []byte) (Request, error) {
	return decodeExtended(b, magicExtendedRequest, "extended request")
}

// appendExtended appends a header of extended headers' one layout, which requests and chunks share.
func appendExtended(b []byte, magic uint32, r Request) []byte {
	b = binary.BigEndian.AppendUint32(b, magic)
	b = binary.BigEndian.AppendUint16(b, r.Flags)
	b = binary.BigEndian.AppendUint16(b, r.Type)
	b = binary.BigEndian.AppendUint64(b, r.Cookie)
	b = binary.BigEndian.AppendUint64(b, r.Offset)
	return binary.BigEndian.AppendUint64(b, r.Length)
}

// decodeExtended decodes what appendExtended appends; what names it in errors.
func decodeExtended(b []byte, magic uint32, what string) (Request, error) {
	if len(b) < ExtendedRequestLen {
		return Request{}, fmt.Errorf("%s of %d bytes: %w", what, len(b), ErrShort)
	}
	if m := binary.BigEndian.Uint32(b); m != magic {
		return Request{}, fmt.Errorf("%s %#x: %w", what, m, ErrMagic)
	}
	return Request{
		Flags:  binary.BigEndian.Uint16(b[4:]),
		Type:   binary.BigEndian.Uint16(b[6:]),
		Cookie: binary.BigEndian.Uint64(b[8:]),
		Offset: binary.BigEndian.Uint64(b[16:]),
		Length: binary.BigEndian.Uint64(b[24:]),
	}, nil
}

// Chunk is the header of one part of a structured reply; Length bytes follow it.
type Chunk struct {
	Flags, Type uint16
	Cookie      uint64
	Offset      uint64 // of the request; extended headers alone carry it
	Length      uint64
}

// AppendChunk appends a structured chunk's header: magic u32, flags u16, type u16, cookie u64, length
// u32. Offset is not sent. Length is below 2^32.
func AppendChunk(b []byte, c Chunk) []byte {
	b = binary.BigEndian.AppendUint32(b, magicChunk)
	b = binary.BigEndian.AppendUint16(b, c.Flags)
	b = binary.BigEndian.AppendUint16(b, c.Type)
	b = binary.BigEndian.AppendUint64(b, c.Cookie)
	return binary.BigEndian.AppendUint32(b, uint32(c.Length))
}

// AppendExtendedChunk appends the same under extended headers: between cookie and length stands the
// offset, and both are u64.
func AppendExtendedChunk(b []byte, c Chunk) []byte {
	return appendExtended(b, magicExtendedChunk, Request(c))
}

// SetDone sets ReplyFlagDone in an encoded header: the flags stand at the same place in both forms.
func SetDone(header []byte) { header[5] |= byte(ReplyFlagDone) }

// IsSimpleReply tells a simple reply from a chunk by its first four bytes: after structured replies
// were negotiated a server may send either.
func IsSimpleReply(b []byte) bool {
	return len(b) >= 4 && binary.BigEndian.Uint32(b) != magicChunk
}

// DecodeChunk decodes the first 20 bytes of b. Length is the server's claim.
func DecodeChunk(b []byte) (Chunk, error) {
	if len(b) < ChunkLen {
		return Chunk{}, fmt.Errorf("chunk of %d bytes: %w", len(b), ErrShort)
	}
	if m := binary.BigEndian.Uint32(b); m != magicChunk {
		return Chunk{}, fmt.Errorf("chunk %#x: %w", m, ErrMagic)
	}
	return Chunk{
		Flags:  binary.BigEndian.Uint16(b[4:]),
		Type:   binary.BigEndian.Uint16(b[6:]),
		Cookie: binary.BigEndian.Uint64(b[8:]),
		Length: uint64(binary.BigEndian.Uint32(b[16:])),
	}, nil
}

// DecodeExtendedChunk decodes the first 32 bytes of b. Length is the server's claim.
func DecodeExtendedChunk(b []byte) (Chunk, error) {
	h, err := decodeExtended(b, magicExtendedChunk, "extended chunk")
	return Chunk(h), err
}

// ErrorChunk is the payload of ReplyError and ReplyErrorOffset.
type ErrorChunk struct {
	Errno  uint32
	Text   string
	Offset uint64 // of ReplyErrorOffset
}

// AppendErrorChunk appends u32 error, u16 length of the text, the text and, for ReplyErrorOffset, u64
// offset. The text is a string as CheckString has it.
func AppendErrorChunk(b []byte, typ uint16, e ErrorChunk) []byte {
	b = binary.BigEndian.AppendUint32(b, e.Errno)
	b = binary.BigEndian.AppendUint16(b, uint16(len(e.Text)))
	b = append(b, e.Text...)
	if typ == ReplyErrorOffset {
		b = binary.BigEndian.AppendUint64(b, e.Offset)
	}
	return b
}

// DecodeErrorChunk decodes the payload of a chunk whose type has ReplyErrorFlag. What follows the text
// in types that are not known here is ignored.
func DecodeErrorChunk(typ uint16, payload []byte) (ErrorChunk, error) {
	rest := 6
	if typ == ReplyErrorOffset {
		rest += 8
	}
	if len(payload) < rest {
		return ErrorChunk{}, fmt.Errorf("error chunk of %d bytes: %w", len(payload), ErrShort)
	}
	e := ErrorChunk{Errno: binary.BigEndian.Uint32(payload)}
	n := int(binary.BigEndian.Uint16(payload[4:]))
	if n > len(payload)-rest || (typ == ReplyErrorOffset && n != len(payload)-rest) {
		return ErrorChunk{}, fmt.Errorf("error chunk of %d bytes with a text of %d: %w", len(payload), n, ErrLength)
	}
	if e.Errno == 0 {
		return ErrorChunk{}, fmt.Errorf("error chunk without an error: %w", ErrLength)
	}
	e.Text = string(payload[6 : 6+n])
	if typ == ReplyErrorOffset {
		e.Offset = binary.BigEndian.Uint64(payload[6+n:])
	}
	return e, CheckString(e.Text)
}
