// Package parity is the arithmetic of RAID5 and RAID6 rows: data columns D0..Dk-1, P = D0 ^ D1 ^ ..., and for
// RAID6 Q = D0 + 2 D1 + 4 D2 + ... over GF(2^8) with the polynomial 0x11d, as Linux has them (lib/raid6).
// A row is bytewise: any vertical slice of it can be rebuilt alone. Pure; a Code may be used concurrently.
package parity

import (
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
	q            reedsolomon.Encoder // nil for RAID5
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
	rows := [][]byte{make([]byte, data), make([]byte, data)}
	for i, power := 0, byte(1); i < data; i, power = i+1, double(power) {
		rows[0][i], rows[1][i] = 1, power
	}
	var err error
	c.q, err = reedsolomon.New(data, 2, reedsolomon.WithCustomMatrix(rows), reedsolomon.WithMaxGoroutines(1))
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
// dst must not overlap a column.
func (c *Code) Rebuild(dst []byte, cols [][]byte, want int) error {
	unknown := 0
	for i, col := range cols[:c.data] {
		if col == nil && i != want {
			unknown++
		}
	}
	switch {
	case unknown == 0 && cols[c.data] != nil:
		copy(dst, cols[c.data])
		for i, col := range cols[:c.data] {
			if i != want {
				subtle.XORBytes(dst, dst, col)
			}
		}
		return nil
	case c.parity == 1, cols[c.data+1] == nil, unknown > 1, unknown == 1 && cols[c.data] == nil:
		return ErrTooFew
	}
	shards := slices.Clone(cols)
	required := make([]bool, len(shards))
	shards[want], required[want] = dst[:0:len(dst)], true
	if err := c.q.ReconstructSome(shards, required); err != nil {
		return fmt.Errorf("%w: %w", ErrTooFew, err)
	}
	return nil
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
