package nbdwire

import (
	"encoding/binary"
	"fmt"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// InfoRequest is the data of NBD_OPT_INFO and NBD_OPT_GO: a name and which kinds of
// information the client asks for. Types may repeat and may hold unknown numbers.
type InfoRequest struct {
	Name  string
	Types []uint16
}

// Wants tells whether the client asked for information of type typ.
func (r *InfoRequest) Wants(typ uint16) bool {
	for _, t := range r.Types {
		if t == typ {
			return true
		}
	}
	return false
}

// AppendInfoRequest appends r: u32 length of the name, the name, u16 count, count u16 types.
func AppendInfoRequest(b []byte, r InfoRequest) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.Name)))
	b = append(b, r.Name...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(r.Types)))
	for _, t := range r.Types {
		b = binary.BigEndian.AppendUint16(b, t)
	}
	return b
}

// DecodeInfoRequest decodes the whole data of an INFO or GO option. ErrShort, ErrLength and
// ErrName all mean NBD_REP_ERR_INVALID.
func DecodeInfoRequest(data []byte) (InfoRequest, error) {
	if len(data) < 6 {
		return InfoRequest{}, fmt.Errorf("option data of %d bytes: %w", len(data), ErrShort)
	}
	n := binary.BigEndian.Uint32(data)
	if uint64(n) > uint64(len(data)-6) {
		return InfoRequest{}, fmt.Errorf("name of %d bytes in option data of %d: %w", n, len(data), ErrLength)
	}
	rest := data[4+n:]
	count := int(binary.BigEndian.Uint16(rest))
	if len(rest)-2 != 2*count {
		return InfoRequest{}, fmt.Errorf("%d information requests in %d bytes: %w", count, len(rest)-2, ErrLength)
	}
	r := InfoRequest{Name: string(data[4 : 4+n]), Types: make([]uint16, count)}
	for i := range r.Types {
		r.Types[i] = binary.BigEndian.Uint16(rest[2+2*i:])
	}
	return r, CheckString(r.Name)
}

// AppendInfoExport appends an NBD_REP_INFO with NBD_INFO_EXPORT.
func AppendInfoExport(b []byte, option uint32, size uint64, flags uint16) []byte {
	b = appendReplyHeader(b, option, protocol.NEGOTIATION_TYPE_REPLY_INFO, 12)
	b = binary.BigEndian.AppendUint16(b, protocol.NEGOTIATION_TYPE_INFO_EXPORT)
	b = binary.BigEndian.AppendUint64(b, size)
	return binary.BigEndian.AppendUint16(b, flags)
}

// AppendInfoString appends an NBD_REP_INFO with NBD_INFO_NAME or NBD_INFO_DESCRIPTION.
func AppendInfoString(b []byte, option uint32, typ uint16, s string) []byte {
	b = appendReplyHeader(b, option, protocol.NEGOTIATION_TYPE_REPLY_INFO, 2+len(s))
	b = binary.BigEndian.AppendUint16(b, typ)
	return append(b, s...)
}

// BlockSizes are the sizes in bytes of NBD_INFO_BLOCK_SIZE.
type BlockSizes struct {
	Minimum, Preferred, Maximum uint32
}

// AppendInfoBlockSize appends an NBD_REP_INFO with NBD_INFO_BLOCK_SIZE.
func AppendInfoBlockSize(b []byte, option uint32, s BlockSizes) []byte {
	b = appendReplyHeader(b, option, protocol.NEGOTIATION_TYPE_REPLY_INFO, 14)
	b = binary.BigEndian.AppendUint16(b, protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE)
	b = binary.BigEndian.AppendUint32(b, s.Minimum)
	b = binary.BigEndian.AppendUint32(b, s.Preferred)
	return binary.BigEndian.AppendUint32(b, s.Maximum)
}

// Info is one decoded NBD_REP_INFO. Type tells which of the other fields are set; all stay
// zero for a type that is not known here.
type Info struct {
	Type   uint16
	Size   uint64     // NBD_INFO_EXPORT
	Flags  uint16     // NBD_INFO_EXPORT
	Text   string     // NBD_INFO_NAME, NBD_INFO_DESCRIPTION
	Blocks BlockSizes // NBD_INFO_BLOCK_SIZE
}

// DecodeInfo decodes the data of an NBD_REP_INFO.
func DecodeInfo(data []byte) (Info, error) {
	if len(data) < 2 {
		return Info{}, fmt.Errorf("information of %d bytes: %w", len(data), ErrShort)
	}
	info, body := Info{Type: binary.BigEndian.Uint16(data)}, data[2:]
	switch info.Type {
	case protocol.NEGOTIATION_TYPE_INFO_EXPORT:
		if len(body) != 10 {
			return Info{}, fmt.Errorf("NBD_INFO_EXPORT of %d bytes: %w", len(data), ErrLength)
		}
		info.Size, info.Flags = binary.BigEndian.Uint64(body), binary.BigEndian.Uint16(body[8:])
	case protocol.NEGOTIATION_TYPE_INFO_NAME, protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION:
		info.Text = string(body)
		return info, CheckString(info.Text)
	case protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE:
		if len(body) != 12 {
			return Info{}, fmt.Errorf("NBD_INFO_BLOCK_SIZE of %d bytes: %w", len(data), ErrLength)
		}
		info.Blocks = BlockSizes{
			Minimum:   binary.BigEndian.Uint32(body),
			Preferred: binary.BigEndian.Uint32(body[4:]),
			Maximum:   binary.BigEndian.Uint32(body[8:]),
		}
		return info, info.Blocks.check()
	}
	return info, nil
}

// check applies the rules of proto.md, "Block size constraints".
func (s BlockSizes) check() error {
	powers := isPower(s.Minimum) && isPower(s.Preferred)
	if !powers || s.Minimum > 1<<16 || s.Preferred < max(s.Minimum, 512) || s.Maximum < s.Preferred {
		return fmt.Errorf("block sizes %d, %d, %d: %w", s.Minimum, s.Preferred, s.Maximum, ErrLength)
	}
	return nil
}

func isPower(n uint32) bool { return n != 0 && n&(n-1) == 0 }
