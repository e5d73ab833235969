package codec

import (
	"encoding/binary"
	"errors"
	"math/bits"
)

// A deflate stream (RFC 1951), whole in memory, goes into a slice that bounds it: there is no window and no reader,
// and matches are copied from the output to itself. What is refused is what compress/flate refuses.

// An entry of a table tells what the next bits of the stream mean: how many they are, extra bits included (its bits
// 0 to 7), how many of them are the code (8 to 12), and a value (16 to 30): a literal, or the least length or
// distance, to which the extra bits are added. A link has the start of a subtable for its value, and how many bits
// index that in 8 to 12.
const (
	entryLiteral = 1 << 31
	entryNone    = 1 << 15 // no such code
	entryEnd     = 1 << 14 // of the block
	entryLink    = 1 << 13
	entryOther   = entryNone | entryEnd | entryLink
)

const (
	literalBits  = 11
	distanceBits = 8
	lengthBits   = 7 // of the code that code lengths are written in; it has none that are longer
	maxCodeBits  = 15

	// Entries that complete codes of at most 15 bits take, with tables of these bits, at most: as zlib's
	// examples/enough.c counts them, for 288 and for 32 symbols.
	literalEntries  = 2342
	distanceEntries = 402

	maxMatch = 258
	// A turn of the fast loop loads 8 bytes twice, and puts out two literals and a match, of which the last 8 bytes
	// may go past its end.
	inMargin  = 2 * 8
	outMargin = 2 + maxMatch + 8
)

var (
	errCutOff   = errors.New("stream cut off")
	errCode     = errors.New("no such code")
	errLengths  = errors.New("code lengths that no code has")
	errDistance = errors.New("distance above the output so far")
	errStored   = errors.New("stored length and its complement differ")
	errBlock    = errors.New("reserved block type")
)

// The entries of all symbols, without their codes.
var (
	literalSymbols, distanceSymbols, lengthSymbols = symbols()

	// lengthOrder is the order in which the lengths of the code for lengths are written.
	lengthOrder = [...]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}
)

func symbols() (literals [288]uint32, distances [32]uint32, lengths [19]uint32) {
	for i := range 256 {
		literals[i] = entryLiteral | uint32(i)<<16
	}
	literals[256] = entryEnd
	base := uint32(3)
	for i := uint32(0); i < 28; i++ { // four lengths for each number of extra bits, the first eight have none
		extra := max(i/4, 1) - 1
		literals[257+i] = base<<16 | extra
		base += 1 << extra
	}
	literals[285] = maxMatch << 16
	literals[286], literals[287] = entryNone, entryNone
	base = 1
	for i := range uint32(30) { // two distances, the first four have no extra bits
		extra := max(i/2, 1) - 1
		distances[i] = base<<16 | extra
		base += 1 << extra
	}
	distances[30], distances[31] = entryNone, entryNone
	for i := range lengths {
		lengths[i] = uint32(i) << 16
	}
	return literals, distances, lengths
}

// inflater inflates deflate streams, one after the other.
type inflater struct {
	literals  [literalEntries]uint32 // of the block that is being read, as distances
	distances [distanceEntries]uint32
	lengths   [1 << lengthBits]uint32
	fixed     bool // literals and distances are those of fixed codes

	src  []byte
	at   int    // of src, the first byte that is not in buf
	buf  uint64 // the bits before it, lowest first; those above have are the next ones of src, or zero
	have uint
	dst  []byte
	n    int // bytes put out
}

// inflate puts out the stream that src starts with until dst is full or the stream ends, and returns the number of
// bytes. f.at is then behind the last byte of src that was looked at.
func (f *inflater) inflate(dst, src []byte) (int, error) {
	f.dst, f.n = dst, 0
	f.src, f.at, f.buf, f.have = src, 0, 0, 0
	last, err := false, error(nil)
	for !last && err == nil && f.n < len(dst) {
		last, err = f.block()
	}
	f.unread()
	f.dst, f.src = nil, nil
	return f.n, err
}

// unread gives whole bytes back and drops the bits before them.
func (f *inflater) unread() {
	f.at -= int(f.have / 8)
	f.buf, f.have = 0, 0
}

// refill makes it 56 bits or more, or all that are left.
func (f *inflater) refill() {
	if len(f.src)-f.at >= 8 {
		f.buf |= binary.LittleEndian.Uint64(f.src[f.at:]) << (f.have & 63)
		f.at += int(63-f.have) >> 3
		f.have |= 56
		return
	}
	for ; f.have <= 56 && f.at < len(f.src); f.have += 8 {
		f.buf |= uint64(f.src[f.at]) << f.have
		f.at++
	}
}

// take takes n bits, at most 16.
func (f *inflater) take(n uint) (int, error) {
	if f.have < n {
		if f.refill(); f.have < n {
			return 0, errCutOff
		}
	}
	v := f.buf & (1<<n - 1)
	f.buf, f.have = f.buf>>n, f.have-n
	return int(v), nil
}

// block inflates a block, or as much of it as dst takes, and tells whether it is the stream's last.
func (f *inflater) block() (last bool, err error) {
	head, err := f.take(3)
	if err != nil {
		return false, err
	}
	switch head >> 1 {
	case 0:
		err = f.stored()
	case 1:
		f.fixedCodes()
		err = f.coded()
	case 2:
		if err = f.dynamicCodes(); err == nil {
			err = f.coded()
		}
	default:
		err = errBlock
	}
	return head&1 != 0, err
}

func (f *inflater) stored() error {
	f.unread()
	if len(f.src)-f.at < 4 {
		f.at = len(f.src)
		return errCutOff
	}
	n := binary.LittleEndian.Uint16(f.src[f.at:])
	if binary.LittleEndian.Uint16(f.src[f.at+2:]) != ^n {
		return errStored
	}
	f.at += 4
	put := copy(f.dst[f.n:], f.src[f.at:][:min(int(n), len(f.src)-f.at)])
	f.at, f.n = f.at+put, f.n+put
	if put < int(n) && f.n < len(f.dst) {
		return errCutOff
	}
	return nil
}

// fixedCodes are never refused.
func (f *inflater) fixedCodes() {
	if f.fixed {
		return
	}
	var lens [288]uint8
	for i := range lens {
		switch {
		case i < 144 || i >= 280:
			lens[i] = 8
		case i < 256:
			lens[i] = 9
		default:
			lens[i] = 7
		}
	}
	_ = build(f.literals[:], literalBits, literalSymbols[:], lens[:])
	for i := range 32 {
		lens[i] = 5
	}
	_ = build(f.distances[:], distanceBits, distanceSymbols[:], lens[:32])
	f.fixed = true
}

// dynamicCodes reads the codes that a block has in front of it.
func (f *inflater) dynamicCodes() error {
	head, err := f.take(14)
	if err != nil {
		return err
	}
	literals, distances, lengths := head&31+257, head>>5&31+1, head>>10+4
	if literals > 286 || distances > 30 {
		return errLengths
	}
	var lens [286 + 30]uint8
	for _, i := range lengthOrder[:lengths] {
		n, err := f.take(3)
		if err != nil {
			return err
		}
		lens[i] = uint8(n)
	}
	if err := build(f.lengths[:], lengthBits, lengthSymbols[:], lens[:len(lengthSymbols)]); err != nil {
		return err
	}
	if err := f.codeLengths(lens[:literals+distances]); err != nil {
		return err
	}
	f.fixed = false
	if err := build(f.literals[:], literalBits, literalSymbols[:], lens[:literals]); err != nil {
		return err
	}
	return build(f.distances[:], distanceBits, distanceSymbols[:], lens[literals:literals+distances])
}

// codeLengths reads one length after the other, or repeats the last one, or 0.
func (f *inflater) codeLengths(lens []uint8) error {
	for i := 0; i < len(lens); {
		_, symbol, err := f.next(f.lengths[:], lengthBits)
		if err != nil {
			return err
		}
		if symbol < 16 {
			lens[i] = uint8(symbol)
			i++
			continue
		}
		of, least, extra := uint8(0), 3, uint(3)
		switch {
		case symbol == 18:
			least, extra = 11, 7
		case symbol == 16 && i == 0:
			return errLengths
		case symbol == 16:
			of, extra = lens[i-1], 2
		}
		n, err := f.take(extra)
		if err != nil {
			return err
		}
		if n += least; n > len(lens)-i {
			return errLengths
		}
		for ; n > 0; n-- {
			lens[i] = of
			i++
		}
	}
	return nil
}

// build makes the table of the canonical code that has these lengths, 0 for symbols without one. Its first 1<<root
// entries are looked up by that many bits of the stream; codes that are longer go on in subtables. The code must be
// complete, or a single one of one bit, or none at all.
func build(table []uint32, root int, symbols []uint32, lens []uint8) error {
	var count [maxCodeBits + 1]int
	for _, l := range lens {
		count[l]++
	}
	count[0] = 0
	var first [maxCodeBits + 2]int // of each length, in sorted
	left, longest := 1, 0
	for l := 1; l <= maxCodeBits; l++ {
		if left = left<<1 - count[l]; left < 0 {
			return errLengths
		}
		if first[l+1] = first[l] + count[l]; count[l] > 0 {
			longest = l
		}
	}
	if left > 0 {
		if longest > 1 {
			return errLengths
		}
		for i := range table[:1<<root] {
			table[i] = entryNone
		}
	}
	var sorted [288]uint16
	for s, l := range lens {
		if l > 0 {
			sorted[first[l]] = uint16(s)
			first[l]++
		}
	}
	code, i := 0, 0
	for l := 1; l <= root; l++ {
		copy(table[1<<(l-1):1<<l], table[:1<<(l-1)]) // shorter codes, with either bit behind them
		for range count[l] {
			table[reverse(code, l)] = entry(symbols[sorted[i]], l)
			code, i = code+1, i+1
		}
		code <<= 1
	}
	end, prefix, start, width := 1<<root, -1, 0, 0
	for l := root + 1; l <= longest; l++ {
		for n := count[l]; n > 0; n-- {
			rev := reverse(code, l)
			if p := rev & (1<<root - 1); p != prefix {
				prefix, start, width = p, end, l-root
				for left := 1<<width - n; left > 0; left = left<<1 - count[root+width] {
					width++
				}
				table[p] = uint32(start)<<16 | uint32(width)<<8 | uint32(root) | entryLink
				end += 1 << width
			}
			e := entry(symbols[sorted[i]], l-root)
			for j := rev >> root; j < 1<<width; j += 1 << (l - root) {
				table[start+j] = e
			}
			code, i = code+1, i+1
		}
		code <<= 1
	}
	return nil
}

// entry gives a symbol a code of n bits in its table.
func entry(symbol uint32, n int) uint32 { return symbol + uint32(n)<<8 + uint32(n) }

// reverse gives a code of n bits as it stands in the stream, its first bit lowest.
func reverse(code, n int) int { return int(bits.Reverse16(uint16(code)) >> (16 - n)) }

// next takes the next code of a table and its extra bits, and gives its entry and value.
func (f *inflater) next(table []uint32, root int) (e uint32, value int, err error) {
	f.refill()
	buf, taken := f.buf, uint(0)
	e = table[buf&(1<<root-1)]
	if e&entryLink != 0 {
		buf, taken = buf>>root, uint(root)
		e = table[e>>16+uint32(buf)&(1<<(e>>8&31)-1)]
	}
	if taken += uint(e & 63); taken > f.have {
		return 0, 0, errCutOff
	}
	if e&entryNone != 0 {
		return 0, 0, errCode
	}
	f.buf, f.have = f.buf>>taken, f.have-taken
	return e, int(e>>16&0x7FFF) + extra(buf, e), nil
}

// extra gives the extra bits of an entry that buf starts with.
func extra(buf uint64, e uint32) int {
	return int((buf & (1<<(e&63) - 1)) >> (e >> 8 & 31))
}

// coded inflates what follows in the block's codes, fast up to the margins.
func (f *inflater) coded() error {
	if done, err := f.fast(); done || err != nil {
		return err
	}
	for f.n < len(f.dst) {
		e, value, err := f.next(f.literals[:], literalBits)
		switch {
		case err != nil:
			return err
		case e&entryLiteral != 0:
			f.dst[f.n] = byte(value)
			f.n++
			continue
		case e&entryEnd != 0:
			return nil
		}
		_, dist, err := f.next(f.distances[:], distanceBits)
		if err != nil {
			return err
		}
		if dist > f.n {
			return errDistance
		}
		for range min(value, len(f.dst)-f.n) {
			f.dst[f.n] = f.dst[f.n-dist]
			f.n++
		}
	}
	return nil
}

// fast inflates until the block ends, which it tells, or a margin is reached. A refill gives 56 bits: enough for
// three literals of the first table, or for a length and a distance with all their extra bits, which are 48.
func (f *inflater) fast() (done bool, err error) {
	src, dst, at, n, buf, have := f.src, f.dst, f.at, f.n, f.buf, f.have
	lastIn, lastOut := len(src)-inMargin, len(dst)-outMargin
	for at <= lastIn && n <= lastOut {
		buf |= binary.LittleEndian.Uint64(src[at:]) << (have & 63)
		at += int(63-have) >> 3
		have |= 56
		e := f.literals[buf&(1<<literalBits-1)]
		if e&entryLiteral != 0 {
			buf, have = buf>>(e&63), have-uint(e&63)
			dst[n] = byte(e >> 16)
			n++
			e = f.literals[buf&(1<<literalBits-1)]
			if e&entryLiteral != 0 {
				buf, have = buf>>(e&63), have-uint(e&63)
				dst[n] = byte(e >> 16)
				n++
				e = f.literals[buf&(1<<literalBits-1)]
				if e&entryLiteral != 0 {
					buf, have = buf>>(e&63), have-uint(e&63)
					dst[n] = byte(e >> 16)
					n++
					continue
				}
			}
			buf |= binary.LittleEndian.Uint64(src[at:]) << (have & 63)
			at += int(63-have) >> 3
			have |= 56
		}
		if e&entryOther != 0 {
			if e&entryLink != 0 {
				buf, have = buf>>literalBits, have-literalBits
				e = f.literals[e>>16+uint32(buf)&(1<<(e>>8&31)-1)]
			}
			if e&(entryLiteral|entryOther) != 0 {
				buf, have = buf>>(e&63), have-uint(e&63)
				if e&entryLiteral != 0 {
					dst[n] = byte(e >> 16)
					n++
					continue
				}
				if e&entryNone != 0 {
					err = errCode
				}
				done = true
				break
			}
		}
		length := int(e>>16) + extra(buf, e)
		buf, have = buf>>(e&63), have-uint(e&63)
		d := f.distances[buf&(1<<distanceBits-1)]
		if d&entryOther != 0 {
			if d&entryLink != 0 {
				buf, have = buf>>distanceBits, have-distanceBits
				d = f.distances[d>>16+uint32(buf)&(1<<(d>>8&31)-1)]
			}
			if d&entryNone != 0 {
				err = errCode
				break
			}
		}
		dist := int(d>>16) + extra(buf, d)
		buf, have = buf>>(d&63), have-uint(d&63)
		if dist > n {
			err = errDistance
			break
		}
		from, end := n-dist, n+length
		step := min(dist, 8) // what 8 bytes bring that is right, where the match overlaps itself
		for ; n < end; from, n = from+step, n+step {
			binary.LittleEndian.PutUint64(dst[n:], binary.LittleEndian.Uint64(dst[from:]))
		}
		n = end
	}
	f.at, f.n, f.buf, f.have = at, n, buf, have
	return done, err
}
