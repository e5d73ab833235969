package main

import (
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/btrexport/btrexport/configs"
	"github.com/btrexport/btrexport/metrics"
)

func (a *app) checkConfigCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check-config FILE",
		Short: "Check a configuration and show what it would serve",
		Long: "check-config reads FILE, opens every filesystem and finds every export's file, as serve does, and listens on nothing. " +
			"Mistakes are told with file and line.\n\n" + exitHelp,
		Args: arguments(1, 1, "one FILE"),
	}
	a.jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := configs.Load(args[0])
		if err != nil {
			return err
		}
		s, err := openSite(cmd.Context(), c, metrics.New(metrics.Build{}), a.log, nil)
		if err != nil {
			return err
		}
		page := checked(c, s)
		if a.json {
			err = printJSON(a.out, page)
		} else {
			err = page.print(a.out)
		}
		if cerr := s.close(nil); err == nil {
			err = cerr
		}
		return err
	}
	return cmd
}

// checkedJSON is what a configuration would serve, as --json has it.
type checkedJSON struct {
	File        string              `json:"file"`
	Listen      []string            `json:"listen"`
	Metrics     string              `json:"metrics,omitempty"`
	Filesystems []checkedFilesystem `json:"filesystems"`
	Exports     []checkedExport     `json:"exports"`
}

type checkedFilesystem struct {
	Name string `json:"name"`
	infoJSON
}

type checkedExport struct {
	Name       string `json:"name"`
	Filesystem string `json:"filesystem"`
	Path       string `json:"path"`
	Subvolume  uint64 `json:"subvolume"`
	Inode      uint64 `json:"inode"`
	Size       uint64 `json:"size"`
	RoundUp    int64  `json:"round_up,omitempty"`
	Verified   bool   `json:"verified"` // false: the file has no checksums
	TLS        string `json:"tls"`      // off, allow or require
	Listed     bool   `json:"listed"`   // an access list says who may use it
}

func checked(c *configs.Config, s *site) *checkedJSON {
	p := &checkedJSON{File: c.File}
	for _, l := range c.Listen {
		p.Listen = append(p.Listen, l.String())
	}
	if c.Metrics != nil {
		p.Metrics = c.Metrics.String()
	}
	for _, f := range s.filesystems {
		i, log := f.Info(), f.Log()
		p.Filesystems = append(p.Filesystems, checkedFilesystem{Name: f.name, infoJSON: infoObject(&i, &log, nil)})
	}
	for _, x := range s.exports {
		p.Exports = append(p.Exports, checkedExport{Name: x.Name, Filesystem: x.fs.name, Path: x.Path, Subvolume: x.subvol,
			Inode: x.file.Inode(), Size: x.file.Size(), RoundUp: x.RoundUp, Verified: x.file.Verified(),
			TLS: tlsOf(s, x), Listed: len(x.Allow.Networks)+len(x.Allow.UIDs)+len(x.Allow.GIDs)+len(x.Allow.Names) > 0})
	}
	return p
}

func tlsOf(s *site, x *siteExport) string {
	if s.secret(x) {
		return "require"
	}
	return string(s.tls.Mode)
}

func (p *checkedJSON) print(w io.Writer) error {
	for _, l := range p.Listen {
		fmt.Fprintf(w, "listen      %s\n", l)
	}
	if p.Metrics != "" {
		fmt.Fprintf(w, "metrics     %s\n", p.Metrics)
	}
	for _, f := range p.Filesystems {
		state := ""
		if f.Degraded {
			state = "  DEGRADED"
		}
		fmt.Fprintf(w, "filesystem  %s  %s  generation %d, %d devices%s\n", shown(f.Name), f.FSID, f.Generation, len(f.Devices), state)
	}
	rows := [][]string{{"EXPORT", "FILESYSTEM", "SUBVOLUME", "INODE", "SIZE", "PATH"}}
	for _, x := range p.Exports {
		note := ""
		if !x.Verified {
			note = "  (no checksums: nothing can be verified)"
		}
		if x.TLS == "require" {
			note += "  (TLS only)"
		}
		if x.Listed {
			note += "  (access list)"
		}
		rows = append(rows, []string{shown(x.Name), shown(x.Filesystem), strconv.FormatUint(x.Subvolume, 10), strconv.FormatUint(x.Inode, 10),
			strconv.FormatUint(x.Size, 10), shown(x.Path) + note})
	}
	return columns(w, rows)
}
