package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/btrexport/btrexport/fsread"
)

func (a *app) infoCommand() *cobra.Command {
	var dev deviceFlags
	var exact bool
	cmd := &cobra.Command{
		Use:   "info -d DEVICE...",
		Short: "Show a filesystem: label, devices, profiles, features",
		Long: "info shows what is known of a filesystem without reading its files. A device is ok, missing (not given), or " +
			"stale (it missed writes: its copies are asked last); a seed belongs to the filesystem that this one sprouted from. " +
			"USED is what chunks take of a device; allocated is what chunks of a kind hold, in use what of that is taken, each byte counted once, whatever its copies. " +
			"With --degraded it says what can't be read without the devices that are missing.\n\n" +
			"roots are the states that superblocks know of: --generation, or --backup-root for one in a backup slot, opens one. ok means that the topmost block " +
			"of its root tree can be read; what lies below may have been overwritten since. They are shown too, with exit status 1, where the last commit can't be opened.\n\n" + exitHelp,
		Args: arguments(0, 0, "no argument"),
	}
	dev.add(cmd)
	cmd.Flags().BoolVar(&exact, "bytes", false, "exact sizes in bytes")
	a.jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		f, err := dev.open(cmd.Context(), a.log, nil)
		if err != nil {
			return errors.Join(a.printRuined(err), err)
		}
		defer f.Close()
		i, err := f.Usage(cmd.Context())
		if err != nil {
			a.log.Warn("what is in use can't be told", "err", err)
		}
		roots, err := f.Roots(cmd.Context())
		if err != nil {
			return err
		}
		log := f.Log()
		if a.json {
			return printJSON(a.out, infoObject(&i, &log, roots))
		}
		return printInfo(a.out, &i, &log, roots, exact)
	}
	return cmd
}

// printInfo is the page for people.
func printInfo(w io.Writer, i *fsread.Info, log *fsread.LogInfo, roots []fsread.RootInfo, exact bool) error {
	label := "(no label)"
	if i.Label != "" {
		label = shown(i.Label)
	}
	state := ""
	if i.Degraded() {
		state = "  DEGRADED"
	}
	if i.Newest != i.Generation {
		state = fmt.Sprintf(" (the last is %d)", i.Newest) + state
	}
	fmt.Fprintf(w, "filesystem  %s  %s  generation %d%s\n", label, i.FSID, i.Generation, state)
	fmt.Fprintf(w, "checksums   %s   node %s   sector %s\n", i.Checksum, size(uint64(i.NodeSize), exact), size(uint64(i.SectorSize), exact))
	fmt.Fprintf(w, "features    %s\n", dash(strings.Join(i.Features, " ")))
	fmt.Fprintf(w, "used        %s of %s\n", size(i.Used, exact), size(i.Total, exact))
	fmt.Fprintf(w, "profiles    %s\n", profiles(i.Groups))
	fmt.Fprintf(w, "allocated   %s\n", byKind(i.Groups, exact, func(g *fsread.BlockGroups) uint64 { return g.Bytes }))
	fmt.Fprintf(w, "in use      %s\n", byKind(i.Groups, exact, func(g *fsread.BlockGroups) uint64 { return g.Used }))
	for _, line := range lostLines(i, exact) {
		fmt.Fprintln(w, line)
	}
	for _, line := range logLines(log) {
		fmt.Fprintln(w, line)
	}
	rows := [][]string{{"devices     DEVID", "SIZE", "USED", "PATH", "STATE"}}
	for _, d := range i.Devices {
		length, path, state := "-", "-", deviceState(&d)
		if d.Seed {
			state += " seed"
		}
		if !d.Missing {
			length, path = size(d.Size, exact), shown(d.Name)
		}
		if d.Missing {
			state += " uuid " + d.UUID.String()
		}
		rows = append(rows, []string{fmt.Sprintf("            %d", d.DevID), length, size(d.Allocated, exact), path, state})
	}
	if err := columns(w, rows); err != nil {
		return err
	}
	return printRoots(w, roots)
}

// profiles lists each kind of chunk with its profiles: several after a conversion that was not finished.
func profiles(groups []fsread.BlockGroups) string {
	var out []string
	last := ""
	for _, g := range groups {
		if g.Kind == last {
			out[len(out)-1] += "," + g.Profile.String()
			continue
		}
		last = g.Kind
		out = append(out, g.Kind+" "+g.Profile.String())
	}
	return strings.Join(out, "   ")
}

// byKind lists a number of bytes of the chunks of each kind; by profile, where a kind has several.
func byKind(groups []fsread.BlockGroups, exact bool, of func(*fsread.BlockGroups) uint64) string {
	var out []string
	for n, g := range groups {
		bytes := size(of(&g), exact)
		before, after := n > 0 && groups[n-1].Kind == g.Kind, n+1 < len(groups) && groups[n+1].Kind == g.Kind
		if before || after {
			bytes = g.Profile.String() + " " + bytes
		}
		if before {
			out[len(out)-1] += ", " + bytes
			continue
		}
		out = append(out, g.Kind+" "+bytes)
	}
	return strings.Join(out, "   ")
}

// lostLines tell what can't be read without the devices that are missing; nothing where none is.
func lostLines(i *fsread.Info, exact bool) []string {
	if !i.Degraded() {
		return nil
	}
	var out []string
	for _, g := range i.Groups {
		if g.Unreadable > 0 {
			out = append(out, fmt.Sprintf("unreadable  %s %s: %s of %s allocated", g.Kind, g.Profile, size(g.Unreadable, exact), size(g.Bytes, exact)))
		}
	}
	if out == nil {
		out = []string{"unreadable  nothing: every block has a copy or parity left"}
	}
	return out
}

// logLines tell what became of the log of a filesystem that was not unmounted; nothing of one that was.
func logLines(l *fsread.LogInfo) []string {
	switch {
	case !l.Present:
		return nil
	case l.Ignored:
		return []string{"log         present, ignored: what was synced after the last commit is not shown"}
	}
	lines := []string{fmt.Sprintf("log         present, replayed in memory for %s", count(len(l.Subvolumes)-len(l.Refused), "subvolume"))}
	for _, id := range l.Subvolumes {
		if err := l.Refused[id]; err != nil {
			lines = append(lines, "            refused: "+printable(err.Error()))
		}
	}
	return lines
}

func deviceState(d *fsread.DeviceInfo) string {
	switch {
	case d.Missing:
		return "missing"
	case d.Stale:
		return "stale"
	}
	return "ok"
}

// infoJSON is the filesystem as --json has it. Sizes in bytes.
type infoJSON struct {
	Label          string        `json:"label"`
	FSID           string        `json:"fsid"`
	Generation     uint64        `json:"generation"`
	Newest         uint64        `json:"newest_generation"` // of the last commit
	SuperblockCopy int           `json:"superblock_copy"`
	Checksum       string        `json:"checksum"`
	NodeSize       uint32        `json:"node_size"`
	SectorSize     uint32        `json:"sector_size"`
	Features       []string      `json:"features"`
	Used           uint64        `json:"used"`
	Total          uint64        `json:"total"`
	Degraded       bool          `json:"degraded"`
	Roots          []rootJSON    `json:"roots,omitempty"` // not of check-config
	Log            logJSON       `json:"log"`
	Profiles       []profileJSON `json:"profiles"`
	Devices        []deviceJSON  `json:"devices"`
}

// logJSON is what became of the log of a filesystem that was not unmounted.
type logJSON struct {
	Present  bool         `json:"present"`
	Ignored  bool         `json:"ignored,omitempty"`
	Replayed []uint64     `json:"replayed,omitempty"` // ids of subvolumes
	Refused  []refusedLog `json:"refused,omitempty"`
}

type refusedLog struct {
	Subvolume uint64 `json:"subvolume"`
	Reason    string `json:"reason"`
}

func logObject(l *fsread.LogInfo) logJSON {
	o := logJSON{Present: l.Present, Ignored: l.Ignored}
	for _, id := range l.Subvolumes {
		if err := l.Refused[id]; err != nil {
			o.Refused = append(o.Refused, refusedLog{id, err.Error()})
			continue
		}
		o.Replayed = append(o.Replayed, id)
	}
	return o
}

type profileJSON struct {
	Kind    string `json:"kind"`
	Profile string `json:"profile"`
	Chunks  int    `json:"chunks"`
	Bytes   uint64 `json:"bytes"` // allocated, each byte counted once
	Used    uint64 `json:"used"`  // of bytes
	// Unreadable is what of bytes can't be read without the devices that are missing.
	Unreadable uint64 `json:"unreadable,omitempty"`
}

type deviceJSON struct {
	DevID      uint64 `json:"devid"`
	UUID       string `json:"uuid"`
	Path       string `json:"path,omitempty"`
	Size       uint64 `json:"size,omitempty"`
	Used       uint64 `json:"used"`
	Generation uint64 `json:"generation,omitempty"`
	State      string `json:"state"` // ok, missing or stale
	Seed       bool   `json:"seed,omitempty"`
}

func infoObject(i *fsread.Info, log *fsread.LogInfo, roots []fsread.RootInfo) infoJSON {
	o := infoJSON{Label: i.Label, FSID: i.FSID.String(), Generation: i.Generation, SuperblockCopy: i.SuperCopy, Checksum: i.Checksum,
		NodeSize: i.NodeSize, SectorSize: i.SectorSize, Features: append([]string{}, i.Features...), Used: i.Used, Total: i.Total, Degraded: i.Degraded(), Log: logObject(log),
		Newest: i.Newest, Roots: rootObjects(roots)}
	for _, g := range i.Groups {
		o.Profiles = append(o.Profiles, profileJSON{Kind: g.Kind, Profile: g.Profile.String(), Chunks: g.Chunks, Bytes: g.Bytes, Used: g.Used, Unreadable: g.Unreadable})
	}
	for _, d := range i.Devices {
		o.Devices = append(o.Devices, deviceJSON{DevID: uint64(d.DevID), UUID: d.UUID.String(), Path: d.Name, Size: d.Size,
			Used: d.Allocated, Generation: d.Generation, State: deviceState(&d), Seed: d.Seed})
	}
	return o
}
