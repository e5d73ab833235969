//go:build race

package fsreadtest

// Race says whether the race detector is on: sync.Pool then forgets at random, so that counts of
// allocations mean nothing.
const Race = true
