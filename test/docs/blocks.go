package docs

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Place is where a block runs.
type Place string

const (
	Test    Place = "go test"
	E2E     Place = "e2e"
	CI      Place = "ci"
	Trial   Place = "trial"
	Guest   Place = "guest"
	Nowhere Place = "nowhere"
)

// Block is a fenced block of commands.
type Block struct {
	File   string // as ReadDir names it
	Line   int    // of the opening fence
	Lang   string // sh or console
	Place  Place
	Reason string   // why it runs nowhere; of CI, the block's name
	First  []string // hidden commands before it
	Text   []string // lines
}

// Where is the block's place in the sources.
func (b *Block) Where() string { return fmt.Sprintf("%s:%d", b.File, b.Line) }

// Command is one command of a block and what it prints.
type Command struct {
	Line   int    // in the file
	Text   string // perhaps several lines
	Hidden bool   // by a mark "first"
	Shown  bool   // Want stands below it
	Want   []string
}

// Pages lists the Markdown files whose blocks must run, relative to the project's root: README.md, CONTRIBUTING.md and what
// is below docs.
func Pages(root string) ([]string, error) {
	pages := []string{"README.md", "CONTRIBUTING.md"}
	err := filepath.WalkDir(filepath.Join(root, "docs"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, ".md") {
			rel, relErr := filepath.Rel(root, path)
			pages, err = append(pages, rel), relErr
		}
		return err
	})
	slices.Sort(pages[2:])
	return pages, err
}

var (
	fenceLine = regexp.MustCompile("^( *)(```+|~~~+) *([^`\\s]*)")
	markLine  = regexp.MustCompile(`^ *<!-- *(not run|run|first): *(.*?) *-->$`)
	nearMark  = regexp.MustCompile(`<!--\s*(not[ -]?run|run|first)\b`)
)

// blockLangs are the languages of blocks that hold no commands. One that is neither here nor sh or console is an error, so
// that commands can't hide behind another name.
var blockLangs = []string{"text", "yaml", "xml", "go", "json", "ini", "promql", "toml", "sql", "dockerfile", "mermaid", "diff"}

// Find gives the command blocks of a page, in its order. Errors say every mistake that there is: an unknown language or
// mark, a mark without a block, a fence that does not end.
func Find(file, text string) ([]Block, error) {
	f := finder{file: file}
	for i, line := range strings.Split(text, "\n") {
		f.line(i+1, line)
	}
	if f.fence != "" {
		f.bad(f.block.Line, "the fence does not end")
	}
	if f.marked {
		f.bad(f.markLine, "no block follows the mark")
	}
	return f.blocks, errors.Join(f.errs...)
}

type finder struct {
	file     string
	blocks   []Block
	errs     []error
	block    Block // with the marks so far
	marked   bool
	markLine int
	fence    string // of the block that is open, "" outside
	indent   int
}

func (f *finder) bad(line int, format string, args ...any) {
	f.errs = append(f.errs, fmt.Errorf("%s:%d: %s", f.file, line, fmt.Sprintf(format, args...)))
}

func (f *finder) line(n int, line string) {
	fence := fenceLine.FindStringSubmatch(line)
	switch {
	case f.fence != "" && fence != nil && strings.HasPrefix(fence[2], f.fence) && strings.TrimSpace(line) == fence[2]:
		f.close()
	case f.fence != "":
		f.block.Text = append(f.block.Text, strings.TrimPrefix(line, strings.Repeat(" ", min(f.indent, len(line)-len(strings.TrimLeft(line, " "))))))
	case fence != nil:
		f.fence, f.indent = fence[2], len(fence[1])
		f.block.File, f.block.Line, f.block.Lang = f.file, n, fence[3]
	case markLine.MatchString(line):
		m := markLine.FindStringSubmatch(line)
		f.mark(n, m[1], m[2])
	case nearMark.MatchString(line):
		f.bad(n, "a mark stands alone on its line: <!-- run: e2e -->, <!-- not run: REASON -->, <!-- first: COMMAND -->")
	case strings.TrimSpace(line) != "" && f.marked:
		f.bad(f.markLine, "no block follows the mark")
		f.reset()
	}
}

func (f *finder) mark(n int, word, rest string) {
	f.marked, f.markLine = true, n
	if word != "first" && f.block.Place != "" {
		f.bad(n, "a second mark for one block")
	}
	switch {
	case rest == "":
		f.bad(n, "the mark %q says nothing", word)
	case word == "first":
		f.block.First = append(f.block.First, rest)
	case word == "not run":
		f.block.Place, f.block.Reason = Nowhere, rest
	case rest == "e2e":
		f.block.Place = E2E
	case rest == "trial":
		f.block.Place = Trial
	case rest == "guest":
		f.block.Place = Guest
	case rest == "demo" || rest == "test":
		f.block.Place, f.block.Reason = CI, rest
	default:
		f.bad(n, "unknown mark %q: e2e, trial, guest, demo or test", "run: "+rest)
	}
}

// close ends the open block and keeps it if it holds commands.
func (f *finder) close() {
	switch b := f.block; {
	case b.Lang == "sh" || b.Lang == "console":
		if b.Place == "" {
			b.Place = Test
		}
		if commands := b.Commands(); len(commands) == len(b.First) || commands[len(b.First)].Line != b.Line+1 {
			f.bad(b.Line, "a block begins with a command")
		}
		f.blocks = append(f.blocks, b)
	case f.marked:
		f.bad(f.markLine, "no command block follows the mark, but one of %q", b.Lang)
	case !slices.Contains(blockLangs, b.Lang):
		f.bad(b.Line, "a block of %q: commands are sh or console, what is neither is text", b.Lang)
	}
	f.reset()
}

func (f *finder) reset() { f.block, f.marked, f.fence = Block{}, false, "" }

// Commands gives the commands of a block, those of its marks first.
func (b *Block) Commands() []Command {
	var list []Command
	for _, c := range b.First {
		list = append(list, Command{Line: b.Line, Text: c, Hidden: true})
	}
	if b.Lang == "sh" {
		if text := strings.Join(b.Text, "\n"); strings.TrimSpace(text) != "" {
			list = append(list, Command{Line: b.Line + 1, Text: "(set -euo pipefail\n" + text + "\n)"})
		}
		return list
	}
	shown := list
	more := false // the command goes on in the next line
	for i, line := range b.Text {
		prompt := strings.HasPrefix(line, "$ ") || strings.HasPrefix(line, "# ")
		switch last := len(shown) - 1; {
		case more:
			shown[last].Text += "\n" + line
			more = strings.HasSuffix(line, `\`)
		case prompt:
			shown = append(shown, Command{Line: b.Line + 1 + i, Text: line[2:]})
			more = strings.HasSuffix(line, `\`)
		case last >= len(list):
			shown[last].Want = append(shown[last].Want, line)
		}
	}
	for i := range shown {
		c := &shown[i]
		for len(c.Want) > 0 && strings.TrimSpace(c.Want[len(c.Want)-1]) == "" {
			c.Want = c.Want[:len(c.Want)-1]
		}
		c.Shown = len(c.Want) > 0
	}
	return shown
}

// background is a command that goes on while the next ones run.
var background = regexp.MustCompile(`(^|[^&])&[ \t]*(#.*)?$`)

// Stays says that the command goes on while the next ones run.
func (c *Command) Stays() bool { return background.MatchString(c.Text) }
