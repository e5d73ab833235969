package nbdwire

import (
	"encoding/binary"
	"fmt"
)

// MetaQuery is the data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT: an export's name and
// which contexts are asked for.
type MetaQuery struct {
	Name    string
	Queries []string
}

// AppendMetaQuery appends q: u32 length of the name, the name, u32 count, and for each query u32 length
// and the query.
func AppendMetaQuery(b []byte, q MetaQuery) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(q.Name)))
	b = append(b, q.Name...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(q.Queries)))
	for _, s := range q.Queries {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	return b
}

// DecodeMetaQuery decodes the whole data of an option. ErrShort, ErrLength and ErrName all mean
// NBD_REP_ERR_INVALID.
func DecodeMetaQuery(data []byte) (MetaQuery, error) {
	var q MetaQuery
	var err error
	if q.Name, data, err = cutString(data); err != nil {
		return MetaQuery{}, fmt.Errorf("export name: %w", err)
	}
	if len(data) < 4 {
		return MetaQuery{}, fmt.Errorf("number of queries in %d bytes: %w", len(data), ErrShort)
	}
	count := binary.BigEndian.Uint32(data)
	data = data[4:]
	if uint64(count)*4 > uint64(len(data)) {
		return MetaQuery{}, fmt.Errorf("%d queries in %d bytes: %w", count, len(data), ErrLength)
	}
	for i := range count {
		var s string
		if s, data, err = cutString(data); err != nil {
			return MetaQuery{}, fmt.Errorf("query %d: %w", i, err)
		}
		q.Queries = append(q.Queries, s)
	}
	if len(data) > 0 {
		return MetaQuery{}, fmt.Errorf("%d bytes behind the queries: %w", len(data), ErrLength)
	}
	return q, nil
}

// cutString takes a u32 length and so many bytes of a string off data.
func cutString(data []byte) (s string, rest []byte, err error) {
	if len(data) < 4 {
		return "", nil, fmt.Errorf("length in %d bytes: %w", len(data), ErrShort)
	}
	n := binary.BigEndian.Uint32(data)
	if uint64(n) > uint64(len(data)-4) {
		return "", nil, fmt.Errorf("string of %d bytes in %d: %w", n, len(data)-4, ErrLength)
	}
	s = string(data[4 : 4+n])
	return s, data[4+n:], CheckString(s)
}

// AppendMetaContext appends one NBD_REP_META_CONTEXT: u32 id and the context's name.
func AppendMetaContext(b []byte, option, id uint32, name string) []byte {
	b = appendReplyHeader(b, option, RepMetaContext, 4+len(name))
	b = binary.BigEndian.AppendUint32(b, id)
	return append(b, name...)
}

// DecodeMetaContext decodes the data of an NBD_REP_META_CONTEXT.
func DecodeMetaContext(data []byte) (id uint32, name string, err error) {
	if len(data) < 4 {
		return 0, "", fmt.Errorf("metadata context of %d bytes: %w", len(data), ErrShort)
	}
	name = string(data[4:])
	return binary.BigEndian.Uint32(data), name, CheckString(name)
}

// Descriptor is what a metadata context says of so many bytes.
type Descriptor struct {
	Length uint64
	Status uint64
}

// AppendBlockStatus appends the payload of ReplyBlockStatus, or under extended headers of
// ReplyBlockStatusExt. In the former lengths and states are below 2^32.
func AppendBlockStatus(b []byte, extended bool, id uint32, list []Descriptor) []byte {
	b = binary.BigEndian.AppendUint32(b, id)
	if !extended {
		for _, d := range list {
			b = binary.BigEndian.AppendUint32(b, uint32(d.Length))
			b = binary.BigEndian.AppendUint32(b, uint32(d.Status))
		}
		return b
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(list)))
	for _, d := range list {
		b = binary.BigEndian.AppendUint64(b, d.Length)
		b = binary.BigEndian.AppendUint64(b, d.Status)
	}
	return b
}

// DecodeBlockStatus decodes the payload of a chunk of type typ, which is one of the two.
func DecodeBlockStatus(typ uint16, payload []byte) (id uint32, list []Descriptor, err error) {
	head, unit := 4, 8
	if typ == ReplyBlockStatusExt {
		head, unit = 8, 16
	}
	n := len(payload) - head
	if n < unit || n%unit != 0 {
		return 0, nil, fmt.Errorf("block status of %d bytes: %w", len(payload), ErrLength)
	}
	if typ == ReplyBlockStatusExt && uint64(binary.BigEndian.Uint32(payload[4:])) != uint64(n/unit) {
		return 0, nil, fmt.Errorf("block status of %d bytes with another count: %w", len(payload), ErrLength)
	}
	for at := head; at < len(payload); at += unit {
		d := Descriptor{uint64(binary.BigEndian.Uint32(payload[at:])), uint64(binary.BigEndian.Uint32(payload[at+4:]))}
		if unit == 16 {
			d = Descriptor{binary.BigEndian.Uint64(payload[at:]), binary.BigEndian.Uint64(payload[at+8:])}
		}
		if d.Length == 0 {
			return 0, nil, fmt.Errorf("block status of 0 bytes: %w", ErrLength)
		}
		list = append(list, d)
	}
	return binary.BigEndian.Uint32(payload), list, nil
}
