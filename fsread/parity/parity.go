// Package parity is the arithmetic of RAID5 and RAID6 rows: data columns D0..Dk-1, P = D0 ^ D1 ^ ..., and for
// RAID6 Q = D0 + 2 D1 + 4 D2 + ... over GF(2^8) with the polynomial 0x11d, as Linux has them (lib/raid6).
// A row is bytewise: any vertical slice of it can be rebuilt alone. Pure; a Code may be used concurrently.
package parity

import (
	"bytes"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"

	"github.com/klauspost/reedsolomon"
)

// MaxData is the most data columns that a Code takes: beyond them the powers of 2 in Q repeat.
const MaxData = 254

// ErrTooFew: more columns are unknown than parity can stand in for.
var ErrTooFew = errors.New("too few columns are left to rebuild from")

// Code computes with rows of one shape.
type Code struct {
	data, parity int
	q            reedsolomon.Encoder // computes P and Q; nil for RAID5
	powers       []byte              // of the generator 2, by data column
}

// New makes the Code of rows of data columns, 1 to MaxData, and parity columns: 1 for P, 2 for P and Q.
func New(data, parity int) (*Code, error) {
	if data < 1 || data > MaxData || parity < 1 || parity > 2 {
		return nil, fmt.Errorf("a row of %d data and %d parity columns can't be computed with", data, parity)
	}
	c := &Code{data: data, parity: parity}
	if parity == 1 {
		return c, nil
	}
	ones := bytes.Repeat([]byte{1}, data)
	c.powers = make([]byte, data)
	for i, power := 0, byte(1); i < data; i, power = i+1, double(power) {
		c.powers[i] = power
	}
	var err error
	c.q, err = reedsolomon.New(data, 2, reedsolomon.WithCustomMatrix([][]byte{ones, c.powers}), reedsolomon.WithMaxGoroutines(1))
	return c, err
}

// double multiplies by the generator 2.
func double(x byte) byte {
	if x&0x80 != 0 {
		return x<<1 ^ 0x1d
	}
	return x << 1
}

// Columns is the number of columns of a row: the data, then P, then Q.
func (c *Code) Columns() int { return c.data + c.parity }

// Rebuild fills dst with data column want from the other columns of cols: data in order, then P and Q, all of
// dst's length. A nil column is unknown; cols[want] is taken as nil. P is used before Q. The error is ErrTooFew.
// dst must not overlap a column. It does not allocate.
func (c *Code) Rebuild(dst []byte, cols [][]byte, want int) error {
	other, unknown := -1, 0
	for i, col := range cols[:c.data] {
		if col == nil && i != want {
			other, unknown = i, unknown+1
		}
	}
	switch {
	case unknown == 0 && cols[c.data] != nil:
		c.sum(dst, cols, want)
	case c.parity == 1, cols[c.data+1] == nil, unknown > 1, unknown == 1 && cols[c.data] == nil:
		return ErrTooFew
	case unknown == 0:
		// Q = sum of g^i Di, with g^want taken out: Dwant = g^-want Q + sum of g^(i-want) Di.
		c.combine(dst, cols, want, 0, inverse(c.powers[want]))
	default:
		// With P and Q less what is known, Dwant + Dother = P' and g^want Dwant + g^other Dother = Q'. So
		// Dwant = (g^other P' + Q') / (g^want + g^other).
		b := inverse(c.powers[want] ^ c.powers[other])
		c.combine(dst, cols, want, multiply(c.powers[other], b), b)
	}
	return nil
}

// block is how much of dst is made at a time: it stays in the first cache while column after column comes in.
const block = 8 << 10

// sum sets dst to P and every data column but want.
func (c *Code) sum(dst []byte, cols [][]byte, want int) {
	for at := 0; at < len(dst); at += block {
		end := min(at+block, len(dst))
		d, begun := dst[at:end], false
		from := cols[c.data][at:end]
		for i, col := range cols[:c.data] {
			switch {
			case i == want:
			case begun:
				subtle.XORBytes(d, d, col[at:end])
			default:
				subtle.XORBytes(d, from, col[at:end])
				begun = true
			}
		}
		if !begun {
			copy(d, from)
		}
	}
}

// combine sets dst to a*P + b*Q + sum of (a + b*g^i) Di over the known data columns but want: what a times the
// equation of P and b times that of Q leave of it. a is 0 where P is not to be used.
func (c *Code) combine(dst []byte, cols [][]byte, want int, a, b byte) {
	var ll reedsolomon.LowLevel
	for at := 0; at < len(dst); at += block {
		end := min(at+block, len(dst))
		d := dst[at:end]
		ll.GalMulSlice(b, cols[c.data+1][at:end], d)
		if a != 0 {
			ll.GalMulSliceXor(a, cols[c.data][at:end], d)
		}
		for i, col := range cols[:c.data] {
			if col != nil && i != want {
				ll.GalMulSliceXor(a^multiply(b, c.powers[i]), col[at:end], d)
			}
		}
	}
}

// multiply multiplies in GF(2^8), bit by bit.
func multiply(a, b byte) (out byte) {
	for ; b > 0; a, b = double(a), b>>1 {
		if b&1 != 0 {
			out ^= a
		}
	}
	return out
}

// inverse gives x^-1 = x^254, for x other than 0.
func inverse(x byte) byte {
	out := byte(1)
	for range 7 { // 254 = 2 + 4 + ... + 128
		x = multiply(x, x)
		out = multiply(out, x)
	}
	return out
}

// Compute fills parity, P or P and Q, from the data columns; all have one length.
func (c *Code) Compute(data, parity [][]byte) error {
	if c.q != nil {
		return c.q.Encode(append(slices.Clone(data), parity...))
	}
	copy(parity[0], data[0])
	for _, col := range data[1:] {
		subtle.XORBytes(parity[0], parity[0], col)
	}
	return nil
}
