package codec_test

import (
	"encoding/binary"
	"math/rand/v2"
)

// lzoChain frames payloads as btrfs does: total, then each with its length, none of which straddles a sector.
func lzoChain(sectorSize int, payloads ...[]byte) []byte {
	b := make([]byte, 4)
	for _, p := range payloads {
		if left := sectorSize - len(b)%sectorSize; left < 4 {
			b = append(b, make([]byte, left)...)
		}
		b = binary.LittleEndian.AppendUint32(b, uint32(len(p)))
		b = append(b, p...)
	}
	binary.LittleEndian.PutUint32(b, uint32(len(b)))
	return b
}

// lzoExtent is what lies on the disk: a chain and the padding of its last sector.
func lzoExtent(sectorSize int, payloads ...[]byte) []byte {
	b := lzoChain(sectorSize, payloads...)
	return append(b, make([]byte, -len(b)&(sectorSize-1))...)
}

// lzoLiterals is the extent of data in literals alone.
func lzoLiterals(sectorSize int, data []byte) []byte {
	var payloads [][]byte
	for len(data) > 0 {
		n := min(len(data), sectorSize)
		var w lzoWriter
		w.literals(data[:n])
		payloads = append(payloads, w.end())
		data = data[n:]
	}
	return lzoExtent(sectorSize, payloads...)
}

// lzoWriter writes one LZO1X block and keeps what it has to inflate to.
type lzoWriter struct {
	block, out []byte
	state      int // literals before the next instruction: 0, 1 to 3, or 4 for more
	tail       int // where in block the last match keeps its count of literals, which is 0
}

func (w *lzoWriter) end() []byte { return append(w.block, 17, 0, 0) }

// literals appends p, in the shortest form that is allowed here. Right after a run of literals there is none:
// a caller puts a match between.
func (w *lzoWriter) literals(p []byte) {
	n := len(p)
	switch {
	case n == 0:
		return
	case len(w.out) == 0 && n <= 238:
		w.block = append(w.block, byte(17+n))
		w.state = min(n, 4)
	case n <= 3 && w.state == 0 && len(w.out) > 0:
		w.block[w.tail] |= byte(n)
		w.state = n
	case n > 3 && w.state == 0:
		w.run(0, n-3, 15)
		w.state = 4
	default:
		panic("no room for literals here")
	}
	w.block = append(w.block, p...)
	w.out = append(w.out, p...)
}

// run appends an instruction with a length: in its low bits up to base, else as bytes of their own.
func (w *lzoWriter) run(op byte, n, base int) {
	if n <= base {
		w.block = append(w.block, op|byte(n))
		return
	}
	w.block = append(w.block, op)
	for n -= base; n > 255; n -= 255 {
		w.block = append(w.block, 0)
	}
	w.block = append(w.block, byte(n))
}

// match appends n bytes from dist back. form names the instruction; match reports whether it can say that.
func (w *lzoWriter) match(form string, dist, n int) bool {
	d := dist - 1
	switch {
	case dist < 1 || dist > len(w.out):
		return false
	case form == "1K" && n == 2 && d < 1<<10 && w.state >= 1 && w.state <= 3:
		w.block = append(w.block, byte(d&3<<2), byte(d>>2))
		w.tail = len(w.block) - 2
	case form == "3K" && n == 3 && d >= 2<<10 && d < 3<<10 && w.state == 4:
		d -= 2 << 10
		w.block = append(w.block, byte(d&3<<2), byte(d>>2))
		w.tail = len(w.block) - 2
	case form == "2K" && n >= 3 && n <= 8 && d < 2<<10:
		op := 64 | (n-3)<<5
		if n >= 5 {
			op = 128 | (n-5)<<5
		}
		w.block = append(w.block, byte(op|d&7<<2), byte(d>>3))
		w.tail = len(w.block) - 2
	case form == "16K" && n >= 3 && d < 16<<10:
		w.run(32, n-2, 31)
		w.block = binary.LittleEndian.AppendUint16(w.block, uint16(d<<2))
		w.tail = len(w.block) - 2
	case form == "48K" && n >= 3 && dist > 16<<10 && dist < 48<<10:
		d = dist - 16<<10
		w.run(byte(16|d>>14<<3), n-2, 7)
		w.block = binary.LittleEndian.AppendUint16(w.block, uint16(d&0x3FFF<<2))
		w.tail = len(w.block) - 2
	default:
		return false
	}
	for range n {
		w.out = append(w.out, w.out[len(w.out)-dist])
	}
	w.state = 0
	return true
}

// lzoRandom is a valid block that inflates to exactly size bytes, made of every instruction that fits.
func lzoRandom(rng *rand.Rand, size int) (block, out []byte) {
	var w lzoWriter
	forms := []string{"1K", "3K", "2K", "16K", "48K"}
	reach := []int{1 << 10, 3 << 10, 2 << 10, 16 << 10, 48 << 10}
	for len(w.out) < size {
		left := size - len(w.out)
		if w.state == 0 && (len(w.out) == 0 || left < 3 || rng.IntN(3) == 0) {
			w.literals(randomBytes(rng, 1+rng.IntN(min(left, 1<<rng.IntN(12)))))
			continue
		}
		i := rng.IntN(len(forms))
		n := 2 + rng.IntN(1<<rng.IntN(11))
		switch forms[i] {
		case "1K":
			n = 2
		case "3K":
			n = 3
		case "2K":
			n = 3 + n%6
		}
		dist := 1 + rng.IntN(reach[i])
		if rng.IntN(3) == 0 {
			dist = 1 + dist%32
		}
		if n <= left && w.match(forms[i], dist, n) || left > 2 {
			continue
		}
		if !w.match("1K", 1, left) { // the last one or two bytes: another instruction may not reach them
			return lzoRandom(rng, size)
		}
	}
	return w.end(), w.out
}

func randomBytes(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}
