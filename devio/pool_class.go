package devio

import "math/bits"

const (
	pageSize    = 4096
	maxBuffer   = 64<<20 + 256<<10 // the largest NBD read and a bit, for unaligned ends
	doubling    = 5                // classes of 4, 8, 16, 32 and 64 KiB; above, four to each doubling
	doublingMax = pageSize << (doubling - 1)
	classes     = doubling + 4*10 + 1 // up to 64 MiB, and one of maxBuffer
)

// classOf returns the smallest class whose buffers hold n bytes, 1 <= n <= maxBuffer. With 2^e the
// power of two below n, the classes above 64 KiB are 2^e + k/4 of 2^e, k = 1 to 4.
func classOf(n int) int {
	if n <= doublingMax {
		return bits.Len(uint(n-1) / pageSize)
	}
	e := bits.Len(uint(n-1)) - 1
	k := (n - 1) >> (e - 2) & 3
	return doubling + (e-bits.Len(doublingMax)+1)*4 + k
}

// BufferSize is the memory that a buffer of n bytes takes, 1 <= n <= 64 MiB + 256 KiB.
func BufferSize(n int) int { return classSize(classOf(n)) }

// classSize is the inverse of classOf: the size of a class's buffers in bytes.
func classSize(class int) int {
	switch {
	case class < doubling:
		return pageSize << class
	case class == classes-1:
		return maxBuffer
	}
	base := doublingMax << ((class - doubling) / 4)
	return base + base/4*((class-doubling)%4+1)
}
