package main

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// meter measures how fast a job goes.
type meter struct {
	marks []mark // by time: the last one before the window, then those in it
	first time.Time
}

type mark struct {
	at   time.Time
	done uint64
}

// observe notes how much is done at a time; the first one is the start.
func (m *meter) observe(now time.Time, done uint64) {
	if len(m.marks) == 0 {
		m.first = now
	}
	m.marks = append(m.marks, mark{now, done})
	for len(m.marks) > 2 && now.Sub(m.marks[1].at) >= rateWindow {
		m.marks = m.marks[1:]
	}
}

// status is where the job stood when it was last observed. At least one observation is needed.
func (m *meter) status(total uint64, repaired int64) status {
	old, last := m.marks[0], m.marks[len(m.marks)-1]
	s := status{done: last.done, total: total, repaired: repaired, elapsed: last.at.Sub(m.first), left: -1}
	if span := last.at.Sub(old.at).Seconds(); span > 0 {
		s.rate = float64(last.done-old.done) / span
	}
	if s.elapsed >= patienceETA && s.rate > 0 && s.done <= s.total {
		if left := float64(s.total-s.done) / s.rate; left < float64(math.MaxInt64/time.Second) {
			s.left = time.Duration(left * float64(time.Second))
		}
	}
	return s
}

// status is where a job stands. done and total are bytes of data that must be read: holes are none.
type status struct {
	done, total uint64
	rate        float64 // bytes a second over the last rateWindow
	elapsed     time.Duration
	left        time.Duration // negative: not known
	repaired    int64         // blocks that were bad in one copy and good in another
	verify      bool          // every copy is read; then bad is how many blocks were not good, copies of each are read
	bad         int64
	copies      int
}

// percent rounds down: 100 is all of it.
func (s *status) percent() int {
	if s.done >= s.total {
		return 100
	}
	return int(float64(s.done) / float64(s.total) * 100)
}

// line is the status for a log.
func (s *status) line(path string) string {
	text := fmt.Sprintf("%s: %d%%, %s of %s, %s/s", shown(path), s.percent(), iec(s.done), iec(s.total), iec(uint64(s.rate)))
	if s.left >= 0 {
		text += ", " + clock(s.left) + " left"
	}
	if s.repaired > 0 {
		text += fmt.Sprintf(", %d blocks repaired", s.repaired)
	}
	if s.verify {
		text += fmt.Sprintf(", %s, %d bad blocks", copiesText(s.copies), s.bad)
	}
	return text
}

// besideBar is what stands behind the bar: as much as leaves room for one, every part in a fixed width, so
// that the bar does not jump.
func (s *status) besideBar(width int) string {
	left := ""
	if s.left >= 0 {
		left = "ETA " + clock(s.left)
	}
	parts := []string{
		fmt.Sprintf("%8s/%s", iec(s.done), iec(s.total)),
		fmt.Sprintf("%10s", iec(uint64(s.rate))+"/s"),
		fmt.Sprintf("%-9s", left),
	}
	if s.done >= s.total && !s.verify {
		parts[2] = "flushing "
	}
	if s.repaired > 0 {
		parts = append(parts, fmt.Sprintf("%d repaired", s.repaired))
	}
	if s.verify {
		parts = append(parts, fmt.Sprintf("%d bad", s.bad), copiesText(s.copies))
	}
	for len(parts) > 0 {
		if text := strings.Join(parts, "  "); len(text) <= width-narrowest-2 {
			return text
		}
		parts = parts[:len(parts)-1]
	}
	return ""
}

func copiesText(n int) string {
	if n == 1 {
		return "1 copy"
	}
	return fmt.Sprintf("%d copies", n)
}

// clock writes a duration as 0:09, 12:30 or 2:03:04, and days as such.
func clock(d time.Duration) string {
	n := int64(d / time.Second)
	switch {
	case n < 3600:
		return fmt.Sprintf("%d:%02d", n/60, n%60)
	case n < 100*3600:
		return fmt.Sprintf("%d:%02d:%02d", n/3600, n/60%60, n%60)
	}
	return fmt.Sprintf("%d days", n/86400)
}

// statusJSON is a status as --json has it. Sizes in bytes, times in seconds.
type statusJSON struct {
	MessageType string   `json:"message_type"`
	Path        string   `json:"path"`
	Done        uint64   `json:"bytes_done"`
	Total       uint64   `json:"total_bytes"` // data that must be read: holes are none
	Rate        uint64   `json:"bytes_per_second"`
	Elapsed     float64  `json:"seconds_elapsed"`
	Left        *float64 `json:"seconds_remaining,omitempty"`
	Repaired    int64    `json:"repaired_blocks"`
	Bad         *int64   `json:"bad_blocks,omitempty"` // of verify
	Copies      *int     `json:"copies,omitempty"`     // of verify: the most that a block has
}

func (s *status) object(path string) statusJSON {
	o := statusJSON{MessageType: "status", Path: path, Done: s.done, Total: s.total, Rate: uint64(s.rate), Elapsed: s.elapsed.Seconds(), Repaired: s.repaired}
	if s.verify {
		o.Bad, o.Copies = &s.bad, &s.copies
	}
	if s.left >= 0 {
		left := s.left.Seconds()
		o.Left = &left
	}
	return o
}

// utf8Locale says whether the terminal takes UTF-8, by the first of the variables that is set.
func utf8Locale(getenv func(string) string) bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := getenv(name); v != "" {
			v = strings.ToLower(v)
			return strings.Contains(v, "utf-8") || strings.Contains(v, "utf8")
		}
	}
	return false
}
