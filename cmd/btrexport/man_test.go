package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const manDir = "../../docs/man/"

// manual is a page: its sections by title, each with its text.
func manual(t *testing.T, page string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(manDir + page)
	if err != nil {
		t.Fatal(err)
	}
	sections := make(map[string]string)
	title := ""
	for line := range strings.Lines(string(b)) {
		if s, ok := strings.CutPrefix(line, ".Sh "); ok {
			title = strings.TrimSpace(s)
		} else if s, ok := strings.CutPrefix(line, ".Ss "); ok {
			title = strings.TrimSpace(s)
		}
		sections[title] += line
	}
	return sections
}

// optionItem is the line that describes an option: its one letter, if it has one, and its name.
var optionItem = regexp.MustCompile(`(?m)^\.It (?:Fl (\S) , )?Fl -(\S+)`)

// options gives the options that a section describes, each as "letter name".
func options(section string) (list []string) {
	for _, m := range optionItem.FindAllStringSubmatch(section, -1) {
		list = append(list, m[1]+" "+m[2])
	}
	return list
}

// usageLine is the line of a help text that describes a flag.
var usageLine = regexp.MustCompile(`(?m)^ +(?:-(\S), )? *--(\S+)`)

// TestManualOptions holds each option of each command against the manual, both ways: what a command has stands in its
// section, or in a shared one that it names, and nothing else does.
func TestManualOptions(t *testing.T) {
	page, serve := manual(t, "btrexport.1"), manual(t, "btrexport-serve.8")
	shared := []string{"Device options", "Subvolume options", "TLS options"}
	for _, c := range (&app{out: io.Discard, err: io.Discard}).root().Commands() {
		if c.Hidden || c.IsAdditionalHelpTopicCommand() {
			continue
		}
		section, ok := page[c.Name()]
		if !ok {
			t.Errorf("btrexport(1) has no section for %s", c.Name())
			continue
		}
		described := append(options(section), options(page["Options of every command"])...)
		if c.Name() == "serve" {
			described = options(serve["OPTIONS"])
		}
		for _, s := range shared {
			if strings.Contains(section, ".Sx "+s) {
				described = append(described, options(page[s])...)
			}
		}
		c.InitDefaultHelpFlag()
		usages := c.LocalFlags().FlagUsages() + c.InheritedFlags().FlagUsages()
		for _, sub := range c.Commands() { // of completion, whose shells have the same flags
			usages += sub.LocalFlags().FlagUsages()
		}
		var has []string
		for _, m := range usageLine.FindAllStringSubmatch(usages, -1) {
			has = append(has, m[1]+" "+m[2])
		}
		for _, o := range has {
			if !slices.Contains(described, o) {
				t.Errorf("%s: the manual does not describe -%s", c.Name(), o)
			}
		}
		for _, o := range described {
			if !slices.Contains(has, o) {
				t.Errorf("%s: the manual describes -%s, which is not there", c.Name(), o)
			}
		}
	}
}

// holds compares what the program has with the items of a page, both ways.
func holds(t *testing.T, page string, has, items []string) {
	t.Helper()
	for _, h := range has {
		if !slices.Contains(items, h) {
			t.Errorf("%s has no item for %s", page, h)
		}
	}
	for _, i := range items {
		if !slices.Contains(has, i) {
			t.Errorf("%s has an item for %s, which is not there", page, i)
		}
	}
	if len(has) == 0 {
		t.Errorf("%s: nothing to compare with", page)
	}
}

// found gives the first group of every match, in files.
func found(t *testing.T, re, files string) (list []string) {
	t.Helper()
	names, err := filepath.Glob(files)
	if err != nil || len(names) == 0 {
		t.Fatalf("%s: %v", files, err)
	}
	for _, n := range names {
		if strings.HasSuffix(n, "_test.go") {
			continue
		}
		b, err := os.ReadFile(n)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(re).FindAllStringSubmatch(string(b), -1) {
			list = append(list, m[1])
		}
	}
	return list
}

// TestManualKeys holds the keys that the configuration knows, section by section, against btrexport.yaml(5).
func TestManualKeys(t *testing.T) {
	b, err := os.ReadFile("../../configs/decode.go")
	if err != nil {
		t.Fatal(err)
	}
	page := manual(t, "btrexport.yaml.5")
	function := regexp.MustCompile(`(?ms)^func \(d \*decoder\) (config|filesystem|export|tls|limits)\(.*?^}`)
	section := map[string]string{"config": "Top level", "filesystem": "Filesystems", "export": "Exports", "tls": "TLS", "limits": "Limits"}
	for _, f := range function.FindAllStringSubmatch(string(b), -1) {
		var keys, items []string
		for _, m := range regexp.MustCompile(`(?m)^\t\t\{name: "(\w+)"`).FindAllStringSubmatch(f[0], -1) {
			keys = append(keys, m[1])
		}
		for _, m := range regexp.MustCompile(`(?m)^\.It Ic (\w+)`).FindAllStringSubmatch(page[section[f[1]]], -1) {
			items = append(items, m[1])
		}
		holds(t, "btrexport.yaml(5), "+section[f[1]], keys, items)
		delete(section, f[1])
	}
	if len(section) > 0 {
		t.Errorf("no keys found of %v", section)
	}
}

// TestManualMetrics holds the names and labels of docs/monitoring.md, which come from the registry, against
// btrexport-metrics(7).
func TestManualMetrics(t *testing.T) {
	holds(t, "btrexport-metrics(7)", found(t, "(?m)^\\| `(btrexport_\\w+)`", "../../docs/monitoring.md"), found(t, `(?m)^\.It Li (btrexport_\w+)`, manDir+"btrexport-metrics.7"))
	page, err := os.ReadFile(manDir + "btrexport-metrics.7")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../../docs/monitoring.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `(btrexport_\\w+)` \\| (\\w+) \\| ([^|]*) \\|").FindAllStringSubmatch(string(doc), -1) {
		_, item, _ := strings.Cut(string(page), ".It Li "+m[1]+"\n")
		item, _, _ = strings.Cut(item, ".It ")
		if !strings.HasPrefix(strings.ToLower(item), m[2]) {
			t.Errorf("btrexport-metrics(7): %s is no %s", m[1], m[2])
		}
		for _, label := range regexp.MustCompile(`[a-z_]+`).FindAllString(m[3], -1) {
			if !regexp.MustCompile(`\b` + label + `\b`).MatchString(item) {
				t.Errorf("btrexport-metrics(7): %s has no %s", m[1], label)
			}
		}
	}
}

// TestManualWords holds what the environment and the kinds of errors are called against btrexport(1).
func TestManualWords(t *testing.T) {
	page := manual(t, "btrexport.1")
	for section, re := range map[string]string{"ENVIRONMENT": `os\.Getenv\("(\w+)"\)`, "DIAGNOSTICS": `return exit\w+, "([a-z-]+)"`} {
		words := found(t, re, "*.go")
		if len(words) < 5 {
			t.Errorf("%s: only %v found in the program", section, words)
		}
		if section == "DIAGNOSTICS" {
			words = append(words, found(t, `return \d, "([a-z-]+)"`, "*.go")...)
		}
		for _, w := range words {
			if !regexp.MustCompile(`(^|[\s,])` + w + `([\s,.]|$)`).MatchString(page[section]) {
				t.Errorf("btrexport(1), %s: no word of %s", section, w)
			}
		}
	}
	if !strings.Contains(page["ENVIRONMENT"], completeInside) {
		t.Errorf("btrexport(1): no word of %s", completeInside)
	}
}

// TestManualLint runs mandoc's lint, where it is installed.
func TestManualLint(t *testing.T) {
	mandoc, err := exec.LookPath("mandoc")
	if err != nil {
		t.Skip("no mandoc here")
	}
	pages, err := filepath.Glob(manDir + "*")
	if err != nil || len(pages) != 4 {
		t.Fatalf("%v, %v", pages, err)
	}
	for _, p := range pages {
		if out, err := exec.Command(mandoc, "-Tlint", "-Wwarning", p).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%v\n%s", err, out)
		}
	}
}
