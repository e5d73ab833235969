package fsread

import (
	"context"
	"errors"

	"github.com/btrexport/btrexport/internal/spelling"
)

// maxNear bounds how many names are compared for a suggestion: it is a courtesy of an error.
const maxNear = 5000

var errEnough = errors.New("enough")

// nearest gives the name in dir that name is likely a slip of; empty where there is none.
func nearest(ctx context.Context, dir *Node, name string) string {
	search, seen := spelling.For(name), 0
	// An error ends the search, and what was found so far stands.
	_ = dir.ReadDir(ctx, func(e Entry) error {
		if seen++; seen > maxNear {
			return errEnough
		}
		search.Add(e.Name)
		return nil
	})
	best, _ := search.Best()
	return best
}
