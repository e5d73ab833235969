package export

import "testing"

// TestAfterDone: small replies of a batch in Submit go together, a long one goes beside the reads that follow it, and the
// last read that is outstanding costs nobody a wake-up.
func TestAfterDone(t *testing.T) {
	const small, long = 4 << 10, gatherBytes
	for name, tc := range map[string]struct {
		gathering      uint64 // the reply's batch is number 1
		size           int
		queued, atFile int // beside it
		writing        bool
		want           next
	}{
		"in Submit, small":                   {1, small, 0, 5, false, leave},
		"in Submit, small, the last":         {1, small, 0, 0, false, leave},
		"in Submit, many small":              {1, small, gatherBytes - small, 5, false, write},
		"in Submit, long":                    {1, long, 0, 5, false, handOff},
		"in Submit, long, the last":          {1, long, 0, 0, false, write},
		"in Submit, somebody sends":          {1, long, 0, 5, true, leave},
		"from a disk, others are to come":    {0, small, 0, 1, false, handOff},
		"from a disk, the last":              {0, small, 0, 0, false, write},
		"from a disk, a later batch gathers": {2, small, 0, 1, false, handOff},
	} {
		s := newSender(nil, nil)
		s.gathering, s.queued, s.atFile, s.writing = tc.gathering, tc.queued, tc.atFile, tc.writing
		q := &request{batch: 1, size: tc.size}
		s.push(q)
		if got := s.afterDone(q); got != tc.want {
			t.Errorf("%s: %d, want %d", name, got, tc.want)
		}
		if got := s.writing; got != (tc.writing || tc.want == write) {
			t.Errorf("%s: writing %t", name, got)
		}
	}
}
