package codec_test

import (
	"bytes"
	"compress/flate"
	"errors"
	"io"
	"math/bits"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/btrexport/btrexport/fsread/codec"
)

// seed is that of the run's random choices; BTREXPORT_SEED repeats them.
func seed(t testing.TB) *rand.Rand {
	t.Helper()
	s, err := strconv.ParseUint(os.Getenv("BTREXPORT_SEED"), 10, 64)
	if err != nil {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("BTREXPORT_SEED=%d", s)
	return rand.New(rand.NewPCG(s, s))
}

// reference is what compress/flate makes of the first n bytes of a stream, or of all when it has less.
func reference(stream []byte, n int) ([]byte, error) {
	out := make([]byte, n)
	r := flate.NewReader(bytes.NewReader(stream))
	for at := 0; at < n; {
		m, err := r.Read(out[at:])
		if at += m; at == n || errors.Is(err, io.EOF) {
			return out[:at], nil
		} else if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// checkDeflate holds the decoder against compress/flate: both give the same bytes, or both an error.
func checkDeflate(t testing.TB, d *codec.Decoder, stream []byte, n int) {
	t.Helper()
	got, err := inflateAt(t, d, codec.Zlib, n, append([]byte{0x78, 0x9C}, stream...), 4096, 0)
	want, wantErr := reference(stream, n)
	if err == nil && errors.Is(wantErr, io.ErrUnexpectedEOF) {
		// It asks for as many bits as the end of the block takes before it looks at a shorter code.
		want, wantErr = reference(append(bytes.Clone(stream), 0, 0), n)
	}
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("%d bytes wanted: got %v, compress/flate says %v: stream %x", n, err, wantErr, stream)
	}
	if err == nil && !bytes.Equal(got, append(want, make([]byte, n-len(want))...)) {
		t.Fatalf("%d bytes wanted: other bytes than compress/flate: stream %x", n, stream)
	}
}

// deflateOf is data as a stream; level 0 stores it, -2 is without matches.
func deflateOf(t testing.TB, data []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	for len(data) > 0 { // an end of the block and an empty stored one between
		n := min(len(data), 40000)
		if _, err := w.Write(data[:n]); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		data = data[n:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// bitWriter writes a stream, lowest bits first.
type bitWriter struct {
	b    []byte
	used uint // bits of the last byte
}

func (w *bitWriter) put(v uint64, n uint) {
	for ; n > 0; n-- {
		if w.used%8 == 0 {
			w.b = append(w.b, 0)
		}
		w.b[len(w.b)-1] |= byte(v&1) << (w.used % 8)
		v >>= 1
		w.used++
	}
}

// randomCode is a complete code of as many symbols: lengths of at most 15 bits, and the codes as they are written.
// The lower bits a tree has, the longer some of them are.
func randomCode(rng *rand.Rand, symbols int) (lens []uint8, codes []uint64) {
	leaves := []uint8{0}
	deep := rng.IntN(2) == 0
	for len(leaves) < symbols {
		i := rng.IntN(len(leaves))
		if deep {
			i = len(leaves) - 1 - rng.IntN(min(len(leaves), 3))
		}
		if leaves[i] == 15 {
			deep = false
			continue
		}
		leaves[i]++
		leaves = append(leaves, leaves[i])
	}
	rng.Shuffle(len(leaves), func(i, j int) { leaves[i], leaves[j] = leaves[j], leaves[i] })
	codes = make([]uint64, symbols)
	code := uint64(0)
	for l := uint8(1); l <= 15; l++ {
		for s, n := range leaves {
			if n == l {
				codes[s] = uint64(bits.Reverse64(code) >> (64 - l))
				code++
			}
		}
		code <<= 1
	}
	return leaves, codes
}

// randomStream is blocks of random codes and random symbols of them. Many ask for more distance than there is.
func randomStream(rng *rand.Rand, blocks, symbols int) []byte {
	var w bitWriter
	for i := range blocks {
		last := uint64(0)
		if i == blocks-1 {
			last = 1
		}
		literals, distances := 257+rng.IntN(30), 1+rng.IntN(30)
		w.put(last|2<<1, 3)
		w.put(uint64(literals-257), 5)
		w.put(uint64(distances-1), 5)
		w.put(15, 4)
		// Lengths in a code of their own: 3 symbols of 3 bits, 10 of 4 and nothing else would do; this is complete too.
		order := []int{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}
		lengthLens, lengthCodes := randomCode(rng, 19)
		for !complete7(lengthLens) {
			lengthLens, lengthCodes = randomCode(rng, 19)
		}
		for _, s := range order {
			w.put(uint64(lengthLens[s]), 3)
		}
		lens, codes := randomCode(rng, literals)
		distLens, distCodes := []uint8{1}, []uint64{0}
		if distances > 1 {
			distLens, distCodes = randomCode(rng, distances)
		}
		for _, l := range append(bytes.Clone(lens), distLens...) {
			w.put(lengthCodes[l], uint(lengthLens[l]))
		}
		for range symbols {
			s := rng.IntN(literals)
			if rng.IntN(4) > 0 {
				s = rng.IntN(256)
			}
			w.put(codes[s], uint(lens[s]))
			if s <= 256 {
				if s == 256 {
					break
				}
				continue
			}
			w.put(rng.Uint64(), lengthExtra(s))
			d := rng.IntN(distances)
			if rng.IntN(20) > 0 {
				d = rng.IntN(min(distances, 14))
			}
			w.put(distCodes[d], uint(distLens[d]))
			w.put(rng.Uint64(), uint(max(d/2, 1)-1))
		}
		w.put(codes[256], uint(lens[256]))
	}
	return w.b
}

// complete7 says that no code of a code is longer than 7 bits.
func complete7(lens []uint8) bool {
	for _, l := range lens {
		if l > 7 {
			return false
		}
	}
	return true
}

func lengthExtra(symbol int) uint {
	if symbol < 265 || symbol == 285 {
		return 0
	}
	return uint(symbol-261) / 4
}

// TestDeflateRandom compares random codes with compress/flate, as they are, cut, and with bits changed.
func TestDeflateRandom(t *testing.T) {
	rng := seed(t)
	d := codec.NewDecoder()
	good := 0
	for range 600 {
		stream := randomStream(rng, 1+rng.IntN(3), 1+rng.IntN(1<<rng.IntN(12)))
		n := 1 + rng.IntN(1<<rng.IntN(18))
		checkDeflate(t, d, stream, min(n, codec.MaxExtent))
		if _, err := reference(stream, 2000); err == nil {
			good++
		}
		checkDeflate(t, d, stream[:rng.IntN(len(stream))], min(n, codec.MaxExtent))
		for range 3 {
			mutate(rng, stream)
			checkDeflate(t, d, stream, min(n, codec.MaxExtent))
		}
	}
	t.Logf("%d of 600 streams begin well", good)
	if good < 20 {
		t.Error("hardly any stream was one")
	}
}

func mutate(rng *rand.Rand, b []byte) {
	at := rng.IntN(len(b))
	if rng.IntN(2) == 0 {
		at = rng.IntN(min(len(b), 100)) // where the codes are
	}
	b[at] ^= 1 << rng.IntN(8)
}

// TestDeflateLevels compares streams of compress/flate's own, cut at every length near their end.
func TestDeflateLevels(t *testing.T) {
	rng := seed(t)
	d := codec.NewDecoder()
	for level := -2; level <= 9; level++ {
		for _, size := range []int{0, 1, 10, 300, 5000, 70000, 120000} {
			data := sample(size)
			if rng.IntN(2) == 0 {
				data = skewed(rng, size)
			}
			stream := deflateOf(t, data, level)
			for _, n := range []int{size, max(size-1, 0), size / 2, min(size+1, codec.MaxExtent), rng.IntN(size + 1)} {
				checkDeflate(t, d, stream, n)
			}
			for cut := 1; cut < min(len(stream), 40); cut++ {
				checkDeflate(t, d, stream[:len(stream)-cut], size)
			}
			for range 20 {
				b := bytes.Clone(stream)
				mutate(rng, b)
				checkDeflate(t, d, b, min(size+100, codec.MaxExtent))
			}
		}
	}
}

// skewed is data whose bytes are half as frequent one as the other, so that codes are of all lengths.
func skewed(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(bits.TrailingZeros64(rng.Uint64()|1<<40) * 5)
	}
	return b
}

// FuzzDeflate is checkDeflate for any stream.
func FuzzDeflate(f *testing.F) {
	rng := rand.New(rand.NewPCG(5, 5))
	for level := -2; level <= 9; level++ {
		f.Add(deflateOf(f, sample(3000), level), uint32(3000))
		f.Add(randomStream(rng, 2, 300), uint32(2000))
	}
	f.Add([]byte{3, 0}, uint32(10))
	d := codec.NewDecoder()
	f.Fuzz(func(t *testing.T, stream []byte, n uint32) {
		if len(stream) > codec.MaxExtent-2 {
			return
		}
		checkDeflate(t, d, stream, int(n%(codec.MaxExtent+1)))
	})
}

// TestDeflateCodes begins blocks with codes that are just right and just wrong.
func TestDeflateCodes(t *testing.T) {
	// Lengths 0, 1 and the repeats 16 and 18 have codes of two bits each: 00, 01, 10 and 11, first bit first.
	zero, one, again, zeroes := uint64(0), uint64(2), uint64(1), uint64(3)
	type field struct{ v, n uint64 }
	code := func(v uint64) field { return field{v, 2} }
	gap := []field{code(zeroes), {127, 7}, code(zeroes), {256 - 138 - 11 - 1, 7}} // 255 symbols
	fields := func(more ...field) []field { return append(append([]field{code(one)}, gap...), more...) }
	for _, tt := range []struct {
		name                string
		literals, distances uint64
		lengths             []field
		bad                 bool
	}{
		{"literal 0, end and a distance", 257, 1, fields(code(one), code(one)), false},
		{"no distance at all", 257, 1, fields(code(one), code(zero)), false},
		{"a repeat up to the end", 257, 3, fields(code(one), field{again, 2}, field{0, 2}), true}, // three distances of one bit
		{"a repeat one past the end", 257, 2, fields(code(one), field{again, 2}, field{0, 2}), true},
		{"zeroes past the end", 257, 10, fields(code(one), code(zeroes), field{0, 7}), true},
		{"zeroes up to the end", 257, 11, fields(code(one), code(zeroes), field{0, 7}), false},
		{"a repeat of nothing", 257, 1, []field{{again, 2}, {0, 2}}, true},
		{"too many literals", 287, 1, nil, true},
		{"too many distances", 257, 31, nil, true},
		{"no literal but one", 257, 1, append([]field{code(zero)}, append(append([]field{}, gap...), code(one), code(one))...), false},
		{"codes that overlap", 257, 2, append([]field{code(one)}, append(append([]field{code(one)}, code(zeroes), field{127, 7}, code(zeroes), field{256 - 138 - 11 - 2, 7}), code(one), code(one), code(zero))...), true},
	} {
		var w bitWriter
		w.put(1|2<<1, 3)
		w.put(tt.literals-257, 5)
		w.put(tt.distances-1, 5)
		w.put(18-4, 4)
		for _, s := range []int{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1} {
			if s == 16 || s == 18 || s == 0 || s == 1 {
				w.put(2, 3)
			} else {
				w.put(0, 3)
			}
		}
		for _, f := range tt.lengths {
			w.put(f.v, uint(f.n))
		}
		end := uint64(1) // of the block, where there is a literal too
		if tt.name == "no literal but one" {
			end = 0
		}
		w.put(end, 1)
		w.put(0, 64)
		if _, err := reference(w.b, 10); (err != nil) != tt.bad {
			t.Errorf("%s: compress/flate says %v", tt.name, err)
		}
		checkDeflate(t, codec.NewDecoder(), w.b, 10)
	}
}
