package export

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// protocolItems is how many there are.
const protocolItems = 88

// TestChecklist: every item of testdata/checklist.md is there once, and the tests that it names exist, with such cases.
func TestChecklist(t *testing.T) {
	text, err := os.ReadFile("testdata/checklist.md")
	if err != nil {
		t.Fatal(err)
	}
	tests, items := make(sources), 0
	for line := range bytes.Lines(text) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(string(line)), "|"), "|")
		name, last := strings.TrimSpace(cells[0]), strings.TrimSpace(cells[len(cells)-1])
		if len(cells) < 2 || last == "tests" || strings.HasPrefix(last, "---") {
			continue
		}
		if n, err := strconv.Atoi(name); err == nil {
			if items++; n != items {
				t.Errorf("item %d stands where %d belongs", n, items)
			}
		}
		for reference := range strings.SplitSeq(last, "; ") {
			if why := tests.find(t, reference); why != "" {
				t.Errorf("%s: %s: %s", name, reference, why)
			}
		}
	}
	if items != protocolItems {
		t.Errorf("%d items, want %d", items, protocolItems)
	}
}

// sources are the string literals of each test function, by folder.
type sources map[string]map[string][]string

// find tells what is wrong with "folder/TestX: case", of which folder and case may be missing.
func (s sources) find(t *testing.T, reference string) string {
	t.Helper()
	path, want, _ := strings.Cut(reference, ": ")
	folder, name := filepath.Split(path)
	dir := filepath.Clean(folder)
	if _, err := os.Stat(dir); err != nil {
		dir = filepath.Join("..", folder)
	}
	if s[dir] == nil {
		s[dir] = testLiterals(t, dir)
	}
	literals, ok := s[dir][name]
	if !ok {
		return "no such test"
	}
	for _, l := range literals {
		if strings.HasPrefix(l, want) || strings.Contains(l, ", "+want) {
			return ""
		}
	}
	if want == "" {
		return ""
	}
	return "no such case"
}

// testLiterals parses the tests of one folder.
func testLiterals(t *testing.T, dir string) map[string][]string {
	t.Helper()
	files, err := filepath.Glob(dir + "/*_test.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: tests %q, %v", dir, files, err)
	}
	all := make(map[string][]string)
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		maps.Copy(all, literalsOf(f))
	}
	return all
}

func literalsOf(f *ast.File) map[string][]string {
	all := make(map[string][]string)
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || !strings.HasPrefix(fn.Name.Name, "Test") {
			continue
		}
		list := []string{}
		ast.Inspect(fn, func(n ast.Node) bool {
			if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
				if s, err := strconv.Unquote(l.Value); err == nil {
					list = append(list, s)
				}
			}
			return true
		})
		all[fn.Name.Name] = list
	}
	return all
}
