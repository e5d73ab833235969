package configs

import "unicode/utf8"

// Nearest finds the name that word is most likely a slip of. Two thirds of the letters must be right.
func Nearest(word string, names []string) (string, bool) {
	const longest = 64 // bytes; beyond it the comparison would cost more than it helps
	best, bestAt := "", 0
	if len(word) > longest {
		return "", false
	}
	for _, name := range names {
		if len(name) > longest {
			continue
		}
		d := distance(word, name)
		if d*3 <= max(utf8.RuneCountInString(word), utf8.RuneCountInString(name)) && (best == "" || d < bestAt) {
			best, bestAt = name, d
		}
	}
	return best, best != ""
}

// distance counts the letters to insert, remove, replace, or swap with their neighbour to make a into b.
func distance(a, b string) int {
	ra, rb := []rune(a), []rune(b)
	var before []int // the row before prev
	prev := make([]int, len(rb)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(ra); i++ {
		row := make([]int, len(rb)+1)
		row[0] = i
		for j := 1; j <= len(rb); j++ {
			cost := 1
			if ra[i-1] == rb[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && ra[i-1] == rb[j-2] && ra[i-2] == rb[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, prev = prev, row
	}
	return prev[len(rb)]
}
