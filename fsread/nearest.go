package fsread

import (
	"context"
	"errors"
	"strings"
)

// maxNear bounds how many names are compared for a suggestion: it is a courtesy of an error.
const maxNear = 5000

var errEnough = errors.New("enough")

// nearest gives the name in dir that is spelt most like name: at most a third of its letters differ.
func nearest(ctx context.Context, dir *Node, name string) string {
	best, bestDist, seen := "", len(name)/3+1, 0
	// An error ends the search, and what was found so far stands.
	_ = dir.ReadDir(ctx, func(e Entry) error {
		if seen++; seen > maxNear {
			return errEnough
		}
		if d := distance(strings.ToLower(e.Name), strings.ToLower(name), bestDist); d < bestDist {
			best, bestDist = e.Name, d
		}
		return nil
	})
	return best
}

// distance is how many letters to insert, drop or change to come from a to b, or limit if no fewer.
func distance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	prev, cur := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := range len(a) {
		cur[0] = i + 1
		for j := range len(b) {
			change := prev[j]
			if a[i] != b[j] {
				change++
			}
			cur[j+1] = min(change, prev[j+1]+1, cur[j]+1)
		}
		prev, cur = cur, prev
	}
	return min(prev[len(b)], limit)
}
