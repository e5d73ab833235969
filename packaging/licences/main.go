// Command licences prints the licences of everything that is linked into a Go binary, for its packages:
//
//	licences [-debian] BINARY
//
// With -debian it is the file copyright of a Debian package (machine-readable, version 1.0). A module that is on no
// list, or whose licence's text is not what the list says, is an error: the module cache has the texts.
package main

import (
	"bytes"
	"debug/buildinfo"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

func main() {
	debian := flag.Bool("debian", false, "print a Debian copyright file")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: licences [-debian] BINARY")
		os.Exit(2)
	}
	if err := printAll(os.Stdout, flag.Arg(0), *debian); err != nil {
		fmt.Fprintln(os.Stderr, "licences:", err)
		os.Exit(1)
	}
}

func printAll(w io.Writer, binary string, debian bool) error {
	list, err := linked(binary)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if debian {
		writeDebian(&b, list)
	} else {
		writePlain(&b, list)
	}
	_, err = w.Write(b.Bytes())
	return err
}

// allowed are the modules that may be linked in, and their licences by SPDX. Each was read.
var allowed = map[string]string{
	"github.com/beorn7/perks":             "MIT",
	"github.com/cespare/xxhash/v2":        "MIT",
	"github.com/coreos/go-systemd/v22":    "Apache-2.0",
	"github.com/klauspost/compress":       "BSD-3-Clause and Apache-2.0 and MIT",
	"github.com/klauspost/cpuid/v2":       "MIT",
	"github.com/klauspost/reedsolomon":    "MIT",
	"github.com/mitchellh/colorstring":    "MIT",
	"github.com/munnerz/goautoneg":        "BSD-3-Clause",
	"github.com/pojntfx/go-nbd":           "Apache-2.0",
	"github.com/prometheus/client_golang": "Apache-2.0",
	"github.com/prometheus/client_model":  "Apache-2.0",
	"github.com/prometheus/common":        "Apache-2.0",
	"github.com/prometheus/procfs":        "Apache-2.0",
	"github.com/rivo/uniseg":              "MIT",
	"github.com/schollz/progressbar/v3":   "MIT",
	"github.com/spf13/cobra":              "Apache-2.0",
	"github.com/spf13/pflag":              "BSD-3-Clause",
	"golang.org/x/crypto":                 "BSD-3-Clause",
	"golang.org/x/sync":                   "BSD-3-Clause",
	"golang.org/x/sys":                    "BSD-3-Clause",
	"golang.org/x/term":                   "BSD-3-Clause",
	"google.golang.org/protobuf":          "BSD-3-Clause",
	"gopkg.in/yaml.v3":                    "MIT and Apache-2.0",
	goItself:                              "BSD-3-Clause",
}

// goItself is the name under which Go's own library and runtime stand in the list.
const goItself = "Go"

// signs are words that the text of a licence has and no other licence of the list.
var signs = map[string]string{
	"Apache-2.0":   "Apache License",
	"BSD-3-Clause": "Redistribution and use in source and binary forms",
	"MIT":          "Permission is hereby granted, free of charge",
}

// module is one that is linked in.
type module struct {
	path, version, spdx string
	text, notice        string // of its LICENSE and NOTICE; notice may be empty
}

// linked gives the modules of a binary, Go itself first, with what their files say.
func linked(binary string) ([]module, error) {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	list := []module{{path: goItself, version: info.GoVersion}}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("go env GOROOT: %w", err)
	}
	dirs := map[string]string{goItself: strings.TrimSpace(string(root))}
	args := []string{"list", "-m", "-f", "{{.Path}}\t{{.Dir}}"}
	for _, d := range info.Deps {
		if d.Replace != nil {
			return nil, fmt.Errorf("%s is replaced by %s", d.Path, d.Replace.Path)
		}
		list = append(list, module{path: d.Path, version: d.Version})
		args = append(args, d.Path)
	}
	out, err := exec.Command("go", args...).Output()
	if err != nil {
		return nil, fmt.Errorf("go %q: %w", args, err)
	}
	for line := range strings.Lines(string(out)) {
		path, dir, _ := strings.Cut(strings.TrimSpace(line), "\t")
		dirs[path] = dir
	}
	for i := range list {
		if err := list[i].read(dirs[list[i].path]); err != nil {
			return nil, fmt.Errorf("%s: %w", list[i].path, err)
		}
	}
	return list, nil
}

// read reads the texts in the module's directory and holds them against the list.
func (m *module) read(dir string) error {
	m.spdx = allowed[m.path]
	if m.spdx == "" {
		return fmt.Errorf("is on no list (read its licence, then add it to packaging/licences and NOTICE)")
	}
	files, err := filepath.Glob(filepath.Join(dir, "LICENSE*"))
	if err != nil || len(files) != 1 || dir == "" {
		return fmt.Errorf("%d files LICENSE* in %q, want one: %w", len(files), dir, err)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		return err
	}
	m.text = string(text)
	for spdx, sign := range signs {
		says := strings.Contains(" "+m.spdx+" ", " "+spdx+" ")
		if has := strings.Contains(m.text, sign); has != says {
			return fmt.Errorf("the list says %q; that its text has %q is %v", m.spdx, sign, has)
		}
	}
	notice, err := os.ReadFile(filepath.Join(dir, "NOTICE"))
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	m.notice = string(notice)
	return nil
}

func writePlain(b *bytes.Buffer, list []module) {
	b.WriteString("btrexport is under the Apache License 2.0 (LICENSE). Linked into it are:\n")
	for _, m := range list {
		fmt.Fprintf(b, "\n%s\n%s %s (%s)\n\n%s\n", strings.Repeat("=", 78), m.path, m.version, m.spdx, strings.TrimSpace(m.text))
		if m.notice != "" {
			fmt.Fprintf(b, "\nNOTICE:\n\n%s\n", strings.TrimSpace(m.notice))
		}
	}
}

// writeDebian writes a paragraph for the program and one for each module, whose texts stand in the paragraph. Debian
// has the Apache License itself; policy wants a reference to it instead of the text.
func writeDebian(b *bytes.Buffer, list []module) {
	b.WriteString("Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n" +
		"Upstream-Name: btrexport\nSource: https://github.com/btrexport/btrexport\n" +
		"Comment: The program is linked statically. What is linked in stands under vendor/ below, as if it were in the\n" +
		" source, with the version that this binary has.\n" +
		"\nFiles: *\nCopyright: 2026 the btrexport authors\nLicense: Apache-2.0\n")
	for _, m := range list {
		fmt.Fprintf(b, "\nFiles: vendor/%s/*\nCopyright: %s\nLicense: %s\n", m.path, strings.Join(m.holders(), "\n           "), m.debianName())
		fmt.Fprintf(b, "Comment: %s\n", m.version)
		if m.notice != "" {
			fmt.Fprintf(b, " .\n NOTICE:\n%s", folded(m.notice))
		}
	}
	for _, m := range list {
		if m.debianName() != "Apache-2.0" {
			fmt.Fprintf(b, "\nLicense: %s\n%s", m.debianName(), folded(withoutApache(m.text)))
		}
	}
	b.WriteString("\nLicense: Apache-2.0\n On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.\n")
}

// debianName is a name of its own for every text: those of one kind differ in their copyright lines.
func (m *module) debianName() string {
	if m.spdx == "Apache-2.0" {
		return m.spdx
	}
	return strings.ReplaceAll(m.spdx, " ", "-") + "~" + strings.NewReplacer("/", "-", ".", "-").Replace(m.path)
}

// holders are the copyright lines of the texts, without the word.
func (m *module) holders() []string {
	var list []string
	seen := map[string]bool{}
	for line := range strings.Lines(m.notice + "\n" + m.text) {
		line = strings.TrimSpace(line)
		_, who, ok := strings.Cut(line, "Copyright ")
		if !ok || strings.Contains(who, "[yyyy]") || strings.Contains(who, "{yyyy}") || !strings.HasPrefix(line, "Copyright ") {
			continue
		}
		who = strings.TrimSpace(strings.TrimPrefix(strings.TrimPrefix(who, "(c)"), "(C)"))
		if strings.ContainsAny(who, "0123456789") && !seen[who] {
			seen[who] = true
			list = append(list, who)
		}
	}
	if len(list) == 0 {
		list = []string{"the authors of " + m.path}
	}
	return list
}

// withoutApache cuts the Apache License out of a text that has others beside it.
func withoutApache(text string) string {
	start := strings.Index(text, "                                 Apache License\n")
	const end = "END OF TERMS AND CONDITIONS"
	stop := strings.Index(text, end)
	if start < 0 || stop < start {
		return text
	}
	return text[:start] + "Apache License 2.0: in /usr/share/common-licenses/Apache-2.0 on Debian systems.\n" + text[stop+len(end):]
}

// folded indents a text as the fields of a control file want it.
func folded(text string) string {
	var b strings.Builder
	for line := range strings.Lines(strings.TrimSpace(text) + "\n") {
		line = strings.TrimRight(line, " \t\r\n\f")
		if line == "" {
			line = "."
		}
		b.WriteString(" " + line + "\n")
	}
	return b.String()
}
