package parity

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/btrexport/btrexport/fsread/fsreadtest"
)

// mul multiplies in GF(2^8) bit by bit, by nothing but the polynomial.
func mul(a, b byte) (out byte) {
	for ; b > 0; b >>= 1 {
		if b&1 != 0 {
			out ^= a
		}
		carry := a&0x80 != 0
		a <<= 1
		if carry {
			a ^= 0x1d
		}
	}
	return out
}

// row makes random data columns and the naive P and Q of them.
func row(rng *rand.Rand, data, parity, n int) [][]byte {
	cols := make([][]byte, data+2)
	for i := range cols {
		cols[i] = make([]byte, n)
	}
	for at := range n {
		coefficient := byte(1)
		for i := range data {
			d := byte(rng.Uint32())
			cols[i][at] = d
			cols[data][at] ^= d
			cols[data+1][at] ^= mul(coefficient, d)
			coefficient = mul(coefficient, 2)
		}
	}
	return cols[:data+parity]
}

// Every data column, with every set of other columns unknown: rebuilt where parity allows it, else refused.
func TestRebuild(t *testing.T) {
	rng := fsreadtest.Seed(t)
	for parity := 1; parity <= 2; parity++ {
		for data := 1; data <= 6; data++ {
			t.Run(fmt.Sprintf("%d+%d", data, parity), func(t *testing.T) {
				c, err := New(data, parity)
				if err != nil {
					t.Fatal(err)
				}
				cols := row(rng, data, parity, 1+rng.IntN(100))
				for want := range data {
					for lost := range 1 << c.Columns() {
						checkRebuild(t, c, cols, want, lost|1<<want)
					}
				}
			})
		}
	}
}

func checkRebuild(t *testing.T, c *Code, cols [][]byte, want, lost int) {
	given := make([][]byte, len(cols))
	n := 0
	for i := range cols {
		if lost>>i&1 == 0 {
			given[i] = bytes.Clone(cols[i])
		} else {
			n++
		}
	}
	dst := make([]byte, len(cols[0]))
	err := c.Rebuild(dst, given, want)
	if n > c.parity {
		if !errors.Is(err, ErrTooFew) {
			t.Fatalf("column %d without columns %b: error %v, want ErrTooFew", want, lost, err)
		}
		return
	}
	if err != nil || !bytes.Equal(dst, cols[want]) {
		t.Fatalf("column %d without columns %b: wrong, or error %v", want, lost, err)
	}
	for i := range given {
		if given[i] != nil && !bytes.Equal(given[i], cols[i]) {
			t.Fatalf("column %d was changed", i)
		}
	}
}

// The most columns that are taken still compute right, and one more is refused.
func TestWide(t *testing.T) {
	rng := fsreadtest.Seed(t)
	c, err := New(MaxData, 2)
	if err != nil {
		t.Fatal(err)
	}
	cols := row(rng, MaxData, 2, 64)
	checkRebuild(t, c, cols, 0, 1|1<<17)
	for range 20 {
		a, b := rng.IntN(MaxData), rng.IntN(MaxData)
		given := append([][]byte(nil), cols...)
		given[a], given[b] = nil, nil
		dst := make([]byte, 64)
		if err := c.Rebuild(dst, given, a); err != nil || !bytes.Equal(dst, cols[a]) {
			t.Fatalf("columns %d and %d unknown: wrong, or error %v", a, b, err)
		}
	}
	for _, shape := range [][2]int{{0, 1}, {MaxData + 1, 2}, {3, 0}, {3, 3}} {
		if _, err := New(shape[0], shape[1]); err == nil {
			t.Errorf("New(%d, %d) succeeded", shape[0], shape[1])
		}
	}
}

func TestCompute(t *testing.T) {
	rng := fsreadtest.Seed(t)
	for parity := 1; parity <= 2; parity++ {
		for _, data := range []int{1, 2, 5, 33} {
			c, err := New(data, parity)
			if err != nil {
				t.Fatal(err)
			}
			cols := row(rng, data, parity, 96)
			out := make([][]byte, parity)
			for i := range out {
				out[i] = make([]byte, 96)
			}
			if err := c.Compute(cols[:data], out); err != nil {
				t.Fatal(err)
			}
			for i := range out {
				if !bytes.Equal(out[i], cols[data+i]) {
					t.Errorf("%d data columns: parity column %d is wrong", data, i)
				}
			}
		}
	}
}

// TestRebuildAllocatesNothing holds for P alone, for Q alone and for both.
func TestRebuildAllocatesNothing(t *testing.T) {
	c, err := New(4, 2)
	if err != nil {
		t.Fatal(err)
	}
	cols := row(fsreadtest.Seed(t), 4, 2, 3*block+64)
	dst := make([]byte, len(cols[0]))
	for _, gone := range [][]int{{0}, {0, 4}, {0, 2}} {
		some := slices.Clone(cols)
		for _, i := range gone {
			some[i] = nil
		}
		var err error
		if n := testing.AllocsPerRun(100, func() { err = c.Rebuild(dst, some, 0) }); n != 0 || err != nil {
			t.Errorf("without %v: %v allocations, error %v", gone, n, err)
		}
		if !bytes.Equal(dst, cols[0]) {
			t.Errorf("without %v: wrong bytes over several blocks", gone)
		}
	}
}

func BenchmarkRebuild(b *testing.B) {
	for _, x := range []struct {
		name               string
		data, parity, size int
		gone               []int
	}{
		{"P of 2", 2, 1, 64 << 10, []int{0}},
		{"P of 4", 4, 1, 64 << 10, []int{0}},
		{"P of 4, 4 KiB", 4, 1, 4 << 10, []int{0}},
		{"Q of 4", 4, 2, 64 << 10, []int{0, 4}},
		{"two of 2", 2, 2, 64 << 10, []int{0, 1}},
		{"two of 4", 4, 2, 64 << 10, []int{0, 2}},
		{"two of 4, 4 KiB", 4, 2, 4 << 10, []int{0, 2}},
		{"two of 8", 8, 2, 64 << 10, []int{0, 2}},
	} {
		b.Run(x.name, func(b *testing.B) {
			c, err := New(x.data, x.parity)
			if err != nil {
				b.Fatal(err)
			}
			cols := row(rand.New(rand.NewPCG(1, 1)), x.data, x.parity, x.size)
			for _, i := range x.gone {
				cols[i] = nil
			}
			dst := make([]byte, x.size)
			b.SetBytes(int64(x.size))
			b.ReportAllocs()
			for b.Loop() {
				if err := c.Rebuild(dst, cols, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
