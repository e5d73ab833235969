package configs

import (
	"fmt"
	"strings"
	"time"

	"github.com/btrexport/btrexport/internal/spelling"
)

// decoder fills a Config from the tree and gathers every mistake on the way.
type decoder struct {
	file string
	errs errorList
}

// reader takes the value of one key, or of one list entry; key names it in errors.
type reader func(key string, n *node)

// field is one key that a mapping may have.
type field struct {
	name     string
	required string // what to write if the key is missing; empty: it may be
	read     reader
}

func (d *decoder) pos(n *node) Pos { return Pos{File: d.file, Line: n.line} }

func (d *decoder) fail(n *node, format string, args ...any) { d.errs.add(d.pos(n), format, args...) }

// config reads the whole file. See the Config types for what the keys mean.
func (d *decoder) config(n *node) *Config {
	c := &Config{File: d.file, TLS: TLS{Mode: "off"}, Limits: defaultLimits()}
	d.keys(n, "", []field{
		{name: "listen", read: d.list(d.address(ParseListen, func(l Listen) { c.Listen = append(c.Listen, l) }))},
		{name: "metrics", read: func(key string, n *node) {
			d.keys(n, key, []field{{name: "listen", required: "listen: 127.0.0.1:9810",
				read: d.address(ParseMetricsListen, func(l Listen) { c.Metrics = &l })}})
		}},
		{name: "filesystems", required: "filesystems: with an entry for each filesystem", read: d.list(func(key string, n *node) {
			c.Filesystems = append(c.Filesystems, d.filesystem(key, n))
		})},
		{name: "exports", required: "exports: with an entry for each file to serve", read: d.list(func(key string, n *node) {
			c.Exports = append(c.Exports, d.export(key, n))
		})},
		{name: "tls", read: func(key string, n *node) { c.TLS = d.tls(key, n) }},
		{name: "limits", read: func(key string, n *node) { d.limits(key, n, &c.Limits) }},
	})
	if len(c.Listen) == 0 {
		l := defaultListen()
		l.Pos.File = d.file
		c.Listen = []Listen{l}
	}
	return c
}

func (d *decoder) filesystem(key string, n *node) Filesystem {
	f := defaultFilesystem()
	f.Pos = d.pos(n)
	d.keys(n, key, []field{
		{name: "name", required: "name: tank", read: d.positioned(&f.Pos, d.text(&f.Name, checkName))},
		{name: "devices", required: "devices: [/dev/sdb]", read: d.list(func(key string, n *node) {
			dev := Device{Pos: d.pos(n)}
			d.text(&dev.Path, checkFile)(key, n)
			f.Devices = append(f.Devices, dev)
		})},
		{name: "degraded", read: d.boolean(&f.Degraded)},
		{name: "direct_io", read: d.boolean(&f.DirectIO)},
		{name: "workers", read: d.whole(1, 1024, func(v uint64) { f.Workers = int(v) })},
		{name: "cache", read: d.size(&f.Cache, checkCache)},
		{name: "io_engine", read: d.choice(&f.IOEngine, "auto", "io_uring", "pread")},
		{name: "allow_mounted", read: d.boolean(&f.AllowMounted)},
		{name: "ignore_log", read: d.boolean(&f.IgnoreLog)},
		{name: "slow_read", read: d.durationOrNever(&f.SlowRead, time.Millisecond)},
	})
	return f
}

func (d *decoder) export(key string, n *node) Export {
	e := exportAt(d.pos(n))
	subvol := func(r reader) reader {
		return func(key string, n *node) {
			if e.Subvol != "" || e.SubvolID != 0 {
				d.fail(n, "%s: the subvolume is already given on line %d (keep subvol or subvolid)", key, e.SubvolPos.Line)
				return
			}
			e.SubvolPos = d.pos(n)
			r(key, n)
		}
	}
	d.keys(n, key, []field{
		{name: "name", required: "name: vm1", read: d.positioned(&e.Pos, d.text(&e.Name, checkName))},
		{name: "filesystem", read: d.positioned(&e.FilesystemPos, d.text(&e.Filesystem, checkName))},
		{name: "subvol", read: subvol(d.text(&e.Subvol, checkFile))},
		{name: "subvolid", read: subvol(d.whole(0, maxSubvolID, func(v uint64) { d.subvolID(&e, v) }))},
		{name: "path", required: "path: /vm1.raw", read: d.positioned(&e.PathPos, d.text(&e.Path, checkPath))},
		{name: "description", read: d.text(&e.Description, checkDescription)},
		{name: "round_up", read: d.size(&e.RoundUp, checkRoundUp)},
		{name: "tls", read: d.positioned(&e.TLSPos, d.choice(&e.TLS, "allow", "require"))},
		{name: "allow", read: d.positioned(&e.AllowPos, d.list(d.rule(&e.Allow)))},
	})
	e.Subvol = absolute(e.Subvol)
	return e
}

// exportAt is an export all of whose places are p, until others are known.
func exportAt(p Pos) Export {
	return Export{Pos: p, PathPos: p, SubvolPos: p, FilesystemPos: p, TLSPos: p, AllowPos: p}
}

// rule reads one entry of an access list.
func (d *decoder) rule(a *Access) reader {
	return func(key string, n *node) {
		if n.kind != text {
			d.fail(n, "%s (write for example \"192.0.2.0/24\", \"uid:1000\" or \"name:vm-host-1\")", wrongKind(key, text, n))
			return
		}
		if err := a.parseRule(n.value); err != nil {
			d.fail(n, "%s: %w", key, err)
		}
	}
}

func (d *decoder) tls(key string, n *node) TLS {
	t := TLS{Pos: d.pos(n), CertificatePos: d.pos(n), KeyPos: d.pos(n), ClientCAPos: d.pos(n)}
	d.keys(n, key, []field{
		{name: "mode", required: "mode: off", read: func(_ string, n *node) {
			d.choice(&t.Mode, "off", "allow", "require")("tls mode", n)
		}},
		{name: "certificate", read: d.positioned(&t.CertificatePos, d.text(&t.Certificate, checkFile))},
		{name: "key", read: d.positioned(&t.KeyPos, d.text(&t.Key, checkFile))},
		{name: "client_ca", read: d.positioned(&t.ClientCAPos, d.text(&t.ClientCA, checkFile))},
	})
	return t
}

func (d *decoder) limits(key string, n *node, l *Limits) {
	d.keys(n, key, []field{
		{name: "connections", read: d.whole(1, 1_000_000, func(v uint64) { l.Connections = int(v) })},
		{name: "connections_per_address", read: d.whole(0, 1_000_000, func(v uint64) { l.ConnectionsPerAddress = int(v) })},
		{name: "handshake", read: d.duration(&l.Handshake, time.Millisecond)},
		{name: "idle", read: d.duration(&l.Idle, 0)},
		{name: "drain", read: d.duration(&l.Drain, 0)},
	})
}

// keys reads a mapping. where is its place ("" at the top, "exports[0]").
func (d *decoder) keys(n *node, where string, fields []field) {
	if n.kind != mapping {
		d.fail(n, "%s (write %s: and a value)", wrongKind(where, mapping, n), fields[0].name)
		return
	}
	first := make(map[string]int, len(n.keys)) // line of each key seen
	meant := make(map[string]bool)             // by keys that are misspelt
	for i, k := range n.keys {
		f := findField(fields, k.value)
		if f == nil {
			remedy, key := suggestKey(k.value, fields)
			meant[key] = true
			d.fail(k, "unknown key %s%s (%s)", quote(k.value), in(where), remedy)
			continue
		}
		if line, doubled := first[k.value]; doubled {
			d.fail(k, "key %s%s is already given on line %d (keep one)", quote(k.value), in(where), line)
			continue
		}
		first[k.value] = k.line
		if n.values[i].kind == null {
			// At every level: a list whose entries were all commented out is not one that was left out.
			d.fail(k, "%s%s has no value (write one, or remove the key)", prefix(where), f.name)
			continue
		}
		f.read(f.name, n.values[i])
	}
	for _, f := range fields {
		if _, given := first[f.name]; !given && !meant[f.name] && f.required != "" {
			d.fail(n, "%s%s is missing (add %s)", prefix(where), f.name, f.required)
		}
	}
}

func (d *decoder) list(entry reader) reader {
	return func(key string, n *node) {
		if n.kind != sequence {
			d.fail(n, "%s (begin each entry with \"- \", or write [a, b])", wrongKind(key, sequence, n))
			return
		}
		if len(n.values) == 0 {
			d.fail(n, "%s is an empty list (add an entry)", key)
		}
		for i, v := range n.values {
			name := fmt.Sprintf("%s[%d]", key, i)
			if v.kind == null {
				d.fail(v, "%s has no value (write one, or remove the \"-\")", name)
				continue
			}
			entry(name, v)
		}
	}
}

// positioned keeps the line of what r reads.
func (d *decoder) positioned(p *Pos, r reader) reader {
	return func(key string, n *node) {
		*p = d.pos(n)
		r(key, n)
	}
}

func (d *decoder) text(dst *string, check func(string) error) reader {
	return func(key string, n *node) {
		switch n.kind {
		case text:
			if err := check(n.value); err != nil {
				d.fail(n, "%s: %w", key, err)
				return
			}
			*dst = n.value
		case number, boolean:
			d.fail(n, "%s (write \"%s\", with the quotes)", wrongKind(key, text, n), n.value)
		default:
			d.fail(n, "%s (write one value)", wrongKind(key, text, n))
		}
	}
}

func (d *decoder) boolean(dst *bool) reader {
	return func(key string, n *node) {
		if n.quoted || !n.scalar() {
			d.fail(n, "%s (write true or false, without quotes)", wrongKind(key, boolean, n))
			return
		}
		v, err := parseBool(n.value)
		if err != nil {
			d.fail(n, "%s: %w", key, err)
			return
		}
		*dst = v
	}
}

// whole reads a number from lo to hi.
func (d *decoder) whole(lo, hi uint64, set func(uint64)) reader {
	return func(key string, n *node) {
		if n.quoted || !n.scalar() {
			d.fail(n, "%s (write digits only, without quotes)", wrongKind(key, "a whole number", n))
			return
		}
		v, err := parseWhole(n.value)
		if err != nil {
			d.fail(n, "%s: %w", key, err)
			return
		}
		if v < lo || v > hi {
			d.fail(n, "%s: %d is out of range (write a number from %d to %d)", key, v, lo, hi)
			return
		}
		set(v)
	}
}

func (d *decoder) size(dst *int64, check func(int64) error) reader {
	return func(key string, n *node) {
		if !n.scalar() {
			d.fail(n, "%s (write for example 64MiB)", wrongKind(key, "a size", n))
			return
		}
		v, err := ParseSize(n.value)
		if err == nil {
			err = check(v)
		}
		if err != nil {
			d.fail(n, "%s: %w", key, err)
			return
		}
		*dst = v
	}
}

func (d *decoder) duration(dst *time.Duration, least time.Duration) reader {
	return func(key string, n *node) {
		if !n.scalar() {
			d.fail(n, "%s (write for example 10s)", wrongKind(key, "a duration", n))
			return
		}
		v, err := parseDuration(n.value)
		if err != nil {
			d.fail(n, "%s: %w", key, err)
			return
		}
		if v < least {
			d.fail(n, "%s: %s is too short (write at least %s)", key, v, least)
			return
		}
		*dst = v
	}
}

// durationOrNever reads a duration, or the word never, which becomes one below 0.
func (d *decoder) durationOrNever(dst *time.Duration, least time.Duration) reader {
	read := d.duration(dst, least)
	return func(key string, n *node) {
		if n.scalar() && n.value == "never" {
			*dst = -1
			return
		}
		read(key, n)
	}
}

// choice reads one of a few words. later are words that are promised and that this version cannot do.
func (d *decoder) choice(dst *string, words ...string) reader {
	return func(key string, n *node) {
		if !n.scalar() {
			d.fail(n, "%s (write %s)", wrongKind(key, text, n), strings.Join(words, " or "))
			return
		}
		for _, w := range words {
			if n.value == w {
				*dst = w
				return
			}
		}
		d.fail(n, "%s: %s is not known (write %s)", key, quote(n.value), strings.Join(words, " or "))
	}
}

// address reads a listening address.
func (d *decoder) address(parse func(string) (Listen, error), set func(Listen)) reader {
	return func(key string, n *node) {
		if n.kind != text {
			d.fail(n, "%s (write for example 127.0.0.1:9810 for metrics, tcp://127.0.0.1:10809 for NBD, or unix:///run/x.sock)",
				wrongKind(key, "an address", n))
			return
		}
		l, err := parse(n.value)
		if err != nil {
			d.fail(n, "%s: %w", key, err)
			return
		}
		l.Pos = d.pos(n)
		set(l)
	}
}

func (d *decoder) subvolID(e *Export, id uint64) {
	if err := checkSubvolID(id); err != nil {
		d.errs.add(e.SubvolPos, "subvolid: %w", err)
		return
	}
	e.SubvolID = id
}

func (n *node) scalar() bool { return n.kind != mapping && n.kind != sequence }

// wrongKind begins a message about a value of the wrong kind.
func wrongKind(key string, want kind, n *node) string {
	found := string(n.kind)
	switch n.kind {
	case text:
		found = "the text " + quote(n.value)
	case number:
		found = "the number " + n.value
	case boolean:
		found = "the boolean " + n.value
	}
	if key == "" {
		key = "the file"
	}
	return fmt.Sprintf("%s: wants %s, found %s", key, want, found)
}

// in names the place of a key: nothing at the top.
func in(where string) string {
	if where == "" {
		return ""
	}
	return " in " + where
}

func prefix(where string) string {
	if where == "" {
		return ""
	}
	return where + ": "
}

func findField(fields []field, name string) *field {
	for i := range fields {
		if fields[i].name == name {
			return &fields[i]
		}
	}
	return nil
}

// suggestKey makes the remedy for an unknown key; meant is the key that it is a slip of, if one is near.
func suggestKey(key string, fields []field) (remedy, meant string) {
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.name
	}
	if best, ok := spelling.Nearest(key, names); ok {
		return "did you mean " + quote(best) + "?", best
	}
	return "known keys: " + strings.Join(names, ", "), ""
}
