package configs

import (
	"strconv"
	"strings"
	"time"
)

// Flags is what the command line of serve says in place of a configuration file.
type Flags struct {
	Devices      []string      // -d, or BTREXPORT_DEVICES
	Exports      []string      // -e NAME=PATH
	Listen       []string      // -l; none: DefaultListen
	Metrics      string        // --metrics; empty: none
	Subvol       string        // --subvol, for every export
	SubvolID     uint64        // --subvolid, for every export; 0: not given
	Degraded     bool          // --degraded
	AllowMounted bool          // --allow-mounted
	IgnoreLog    bool          // --ignore-log
	SlowRead     time.Duration // --slow-read; 0: not given
	IOEngine     string        // --io-engine; empty: not given
	Generation   uint64        // --generation; 0: not given
	BackupRoot   int           // 1 + --backup-root; 0: not given
}

// FromFlags makes the Config of one filesystem whose Name is empty: the caller, having opened it, takes its
// label or uuid for a name. Errors are those of Parse, naming the flag in place of file and line.
func FromFlags(f Flags) (*Config, error) {
	c := &Config{TLS: TLS{Mode: "off"}, Limits: defaultLimits()}
	var errs errorList
	fs := defaultFilesystem()
	fs.Degraded, fs.AllowMounted, fs.IgnoreLog = f.Degraded, f.AllowMounted, f.IgnoreLog
	if f.SlowRead != 0 {
		fs.SlowRead = f.SlowRead
	}
	if f.IOEngine != "" {
		fs.IOEngine = f.IOEngine
	}
	fs.Generation, fs.BackupRoot = f.Generation, f.BackupRoot
	for _, d := range f.Devices {
		pos := Pos{Flag: "-d " + d}
		if err := checkFile(d); err != nil {
			errs.add(pos, "%w", err)
			continue
		}
		fs.Devices = append(fs.Devices, Device{Path: d, Pos: pos})
	}
	if len(f.Devices) == 0 {
		errs.add(Pos{}, "no device is given (add -d DEVICE for each device of the filesystem, or -c FILE)")
	}
	c.Filesystems = []Filesystem{fs}
	for _, e := range f.Exports {
		c.Exports = append(c.Exports, exportFlag(e, &errs))
	}
	if len(f.Exports) == 0 {
		errs.add(Pos{}, "no export is given (add -e NAME=PATH, or -c FILE)")
	}
	c.subvolFlags(f, &errs)
	c.listenFlags(f.Listen, f.Metrics, &errs)
	if len(f.Listen) == 0 {
		c.Listen = []Listen{defaultListen()}
	}
	c.check(&errs)
	if err := errs.err(); err != nil {
		return nil, err
	}
	return c, nil
}

// subvolFlags gives every export the subvolume that the flags name.
func (c *Config) subvolFlags(f Flags, errs *errorList) {
	byPath, byID := Pos{Flag: "--subvol " + f.Subvol}, Pos{Flag: "--subvolid " + strconv.FormatUint(f.SubvolID, 10)}
	var pos Pos
	switch {
	case f.Subvol == "" && f.SubvolID == 0:
		return
	case f.Subvol != "" && f.SubvolID != 0:
		errs.add(byID, "the subvolume is already given %s (keep one of the two)", byPath.earlier())
		return
	case f.Subvol != "":
		pos = byPath
		if err := checkFile(f.Subvol); err != nil {
			errs.add(pos, "%w", err)
		}
	default:
		pos = byID
		if err := checkSubvolID(f.SubvolID); err != nil {
			errs.add(pos, "%w", err)
		}
	}
	for i := range c.Exports {
		e := &c.Exports[i]
		e.Subvol, e.SubvolID, e.SubvolPos = absolute(f.Subvol), f.SubvolID, pos
	}
}

// Override puts the addresses of -l and --metrics in the place of the file's; what is empty changes nothing.
// On an error c is unchanged.
func (c *Config) Override(listen []string, metrics string) error {
	next := *c
	var errs errorList
	next.listenFlags(listen, metrics, &errs)
	next.checkListen(&errs)
	if err := errs.err(); err != nil {
		return err
	}
	*c = next
	return nil
}

func (c *Config) listenFlags(listen []string, metrics string, errs *errorList) {
	if len(listen) > 0 {
		c.Listen = nil
	}
	for _, s := range listen {
		l, err := ParseListen(s)
		l.Pos = Pos{Flag: "-l " + s}
		if err != nil {
			errs.add(l.Pos, "%w", err)
			continue
		}
		c.Listen = append(c.Listen, l)
	}
	if metrics == "" {
		return
	}
	l, err := ParseMetricsListen(metrics)
	l.Pos = Pos{Flag: "--metrics " + metrics}
	if err != nil {
		errs.add(l.Pos, "%w", err)
		return
	}
	c.Metrics = &l
}

// exportFlag reads one NAME=PATH. The name ends at the first =.
func exportFlag(s string, errs *errorList) Export {
	pos := Pos{Flag: "-e " + s}
	e := Export{Pos: pos, PathPos: pos, SubvolPos: pos, FilesystemPos: pos}
	name, path, ok := strings.Cut(s, "=")
	if !ok {
		errs.add(pos, "the path is missing (write -e NAME=PATH, for example -e vm1=/vm1.raw)")
		return e
	}
	if err := checkName(name); err != nil {
		errs.add(pos, "%w", err)
	}
	if err := checkPath(path); err != nil {
		errs.add(pos, "%w", err)
	}
	e.Name, e.Path = name, path
	return e
}
