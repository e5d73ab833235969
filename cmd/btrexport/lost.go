package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/btrexport/btrexport/fsread"
)

// maxLostListed bounds how many lost ranges are remembered one by one.
const maxLostListed = 1 << 16

// losses is what a copy went on without, for --skip-bad.
type losses struct {
	fill   byte // what stands in the copy instead
	list   []lostPart
	bytes  uint64
	ranges int    // list, and those beyond maxLostListed
	end    uint64 // where the last range ends
}

// lostPart is a range of the file: adjacent blocks make one.
type lostPart struct {
	off, n uint64
	cause  string // of its first block
}

// add notes a range. They come in the order of the file.
func (l *losses) add(off, n uint64, cause string) {
	l.bytes += n
	joins := l.ranges > 0 && l.end == off
	l.end = off + n
	switch {
	case joins && l.ranges == len(l.list):
		l.list[len(l.list)-1].n += n
	case joins:
	default:
		if l.ranges++; len(l.list) < maxLostListed {
			l.list = append(l.list, lostPart{off, n, cause})
		}
	}
}

// lostJSON is a lost range as --json has it.
type lostJSON struct {
	MessageType string `json:"message_type"`
	Path        string `json:"path"`
	Offset      uint64 `json:"offset"` // in the file, bytes
	Length      uint64 `json:"length"`
	Cause       string `json:"cause"`
}

// print lists the ranges: lines on text, objects on json where that is not nil.
func (l *losses) print(path string, json, text io.Writer) error {
	for _, p := range l.list {
		if json != nil {
			if err := printJSON(json, lostJSON{"lost", path, p.off, p.n, p.cause}); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(text, "lost: %s offset %d length %d: %s\n", shown(path), p.off, p.n, printable(p.cause))
	}
	if more := l.ranges - len(l.list); more > 0 && json == nil {
		fmt.Fprintf(text, "lost: %s: %d more ranges\n", shown(path), more)
	}
	return nil
}

// sentence is what the summary says of it.
func (l *losses) sentence() string {
	what := "zeroes"
	if l.fill != 0 {
		what = fmt.Sprintf("bytes of 0x%02x", l.fill)
	}
	return fmt.Sprintf("%d bytes lost in %s, %s stand in their place", l.bytes, count(l.ranges, "range"), what)
}

// skippedError is a copy that went on without what was lost.
type skippedError struct {
	path string
	what string
}

func (e *skippedError) Error() string { return fmt.Sprintf("read %s: %s", e.path, e.what) }

// causeOf is why a range is lost, each copy's cause after the other.
func causeOf(r *fsread.LostRange) string {
	if r.Cause.Err != nil {
		return r.Cause.Err.Error()
	}
	causes := make([]string, 0, len(r.Cause.Copies))
	for _, c := range r.Cause.Copies {
		column := ""
		if c.Column != "" {
			column = "column " + c.Column + " " // of the parity row that the block was to be made of
		}
		causes = append(causes, fmt.Sprintf("%sdevid %d (%s) @%d: %v", column, c.Dev, c.Name, c.Physical, c.Err))
	}
	return "no good copy: " + strings.Join(causes, ", ")
}

// skippable says whether an error is one of the filesystem's content, so that other parts may be good.
func skippable(err error) bool { return !errors.Is(err, fsread.ErrClosed) }
