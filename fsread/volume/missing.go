package volume

import (
	"fmt"
	"slices"
	"strings"

	"github.com/btrexport/btrexport/fsread/ondisk"
)

// MissingDevice is a device that the chunk tree names.
type MissingDevice struct {
	ondisk.DevItem
	Seed bool // it belongs to a filesystem that this one has sprouted from
}

func (d MissingDevice) String() string {
	seed := ""
	if d.Seed {
		seed = fmt.Sprintf(", a seed device of filesystem %s", d.FSID)
	}
	return fmt.Sprintf("devid %d (uuid %s%s)", d.DevID, d.UUID, seed)
}

// MissingError names the devices that a filesystem needs and that were not given.
type MissingError struct {
	Missing []MissingDevice
	Given   int
	Total   int
	Lost    []LostKind     // what the devices given don't have; empty: all can be read without
	Profile ondisk.Profile // the first that makes up for a device
}

// LostKind is what can't be read of the chunks of one kind while devices are missing.
type LostKind struct {
	Kind    string         // as ondisk.Chunk.Kind has it
	Profile ondisk.Profile // of the first chunk that loses some
	Bytes   uint64
	Of      uint64 // bytes of all chunks of the kind
}

func (l LostKind) String() string {
	return fmt.Sprintf("%s is %s: %s of the %[1]s cannot be read", l.Kind, l.Profile, fraction(l.Bytes, l.Of))
}

// fraction is lost of all in words, lost being above 0: 2/3, or in percent where that is no small fraction.
func fraction(lost, all uint64) string {
	const small = 16
	a, b := lost, all
	for b > 0 {
		a, b = b, a%b
	}
	switch percent := uint64(float64(lost) / float64(all) * 100); {
	case lost >= all:
		return "all"
	case all/a <= small:
		return fmt.Sprintf("%d/%d", lost/a, all/a)
	case percent == 0:
		return "less than 1 %"
	default:
		return fmt.Sprintf("%d %%", percent)
	}
}

// maxNamed bounds how many devices an error names: on a crafted filesystem any number is missing.
const maxNamed = 16

func (e *MissingError) Error() string {
	var names []string
	for _, d := range e.Missing[:min(len(e.Missing), maxNamed)] {
		names = append(names, d.String())
	}
	what := strings.Join(names, ", ")
	if more := len(e.Missing) - len(names); more > 0 {
		what += fmt.Sprintf(" and %d more", more)
	}
	verb, them := "is", "it"
	if len(e.Missing) > 1 {
		verb, them = "are", "each"
	}
	with := "one device"
	if e.Given != 1 {
		with = fmt.Sprintf("%d devices", e.Given)
	}
	lost, remedy := "", fmt.Sprintf("%s can be read with %s", e.Profile, with)
	if len(e.Lost) > 0 {
		var kinds []string
		for _, l := range e.Lost {
			kinds = append(kinds, l.String())
		}
		lost, remedy = ", and "+strings.Join(kinds, ", "), "reads of those parts fail"
	}
	return fmt.Sprintf("%s %s missing, %d of %d devices given%s (add -d for %s, or --degraded: %s)", what, verb, e.Given, e.Total, lost, them, remedy)
}

func (e *MissingError) Unwrap() error { return ErrMissing }

func (v *Volume) missingError(missing []MissingDevice) *MissingError {
	e := &MissingError{Missing: missing, Total: len(v.members), Given: len(v.members) - len(missing)}
	for _, c := range v.chunks {
		if c.copies+c.parity() > 1 && (e.Profile == ondisk.Single || e.Profile == ondisk.DUP) {
			e.Profile = c.profile
		}
		at := slices.IndexFunc(e.Lost, func(l LostKind) bool { return l.Kind == c.Kind() })
		if at < 0 {
			at = len(e.Lost)
			e.Lost = append(e.Lost, LostKind{Kind: c.Kind()})
		}
		l := &e.Lost[at]
		lost := c.unreadable()
		if lost > 0 && l.Bytes == 0 {
			l.Profile = c.profile
		}
		l.Bytes += lost
		l.Of += c.Length
	}
	e.Lost = slices.DeleteFunc(e.Lost, func(l LostKind) bool { return l.Bytes == 0 })
	slices.SortStableFunc(e.Lost, func(a, b LostKind) int { return strings.Compare(a.Kind, b.Kind) })
	return e
}

// gone counts the chunk's stripes on missing devices.
func (c *chunk) gone() (n int) {
	for _, d := range c.members {
		if d.dev == nil {
			n++
		}
	}
	return n
}

// Unreadable gives how many bytes of the chunk at start have neither a copy on a device that is there nor enough
// of their row. 0 where there is no such chunk.
func (v *Volume) Unreadable(start ondisk.Logical) uint64 {
	c := v.chunks.find(start)
	if c == nil {
		return 0
	}
	return c.unreadable()
}

func (c *chunk) unreadable() uint64 {
	gone, n := c.gone(), len(c.members)
	switch {
	case c.copies == 0 && gone > 0:
		return c.Length
	case c.profile == ondisk.RAID0:
		return c.Length / uint64(n) * uint64(gone)
	case c.profile == ondisk.RAID10:
		lost := 0
		for i := 0; i+1 < n; i += 2 {
			if c.members[i].dev == nil && c.members[i+1].dev == nil {
				lost++
			}
		}
		return c.Length / uint64(n/2) * uint64(lost)
	case c.code != nil && gone > c.parity():
		return c.lostRows(uint64(gone))
	case c.code == nil && gone == n:
		return c.Length
	}
	return 0
}

// lostRows counts the bytes of data columns on gone missing devices: after as many rows as there are devices,
// each device has held as much data as any other.
func (c *chunk) lostRows(gone uint64) uint64 {
	n, d := uint64(len(c.members)), uint64(c.data())
	rows := c.Length / (d * stripeLen)
	lost := rows / n * d * gone
	for row := range rows % n {
		for col := range d {
			if c.members[(row+col)%n].dev == nil {
				lost++
			}
		}
	}
	return lost * stripeLen
}
