package main

import (
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

func (a *app) subvolumesCommand() *cobra.Command {
	var dev deviceFlags
	cmd := &cobra.Command{
		Use:   "subvolumes -d DEVICE...",
		Short: "List subvolumes and snapshots",
		Long: "subvolumes lists the top level (id 5), then every subvolume and snapshot by id. Paths are from the top level. " +
			"The flags: ro for read-only, default for the one that a plain mount shows.\n\n" + exitHelp,
		Args: arguments(0, 0, "no argument"),
	}
	dev.add(cmd)
	a.jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		f, err := dev.open(cmd.Context(), a.log, nil)
		if err != nil {
			return err
		}
		defer f.Close()
		list, err := f.Subvolumes(cmd.Context())
		if err != nil {
			return err
		}
		if a.json {
			return printSubvolumesJSON(a.out, list)
		}
		return printSubvolumes(a.out, list)
	}
	return cmd
}

// subvolumeJSON is one subvolume as --json has it.
type subvolumeJSON struct {
	ID         uint64 `json:"id"`
	Path       string `json:"path"`
	RawPath    string `json:"path_base64,omitempty"` // where path is no UTF-8
	Parent     uint64 `json:"parent,omitempty"`      // id of the subvolume that it lies in
	Generation uint64 `json:"generation"`
	UUID       string `json:"uuid,omitempty"`
	ParentUUID string `json:"parent_uuid,omitempty"` // of what it is a snapshot of
	ReadOnly   bool   `json:"read_only"`
	Default    bool   `json:"default"`
}

func printSubvolumesJSON(w io.Writer, list []fsread.SubvolumeInfo) error {
	for _, s := range list {
		path := "/" + s.Path
		if err := printJSON(w, subvolumeJSON{ID: s.ID, Path: path, RawPath: rawName(path), Parent: s.Parent, Generation: s.Generation,
			UUID: uuid(s.UUID), ParentUUID: uuid(s.ParentUUID), ReadOnly: s.ReadOnly, Default: s.Default}); err != nil {
			return err
		}
	}
	return nil
}

func printSubvolumes(w io.Writer, list []fsread.SubvolumeInfo) error {
	origin := make(map[ondisk.UUID]string)
	for _, s := range list {
		origin[s.UUID] = "/" + s.Path
	}
	rows := [][]string{{"ID", "GENERATION", "FLAGS", "UUID", "PATH"}}
	for _, s := range list {
		flags, path := "", shown("/"+s.Path)
		if s.ReadOnly {
			flags = "ro"
		}
		if s.Default {
			if flags != "" {
				flags += ","
			}
			flags += "default"
		}
		if !s.ParentUUID.IsZero() {
			of := origin[s.ParentUUID]
			if of == "" {
				of = s.ParentUUID.String()
			}
			path += "  (snapshot of " + shown(of) + ")"
		}
		rows = append(rows, []string{strconv.FormatUint(s.ID, 10), strconv.FormatUint(s.Generation, 10), dash(flags), dash(uuid(s.UUID)), path})
	}
	return columns(w, rows)
}

func uuid(u ondisk.UUID) string {
	if u.IsZero() {
		return ""
	}
	return u.String()
}

// dash fills an empty cell, so that columns can be cut by blanks.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
