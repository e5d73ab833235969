// Package spelling finds what a name that is not there was likely meant for.
package spelling

import (
	"strings"
	"unicode/utf8"
)

// longest is from what length on names are not compared, in bytes: it would cost more than it helps.
const longest = 256

// Nearest gives the name that word is most likely a slip of; false where none is like it. Two thirds of the letters must
// be right; capitals count as small letters.
func Nearest(word string, names []string) (string, bool) {
	s := For(word)
	for _, name := range names {
		s.Add(name)
	}
	return s.Best()
}

// Search is a Nearest among names that come one by one.
type Search struct {
	word []rune
	best string
	at   int // letters to change in word for best
	any  bool
}

// For begins a search.
func For(word string) *Search {
	s := &Search{}
	if len(word) < longest {
		s.word = []rune(strings.ToLower(word))
	}
	return s
}

// Add looks at another name.
func (s *Search) Add(name string) {
	if len(s.word) == 0 || len(name) >= longest {
		return
	}
	n := utf8.RuneCountInString(name)
	longer, most := max(n, len(s.word)), max(n, len(s.word))/3
	if s.any {
		most = min(most, s.at-1)
	}
	if longer-min(n, len(s.word)) > most {
		return
	}
	if d := distance(s.word, []rune(strings.ToLower(name))); d <= most {
		s.best, s.at, s.any = name, d, true
	}
}

// Best gives the likeliest name so far, the first of those that are equally likely.
func (s *Search) Best() (string, bool) { return s.best, s.any }

// distance counts the letters to insert, remove, replace, or swap with their neighbour to make a into b.
func distance(a, b []rune) int {
	rows := make([]int, 3*(len(b)+1))
	before, prev, row := rows[:len(b)+1], rows[len(b)+1:2*(len(b)+1)], rows[2*(len(b)+1):]
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, prev, row = prev, row, before
	}
	return prev[len(b)]
}
