package configs

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/btrexport/btrexport/internal/spelling"
)

const (
	maxNBDString = 4096             // bytes; the limit that the NBD protocol sets for names and descriptions
	maxPath      = 4096             // bytes; Linux' PATH_MAX
	minCache     = 64 << 10         // bytes: one tree block of the largest node size
	minRoundUp   = 512              // bytes: the smallest sector of a block device
	maxRoundUp   = 32 << 20         // bytes: export.MaxRead
	topLevel     = 5                // BTRFS_FS_TREE_OBJECTID, the id of the top level subvolume
	firstSubvol  = 256              // BTRFS_FIRST_FREE_OBJECTID
	maxSubvolID  = ^uint64(0) - 255 // BTRFS_LAST_FREE_OBJECTID
)

// check looks for what the elements say about each other: doubled names, unknown references. It fills in
// the filesystem of exports that leave it out.
func (c *Config) check(errs *errorList) {
	c.checkListen(errs)
	c.checkFilesystems(errs)
	c.checkExports(errs)
	c.checkTLS(errs)
}

func (c *Config) checkListen(errs *errorList) {
	all := c.Listen
	if c.Metrics != nil {
		all = append(all[:len(all):len(all)], *c.Metrics)
	}
	seen := make(map[string]Pos, len(all))
	for _, l := range all {
		key := l.String()
		if l.Network == "tcp" && strings.HasSuffix(key, ":0") {
			continue // any free port: never the same one
		}
		if first, doubled := seen[key]; doubled {
			errs.add(l.Pos, "%s is already used %s (use another address)", l, first.earlier())
			continue
		}
		seen[key] = l.Pos
	}
}

func (c *Config) checkFilesystems(errs *errorList) {
	names := make(map[string]Pos, len(c.Filesystems))
	devices := make(map[string]Pos)
	for _, f := range c.Filesystems {
		if first, doubled := names[f.Name]; doubled && f.Name != "" {
			errs.add(f.Pos, "filesystem %s is already defined %s (give it another name)", quote(f.Name), first.earlier())
		} else {
			names[f.Name] = f.Pos
		}
		for _, dev := range f.Devices {
			key := path.Clean(dev.Path)
			// By flags, which a script may have put together, a device may be given twice: who opens it finds out.
			if first, doubled := devices[key]; doubled && dev.Pos.Flag == "" {
				errs.add(dev.Pos, "device %s is already given %s (name it once)", printable(dev.Path), first.earlier())
				continue
			}
			devices[key] = dev.Pos
		}
	}
}

func (c *Config) checkExports(errs *errorList) {
	names := make(map[string]Pos, len(c.Exports))
	filesystems := c.filesystemNames()
	for i := range c.Exports {
		e := &c.Exports[i]
		if first, doubled := names[e.Name]; doubled && e.Name != "" {
			errs.add(e.Pos, "export %s is already defined %s (give it another name)", quote(e.Name), first.earlier())
		} else {
			names[e.Name] = e.Pos
		}
		filesystems.resolve(e, errs)
	}
}

// checkTLS looks for what can't be kept: a promise of TLS without certificate, names that nobody can prove.
func (c *Config) checkTLS(errs *errorList) {
	t := &c.TLS
	if t.Mode == "allow" || t.Mode == "require" {
		for _, f := range []struct{ key, file string }{{"certificate", t.Certificate}, {"key", t.Key}} {
			if f.file == "" {
				errs.add(t.Pos, "tls: mode %s needs a %s (add %s: FILE)", t.Mode, f.key, f.key)
			}
		}
	}
	for i := range c.Exports {
		e := &c.Exports[i]
		switch {
		case e.TLS != "" && t.Mode == "off":
			errs.add(e.TLSPos, "export %s: tls: %s can't be kept, TLS is off (write tls: with mode: allow, certificate and key)", quote(e.Name), e.TLS)
		case len(e.Allow.Names) > 0 && (t.Mode == "off" || t.ClientCA == ""):
			errs.add(e.AllowPos, "export %s: allow: name: fits nobody, clients show no certificates (add client_ca to tls, and mode: allow or require)", quote(e.Name))
		}
	}
}

// filesystemNames are the names that exports may refer to.
type filesystemNames struct {
	list    []string
	known   map[string]bool
	doubted bool // a filesystem has no name, or there is none: its own mistake is reported already
}

func (c *Config) filesystemNames() filesystemNames {
	n := filesystemNames{known: make(map[string]bool, len(c.Filesystems)), doubted: len(c.Filesystems) == 0}
	for _, f := range c.Filesystems {
		n.list = append(n.list, f.Name)
		n.known[f.Name] = true
		n.doubted = n.doubted || f.Name == ""
	}
	return n
}

// resolve checks the export's filesystem, and fills it in where the only one is left out.
func (n filesystemNames) resolve(e *Export, errs *errorList) {
	switch {
	case n.known[e.Filesystem], n.doubted, e.Name == "":
	case e.Filesystem == "" && len(n.list) == 1:
		e.Filesystem = n.list[0]
	case e.Filesystem == "":
		errs.add(e.Pos, "export %s names no filesystem, and there are %d (write filesystem: %s)", quote(e.Name), len(n.list), n.list[0])
	case errs.full():
		errs.more++ // looking for the nearest of many names is what takes time
	default:
		remedy := "defined: " + strings.Join(n.list[:min(len(n.list), 10)], ", ")
		if best, ok := spelling.Nearest(e.Filesystem, n.list); ok {
			remedy = "did you mean " + quote(best) + "?"
		}
		errs.add(e.FilesystemPos, "export %s: filesystem %s is not defined (%s)", quote(e.Name), quote(e.Filesystem), remedy)
	}
}

func checkName(s string) error {
	switch {
	case s == "":
		return errors.New("the name is empty (write a name)")
	case len(s) > maxNBDString:
		return fmt.Errorf("the name has %d bytes, NBD allows %d (write a shorter one)", len(s), maxNBDString)
	}
	return checkText(s, "")
}

func checkDescription(s string) error {
	if len(s) > maxNBDString {
		return fmt.Errorf("the text has %d bytes, NBD allows %d (write a shorter one)", len(s), maxNBDString)
	}
	return checkText(s, "\n\t")
}

// checkText refuses what NBD does (NUL, broken UTF-8) and what would let a name forge a line of a log.
func checkText(s, allowed string) error {
	if !utf8.ValidString(s) {
		return fmt.Errorf("%s is not UTF-8 (write it in UTF-8)", quote(s))
	}
	for _, r := range s {
		if unicode.IsControl(r) && !strings.ContainsRune(allowed, r) {
			return fmt.Errorf("%s holds the control character %q (remove it)", quote(s), r)
		}
	}
	return nil
}

// checkFile accepts what can be the name of a file on this machine; relative ones are looked up from the
// working directory, as flags are.
func checkFile(s string) error {
	switch {
	case s == "":
		return errors.New("the path is empty (write one)")
	case len(s) > maxPath:
		return fmt.Errorf("the path has %d bytes, Linux allows %d (write a shorter one)", len(s), maxPath)
	case strings.ContainsRune(s, 0):
		return fmt.Errorf("%s holds a NUL (remove it)", quote(s))
	}
	return nil
}

// checkPath accepts a path inside a filesystem.
func checkPath(s string) error {
	if err := checkFile(s); err != nil {
		return err
	}
	if s[0] != '/' {
		return fmt.Errorf("%s is not absolute (write /%s; it is resolved inside the filesystem)", quote(s), s)
	}
	return nil
}

func checkSubvolID(id uint64) error {
	if id != topLevel && id < firstSubvol {
		return fmt.Errorf("no subvolume has the id %d (%d is the top level, others begin at %d: see btrexport subvolumes)", id, topLevel, firstSubvol)
	}
	return nil
}

func checkCache(n int64) error {
	if n < minCache {
		return fmt.Errorf("%s is too small for a tree block (write at least %s)", formatSize(n), formatSize(minCache))
	}
	return nil
}

func checkRoundUp(n int64) error {
	if n < minRoundUp || n > maxRoundUp || n&(n-1) != 0 {
		return fmt.Errorf("%s is no power of two from %s to %s (write 512 or 4096)", formatSize(n), formatSize(minRoundUp), formatSize(maxRoundUp))
	}
	return nil
}

// absolute puts the slash before a subvolume's path that mount's option subvol= lets people leave out.
func absolute(subvol string) string {
	if subvol == "" || subvol[0] == '/' {
		return subvol
	}
	return "/" + subvol
}
