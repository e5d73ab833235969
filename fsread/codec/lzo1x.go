package codec

import "encoding/binary"

// lzo1xSlack is how many bytes past its limit lzo1x may write.
const lzo1xSlack = 16

// What an instruction below 16 means depends on how many literals came before it.
const (
	afterMatch = 0 // none: it is a run of literals
	// 1 to 3 literals, told by the last two bits of a match: it is a match of 2 bytes
	afterRun = 4 // a run of literals: it is a match of 3 bytes
)

// lzo1x inflates the LZO1X block src[at:end] into dst and returns the length of the output, at most limit.
// dst has room for limit, which is at least 512, and lzo1xSlack bytes; what stands behind the output is undefined. The block has to
// end with the end marker exactly at end. It follows the description of the stream in the kernel's
// Documentation/staging/lzo.rst, in version 0, the one that btrfs writes.
//
// Bounds are checked once for each instruction, against limit and end; copies of whole words may then go
// past both, into the slack of dst and to the end of src.
func lzo1x(dst []byte, limit int, src []byte, at, end int) (int, error) {
	dst = dst[:limit+lzo1xSlack]
	ip, op := at, 0
	state := afterMatch
	if ip < end && src[ip] > 17 { // a first run of literals may be told by one byte
		n := int(src[ip]) - 17
		ip++
		if n > end-ip {
			return 0, lzoError(ip-1, "first run of %d literals: %d bytes in are left", n, end-ip)
		}
		copyLiterals(dst, op, src, ip, n)
		ip, op = ip+n, n
		state = min(n, afterRun)
	}
	for {
		if ip >= end {
			return 0, lzoError(ip, "no end marker")
		}
		start := ip
		t := int(src[ip])
		ip++
		// The two most frequent instructions, where nothing is odd about them, with operand and literals in one load.
		// What they mean, and what may be odd, stands below.
		if t >= 64 && end-ip >= 4 {
			operand := binary.LittleEndian.Uint32(src[ip:])
			length, dist, trailing := t>>5+1, int(operand&255)<<3+t>>2&7+1, t&3
			if dist >= 8 && dist <= op && length+trailing <= limit-op {
				binary.LittleEndian.PutUint64(dst[op:], binary.LittleEndian.Uint64(dst[op-dist:]))
				op += length
				binary.LittleEndian.PutUint32(dst[op:], operand>>8)
				ip, op, state = ip+1+trailing, op+trailing, trailing
				continue
			}
		}
		if length := t&31 + 2; t >= 32 && t < 64 && length > 2 && end-ip >= 8 {
			operand := binary.LittleEndian.Uint64(src[ip:])
			dist, trailing := int(operand&0xFFFF>>2)+1, int(operand&3)
			if dist >= 16 && dist <= op && length+trailing <= limit-op {
				for from, to := op-dist, op; to < op+length; from, to = from+16, to+16 {
					*(*[16]byte)(dst[to:]) = *(*[16]byte)(dst[from:])
				}
				op += length
				binary.LittleEndian.PutUint32(dst[op:], uint32(operand>>16))
				ip, op, state = ip+2+trailing, op+trailing, trailing
				continue
			}
		}
		var length, dist, trailing int
		switch {
		case t >= 64: // 3 to 8 bytes from within 2 KiB; as 01LDDDSS and 1LLDDDSS differ in the base alone, t/32+1 is the length
			if ip >= end {
				return 0, lzoError(start, "instruction cut off")
			}
			length = t>>5 + 1
			dist = int(src[ip])<<3 + t>>2&7 + 1
			trailing = t & 3
			ip++
		case t >= 16: // 001LLLLL within 16 KiB, 0001HLLL within 16 to 48 KiB; both: LE16 of distance and trailing literals
			mask := 31
			if t < 32 {
				mask = 7
			}
			length = t & mask
			if length == 0 {
				length, ip = lzo1xLong(src, ip, end, mask, limit)
			}
			length += 2
			if end-ip < 2 {
				return 0, lzoError(start, "instruction cut off")
			}
			operand := int(binary.LittleEndian.Uint16(src[ip:]))
			ip += 2
			trailing = operand & 3
			dist = operand>>2 + 1
			if t < 32 {
				dist += 16383 + t&8<<11
				if dist == 16384 {
					return lzo1xEnd(op, start, ip, end, length)
				}
			}
		case state == afterMatch: // 0000LLLL: run of literals
			n := t
			if n == 0 {
				n, ip = lzo1xLong(src, ip, end, 15, limit)
			}
			n += 3
			if n > end-ip || n > limit-op {
				return 0, lzoError(start, "run of %d literals: %d bytes in, %d out are left", n, end-ip, limit-op)
			}
			copyLiterals(dst, op, src, ip, n)
			ip, op = ip+n, op+n
			state = afterRun
			continue
		default: // 0000DDSS: 2 bytes from within 1 KiB, or 3 bytes from the KiB behind 2 KiB
			if ip >= end {
				return 0, lzoError(start, "instruction cut off")
			}
			length = 2
			dist = int(src[ip])<<2 + t>>2 + 1
			if state == afterRun {
				length, dist = 3, dist+2048
			}
			trailing = t & 3
			ip++
		}
		if dist > op || length+trailing > limit-op || trailing > end-ip {
			return 0, lzoError(start, "match of %d bytes, distance %d, then %d literals: %d bytes in, %d out are left, %d were put out",
				length, dist, trailing, end-ip, limit-op, op)
		}
		copyMatch(dst, op, dist, length)
		op += length
		state = trailing
		if trailing > 0 {
			copyLiterals(dst, op, src, ip, trailing)
			ip, op = ip+trailing, op+trailing
		}
	}
}

// lzo1xEnd judges the end marker: a match of 3 bytes that has no distance, and nothing behind it.
func lzo1xEnd(op, start, ip, end, length int) (int, error) {
	if length != 3 || ip != end {
		return 0, lzoError(start, "end marker of length %d, %d bytes behind it", length, end-ip)
	}
	return op, nil
}

// lzo1xLong reads a length that does not fit into its instruction: base, 255 for each zero byte, and the byte
// that is not zero. For one that is cut off it returns a length above limit, which the caller refuses.
func lzo1xLong(src []byte, ip, end, base, limit int) (length, next int) {
	for length = base; ip < end; length += 255 {
		b := int(src[ip])
		ip++
		if b != 0 {
			return length + b, ip
		}
	}
	return limit + 1, ip
}

// copyLiterals copies n bytes, short ones as one chunk of 16. Precondition: op+n is within the limit of dst.
func copyLiterals(dst []byte, op int, src []byte, ip, n int) {
	if n <= 16 && len(src)-ip >= 16 {
		*(*[16]byte)(dst[op:]) = *(*[16]byte)(src[ip:])
		return
	}
	copy(dst[op:op+n], src[ip:])
}

// copyMatch repeats n bytes from dist back. Precondition: 1 <= dist <= op, op+n is within the limit of dst.
func copyMatch(dst []byte, op, dist, n int) {
	from, end := op-dist, op+n
	switch {
	case dist >= 16 && n <= 64:
		for ; op < end; from, op = from+16, op+16 {
			*(*[16]byte)(dst[op:]) = *(*[16]byte)(dst[from:])
		}
	case dist >= 8 && n <= 64:
		for ; op < end; from, op = from+8, op+8 {
			*(*[8]byte)(dst[op:]) = *(*[8]byte)(dst[from:])
		}
	default: // what stands between from and op is a whole number of periods, so that the copies double
		for op < end {
			op += copy(dst[op:end], dst[from:op])
		}
	}
}
