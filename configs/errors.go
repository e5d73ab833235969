package configs

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"unicode"
	"unicode/utf8"
)

// Pos is where an element of a Config was written: in a file, or in a flag.
type Pos struct {
	File string
	Line int    // from 1; 0: not a place in the file
	Flag string // as the user wrote it, for example "-e vm1=/vm1.raw"; empty: from a file
}

// String is FILE:LINE, or FILE where there is no line, or the flag.
func (p Pos) String() string {
	switch {
	case p.Flag != "":
		return printable(p.Flag)
	case p.Line == 0:
		return printable(p.File)
	default:
		return printable(p.File) + ":" + strconv.Itoa(p.Line)
	}
}

// Errorf makes an *Error at p. It is how later checks (a missing device, a path that is no regular file)
// report; %w works as in fmt.Errorf. By custom the text ends with a remedy in parentheses.
func (p Pos) Errorf(format string, args ...any) error {
	return &Error{Pos: p, Err: fmt.Errorf(format, args...)}
}

// earlier says where the first of two equal things stands, seen from the second.
func (p Pos) earlier() string {
	switch {
	case p.Flag != "":
		return "by " + printable(p.Flag)
	case p.Line == 0:
		return "by default"
	default:
		return "on line " + strconv.Itoa(p.Line)
	}
}

// Error is one mistake in a configuration.
type Error struct {
	Pos Pos
	Err error
}

// Error is one line: the place, the text, the remedy.
func (e *Error) Error() string {
	where := e.Pos.String()
	if where == "" {
		return e.Err.Error()
	}
	return where + ": " + e.Err.Error()
}

// Unwrap gives the mistake without its place.
func (e *Error) Unwrap() error { return e.Err }

// maxErrors is how many mistakes are shown: who passes the wrong file wants a line, not a flood.
const maxErrors = 20

// errorList gathers mistakes, so that one run shows them all.
type errorList struct {
	list []*Error
	more int // mistakes beyond maxErrors
}

func (l *errorList) add(p Pos, format string, args ...any) {
	if l.full() {
		l.more++
		return
	}
	l.list = append(l.list, &Error{Pos: p, Err: fmt.Errorf(format, args...)})
}

// full tells that the next mistake will only be counted.
func (l *errorList) full() bool { return len(l.list) == maxErrors }

// err joins the mistakes in the order of their lines; flags keep the order in which they were found.
func (l *errorList) err() error {
	slices.SortStableFunc(l.list, func(a, b *Error) int { return cmp.Compare(a.Pos.Line, b.Pos.Line) })
	errs := make([]error, 0, len(l.list)+1)
	for _, e := range l.list {
		errs = append(errs, e)
	}
	if l.more > 0 {
		last := l.list[len(l.list)-1].Pos
		errs = append(errs, last.Errorf("and %d more (mend the ones above first)", l.more))
	}
	return errors.Join(errs...)
}

// printable is s, in quotes only if it holds what would break the line or the terminal.
func printable(s string) string {
	for _, r := range s {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			return strconv.Quote(s)
		}
	}
	return s
}

// quote shows a user's value in a message: control characters escaped, long ones cut.
func quote(s string) string {
	const most = 60 // bytes
	if len(s) <= most {
		return strconv.Quote(s)
	}
	end := most
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return strconv.Quote(s[:end]) + "…"
}
