package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/fsread/volume"
)

// rangeLine is a bad range for people: where in the file, and what each copy is, the good ones last.
func rangeLine(path string, b *fsread.BadRange) string {
	var copies, good []string
	for i := range b.Copies {
		if c := &b.Copies[i]; c.State == volume.Good {
			good = append(good, copyText(c, b.Copies))
		} else {
			copies = append(copies, copyText(c, b.Copies))
		}
	}
	copies = append(copies, good...)
	if b.Err != nil && len(b.Copies) != 1 {
		copies = append(copies, b.Err.Error())
	}
	if b.Repair {
		copies = append(copies, "can be rebuilt or read by another try")
	}
	return fmt.Sprintf("%s  %s  offset %d length %d: %s", shown(path), strings.ToUpper(verdictName(b)), b.Off, b.Len, printable(strings.Join(copies, "; ")))
}

// verdictName says in two words what is wrong with a range.
func verdictName(b *fsread.BadRange) string {
	switch {
	case b.Lost:
		return "lost"
	case len(b.Copies) == 1 && b.Copies[0].State == volume.NotJudged:
		return "not judged"
	}
	differs := false
	for _, c := range b.Copies {
		if c.State == volume.Bad || c.State == volume.Unreadable {
			if c.Parity != "" {
				return "bad parity"
			}
			return "bad copy"
		}
		differs = differs || c.State == volume.Differs
	}
	if differs {
		return "copies differ"
	}
	return "bad copy"
}

// copyText is one copy. Of a good one the device says enough, unless another copy is on it.
func copyText(c *volume.CopyState, all []volume.CopyState) string {
	same := 0
	for _, o := range all {
		if o.DevID == c.DevID {
			same++
		}
	}
	s := fmt.Sprintf("devid %d", c.DevID)
	if c.Parity != "" {
		s += " " + c.Parity
	}
	if c.Missing {
		return s + " missing"
	}
	if same > 1 || c.State != volume.Good {
		s += fmt.Sprintf(" @%d", c.Physical)
	}
	if c.State == volume.Good || c.Err == nil {
		return s + " " + c.State.String()
	}
	return s + " " + c.Err.Error()
}

// verifyRange is a bad range as --json has it. Offsets and lengths in bytes.
type verifyRange struct {
	MessageType string       `json:"message_type"`
	Path        string       `json:"path"`
	RawPath     string       `json:"path_base64,omitempty"` // where path is no UTF-8
	Kind        string       `json:"kind"`
	Off         uint64       `json:"offset"` // in the file; of a compressed extent, all that it serves
	Len         uint64       `json:"length"`
	Logical     uint64       `json:"logical"`
	Disk        uint64       `json:"disk_length"` // from each copy's physical on
	Lost        bool         `json:"lost"`
	Rebuilt     bool         `json:"rebuilt,omitempty"` // no copy is good, and yet it can be read
	Error       string       `json:"error,omitempty"`
	Copies      []verifyCopy `json:"copies"`
}

// verifyCopy is one copy of a bad range, or the parity that is not good.
type verifyCopy struct {
	DevID    uint64 `json:"devid"`
	Device   string `json:"device"`
	Physical uint64 `json:"physical"`
	Mirror   uint8  `json:"mirror,omitempty"`
	Parity   string `json:"parity,omitempty"` // P or Q
	State    string `json:"state"`
	Error    string `json:"error,omitempty"` // of the first block
}

func newVerifyRange(path string, b *fsread.BadRange) *verifyRange {
	o := &verifyRange{MessageType: "bad_range", Path: path, RawPath: rawName(path), Kind: strings.ReplaceAll(verdictName(b), " ", "-"), Off: b.Off, Len: b.Len,
		Logical: uint64(b.Logical), Disk: b.Disk, Lost: b.Lost, Rebuilt: b.Repair, Error: text(b.Err), Copies: []verifyCopy{}}
	for _, c := range b.Copies {
		o.Copies = append(o.Copies, verifyCopy{DevID: uint64(c.DevID), Device: c.Name, Physical: uint64(c.Physical), Mirror: uint8(c.Mirror),
			Parity: c.Parity, State: stateName(c.State), Error: text(c.Err)})
	}
	return o
}

// stateName is a state as one word.
func stateName(s volume.State) string { return strings.ReplaceAll(s.String(), " ", "-") }

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// verifyFile is what became of one file, as --json has it.
type verifyFile struct {
	MessageType string `json:"message_type"`
	Path        string `json:"path"`
	RawPath     string `json:"path_base64,omitempty"`
	Bytes       uint64 `json:"bytes"` // of its data on the disks, without copies
	Verified    bool   `json:"verified"`
	Ranges      int    `json:"bad_ranges"`
	Bad         int64  `json:"bad_blocks"` // copies of blocks, and parity
	Unreadable  int64  `json:"unreadable_blocks"`
	Differ      int64  `json:"differing_blocks"`
	NotJudged   int64  `json:"unjudged_blocks"`
	Lost        uint64 `json:"lost_bytes"`
	Error       string `json:"error,omitempty"` // why it could not be checked
}

func newVerifyFile(path string, v *fsread.FileVerdict, err error) *verifyFile {
	return &verifyFile{MessageType: "file", Path: path, RawPath: rawName(path), Bytes: v.Bytes, Verified: !v.NoSums, Ranges: v.Ranges,
		Bad: v.Blocks[volume.Bad], Unreadable: v.Blocks[volume.Unreadable], Differ: v.Blocks[volume.Differs], NotJudged: v.Blocks[volume.NotJudged],
		Lost: v.Lost, Error: text(err)}
}

// line is the same for people; nothing where there is nothing to say.
func (f *verifyFile) line() string {
	var parts []string
	add := func(n int64, what string) {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, what))
		}
	}
	if f.Bad > 0 {
		parts = append(parts, count(int(f.Bad), "bad block"))
	}
	add(f.Unreadable, "unreadable")
	add(f.Differ, "differ")
	add(f.NotJudged, "of parity not judged")
	switch {
	case f.Lost > 0:
		parts = append(parts, fmt.Sprintf("%d bytes lost", f.Lost))
	case len(parts) > 0:
		parts = append(parts, "nothing lost")
	}
	if !f.Verified {
		parts = append(parts, "unverified: no checksums")
	}
	if len(parts) == 0 {
		return ""
	}
	return fmt.Sprintf("%s: %s", shown(f.Path), strings.Join(parts, ", "))
}

// verifySummary is the end of a run, as --json has it.
type verifySummary struct {
	MessageType string         `json:"message_type"`
	Result      string         `json:"result"` // good; bad: nothing is lost; lost; incomplete: good so far
	Files       int            `json:"files"`
	BadFiles    int            `json:"bad_files"`
	LostFiles   int            `json:"lost_files"`
	Failed      int            `json:"failed_files"` // that could not be checked to their end
	Unverified  int            `json:"unverified_files"`
	Names       int            `json:"hard_links"` // further names of files that were checked
	Bytes       uint64         `json:"bytes"`      // of data, each once
	LostBytes   uint64         `json:"lost_bytes"`
	MinCopies   int            `json:"copies_min"`
	MaxCopies   int            `json:"copies_max"`
	Parity      int            `json:"parity"`          // parity blocks of a row
	BadTrees    int64          `json:"bad_tree_blocks"` // met on the way to the files, where another copy served
	Repeated    bool           `json:"repeated,omitempty"`
	Seconds     float64        `json:"seconds"`
	Interrupted *verifyPlace   `json:"interrupted,omitempty"`
	Devices     []verifyDevice `json:"devices"`
}

// verifyPlace is how far an interrupted run came.
type verifyPlace struct {
	Path   string `json:"path"`
	Offset uint64 `json:"offset"`
}

// verifyDevice is a device and its blocks, each counted once.
type verifyDevice struct {
	DevID      uint64 `json:"devid"`
	UUID       string `json:"uuid"`
	Path       string `json:"path,omitempty"`
	Missing    bool   `json:"missing,omitempty"`
	Stale      bool   `json:"stale,omitempty"` // it missed writes
	Blocks     int64  `json:"blocks"`
	Good       int64  `json:"good"`
	Bad        int64  `json:"bad"`
	Unreadable int64  `json:"unreadable"`
	Absent     int64  `json:"absent"` // since the device is missing
	Unverified int64  `json:"unverified"`
	Differ     int64  `json:"differing"`
	NotJudged  int64  `json:"unjudged"`
}

// add counts a file, also one that was not read to its end.
func (s *verifySummary) add(v *fsread.FileVerdict) {
	s.Files++
	if v.Ranges > 0 {
		s.BadFiles++
	}
	if v.Lost > 0 {
		s.LostFiles++
		s.LostBytes += v.Lost
	}
	if v.NoSums {
		s.Unverified++
	}
}

// fill takes over what was read, and gives the result.
func (s *verifySummary) fill(v fsread.VerifySummary, took time.Duration, trees int64) {
	s.MessageType, s.Bytes, s.MinCopies, s.MaxCopies, s.Parity = "summary", v.Bytes, v.MinCopies, v.MaxCopies, v.Parity
	s.BadTrees, s.Repeated, s.Seconds = trees, v.Repeated, took.Seconds()
	s.Result = "good"
	for _, d := range v.Devices {
		o := verifyDevice{DevID: uint64(d.DevID), UUID: d.UUID.String(), Path: d.Name, Missing: d.Missing, Stale: d.Stale, Blocks: d.Blocks(),
			Good: d.Tally[volume.Good], Bad: d.Tally[volume.Bad], Unreadable: d.Tally[volume.Unreadable], Absent: d.Tally[volume.Missing],
			Unverified: d.Tally[volume.Unverified], Differ: d.Tally[volume.Differs], NotJudged: d.Tally[volume.NotJudged]}
		if o.Good+o.Unverified < o.Blocks {
			s.Result = "bad"
		}
		s.Devices = append(s.Devices, o)
	}
	if s.BadFiles > 0 || s.Failed > 0 {
		s.Result = "bad"
	}
	if s.LostBytes > 0 {
		s.Result = "lost"
	}
	if s.Result == "good" && s.Interrupted != nil {
		s.Result = "incomplete"
	}
}

// lines are the summary for people. The last one says whether anything is lost, and what to do.
func (s *verifySummary) lines() []string {
	bad, lost := "1 file has bad copies", "1 file lost data"
	if s.BadFiles != 1 {
		bad = fmt.Sprintf("%d files have bad copies", s.BadFiles)
	}
	if s.LostFiles != 1 {
		lost = fmt.Sprintf("%d files lost data", s.LostFiles)
	}
	out := []string{fmt.Sprintf("%s, %s, %s: %s, %s", count(s.Files, "file"), iec(s.Bytes), s.copies(), bad, lost)}
	add := func(n int, format string, args ...any) {
		if n > 0 {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	add(s.Failed, "%s could not be checked to the end, see the errors", count(s.Failed, "file"))
	add(s.Unverified, "%s without checksums: their copies were read and compared, nothing tells whether they are right", count(s.Unverified, "file"))
	add(s.Names, "%s of files that were checked by another name", count(s.Names, "hard link"))
	for i := range s.Devices {
		add(1, "%s", s.Devices[i].line())
	}
	add(int(min(s.BadTrees, 1<<30)), "%s bad in one copy on the way to the files: btrfs scrub checks all of them", count(int(s.BadTrees), "tree block"))
	if s.Repeated {
		out = append(out, "too many pieces to remember: some shared blocks were read and counted more than once")
	}
	if s.Interrupted != nil {
		out = append(out, fmt.Sprintf("interrupted at %s offset %d: what follows was not read", shown(s.Interrupted.Path), s.Interrupted.Offset))
	}
	return append(out, s.verdict())
}

func (s *verifySummary) copies() string {
	text := copiesText(s.MaxCopies)
	if s.MinCopies != s.MaxCopies {
		text = fmt.Sprintf("%d to %s", s.MinCopies, text)
	}
	if s.Parity > 0 {
		return text + " of each and its parity read"
	}
	return text + " of each read"
}

// verdict is the last line.
func (s *verifySummary) verdict() string {
	so := ""
	if s.Interrupted != nil {
		so = " so far"
	}
	switch s.Result {
	case "lost":
		return fmt.Sprintf("data is lost%s: %d bytes in %s; next: restore them from a backup; reads of the rest work, btrexport serve gives them", so, s.LostBytes, count(s.LostFiles, "file"))
	case "bad":
		next := "btrfs scrub on the mounted filesystem rewrites bad copies"
		bad := s.BadFiles > 0
		for _, d := range s.Devices {
			if d.Absent > 0 && !bad {
				next = "btrfs replace or balance on the mounted filesystem makes up for the missing device"
			}
		}
		if s.Failed > 0 {
			return fmt.Sprintf("no data is known to be lost%s, not all could be checked; next: %s; btrexport never writes", so, next)
		}
		return fmt.Sprintf("nothing is lost%s; next: %s; btrexport never writes", so, next)
	}
	if s.Unverified > 0 {
		return "every copy is good" + so + ", as far as there are checksums"
	}
	return "every copy is good" + so
}

func (d *verifyDevice) line() string {
	s := fmt.Sprintf("devid %d", d.DevID)
	if d.Missing {
		return fmt.Sprintf("%s (missing): %d blocks could not be read", s, d.Absent)
	}
	s += fmt.Sprintf(" (%s): %s of %d", shown(d.Path), count(int(d.Bad+d.Unreadable), "bad block"), d.Blocks)
	for _, x := range []struct {
		n    int64
		what string
	}{{d.Unreadable, "unreadable"}, {d.Differ, "differ"}, {d.NotJudged, "not judged"}, {d.Unverified, "unverified"}} {
		if x.n > 0 {
			s += fmt.Sprintf(", %d %s", x.n, x.what)
		}
	}
	if d.Stale {
		s += "; it missed writes"
	}
	return s
}
