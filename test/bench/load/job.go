package load

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// Job is what one process of the load does.
type Job struct {
	Socket, Export string
	Want           string // path of a file with the bytes that the export must have
	Structured     bool   // negotiate structured replies
	Connections    int
	Depth          int // requests in flight on each connection
	Block          int // bytes of each request
	Random         bool
	Seed           uint64 // of the order, when Random
	Requests       int    // of all connections together; 0: every block once
	// Limit bounds the time in which requests are sent; what was sent is still answered.
	Limit time.Duration
	// Skip is the time at the start whose replies are compared and not counted.
	Skip time.Duration
}

// Result is what was counted.
type Result struct {
	Requests int64
	Bytes    int64
	Compared int64         // bytes, also those of Skip
	Took     time.Duration // from the start, or from the end of Skip, to the last reply
	P50, P99 time.Duration // latency of requests, from the write that held it to the read that ended it
	CPU      time.Duration // user and system time of the load's own process
}

func (j Job) check() error {
	switch {
	case j.Connections < 1 || j.Depth < 1 || j.Depth > maxDepth || j.Block < 1:
		return fmt.Errorf("connections %d, depth %d, block %d: out of range", j.Connections, j.Depth, j.Block)
	case j.Limit <= 0 || j.Skip < 0 || j.Skip >= j.Limit:
		return fmt.Errorf("limit %v, skip %v: out of range", j.Limit, j.Skip)
	}
	return nil
}

// blocks gives the order in which the blocks of a file are asked for: each at most once in a round through the file.
func (j Job) blocks(size int) ([]uint32, error) {
	n := size / j.Block
	if n == 0 || uint64(n) > 1<<32 {
		return nil, errors.New("the file has no whole block, or too many")
	}
	order := make([]uint32, n)
	for i := range order {
		order[i] = uint32(i)
	}
	if j.Random {
		rng := rand.New(rand.NewPCG(j.Seed, uint64(j.Block)))
		rng.Shuffle(n, func(a, b int) { order[a], order[b] = order[b], order[a] })
	}
	return order, nil
}
