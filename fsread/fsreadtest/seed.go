package fsreadtest

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// Seed gives the source of a random test: from BTREXPORT_SEED, or anew. The seed is printed when the test fails.
func Seed(t testing.TB) *rand.Rand {
	t.Helper()
	s := rand.Uint64()
	if v := os.Getenv("BTREXPORT_SEED"); v != "" {
		var err error
		if s, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("BTREXPORT_SEED=%d", s)
	return rand.New(rand.NewPCG(s, 0))
}
