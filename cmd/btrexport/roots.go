package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/fsread/volume"
)

// printRuined shows what other states there are of a filesystem whose last commit can't be opened.
func (a *app) printRuined(err error) error {
	var ruined *fsread.RuinedError
	if !errors.As(err, &ruined) {
		return nil
	}
	if a.json {
		return printJSON(a.out, struct {
			Roots []rootJSON `json:"roots"`
		}{rootObjects(ruined.Roots)})
	}
	return printRoots(a.out, ruined.Roots)
}

func printRoots(w io.Writer, roots []fsread.RootInfo) error {
	rows := [][]string{{"roots       GENERATION", "ROOT", "CHUNK ROOT", "WHERE", "STATE"}}
	for _, r := range roots {
		rows = append(rows, []string{fmt.Sprintf("            %d", r.Generation), decimal(uint64(r.Root)), decimal(uint64(r.ChunkRoot)),
			rootPlace(&r), rootState(&r)})
	}
	return columns(w, rows)
}

// rootPlace says which superblock knows of a state, and in which slot.
func rootPlace(r *fsread.RootInfo) string {
	place := "superblock"
	if r.Slot >= 0 {
		place = fmt.Sprintf("backup %d", r.Slot)
	}
	if r.Device != "" {
		place += fmt.Sprintf(" of copy %d on %s", r.SuperCopy, shown(r.Device))
	}
	return place
}

func rootState(r *fsread.RootInfo) string {
	state := "ok"
	switch {
	case r.Err != nil:
		return "unreadable: " + shortCause(r.Err)
	case r.Open:
		state = "ok, open"
	}
	if r.ChunkErr != nil {
		state += ", with the last commit's chunk tree: its own is unreadable: " + shortCause(r.ChunkErr)
	}
	return state
}

// shortCause is what was wrong with the first copy that was asked; --json has them all.
func shortCause(err error) string {
	var lost *volume.Lost
	if errors.As(err, &lost) && lost.Err == nil && len(lost.Copies) > 0 {
		err = lost.Copies[0].Err
	}
	return printable(err.Error())
}

// rootJSON is a state that a superblock knows of.
type rootJSON struct {
	Generation    uint64 `json:"generation"`
	Slot          *int   `json:"slot,omitempty"`      // --backup-root; left out: the superblock's own
	Device        string `json:"device,omitempty"`    // whose superblock; left out: the one that speaks for the filesystem
	SuperCopy     int    `json:"superblock_copy"`     // of that device
	Root          uint64 `json:"root"`                // logical address, bytes
	ChunkRoot     uint64 `json:"chunk_root"`          // logical address, bytes
	Readable      bool   `json:"readable"`            // the root block, now
	Error         string `json:"error,omitempty"`     // why not
	ChunkReadable bool   `json:"chunk_tree_readable"` // false: the last commit's is used
	ChunkError    string `json:"chunk_tree_error,omitempty"`
	Open          bool   `json:"open,omitempty"` // what all else describes
}

func rootObjects(roots []fsread.RootInfo) []rootJSON {
	out := make([]rootJSON, 0, len(roots))
	for _, r := range roots {
		o := rootJSON{Generation: r.Generation, Device: r.Device, SuperCopy: r.SuperCopy, Root: uint64(r.Root), ChunkRoot: uint64(r.ChunkRoot),
			Readable: r.Err == nil, ChunkReadable: r.ChunkErr == nil, Open: r.Open}
		if r.Slot >= 0 {
			slot := r.Slot
			o.Slot = &slot
		}
		if r.Err != nil {
			o.Error = r.Err.Error()
		}
		if r.ChunkErr != nil {
			o.ChunkError = r.ChunkErr.Error()
		}
		out = append(out, o)
	}
	return out
}
