package docs

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// TestLinks follows every relative link of every Markdown file, anchors included.
func TestLinks(t *testing.T) {
	pages, err := Markdown("../..")
	if err != nil {
		t.Fatal(err)
	}
	all := 0
	for _, page := range pages {
		dead, n, err := Dead("../..", page)
		if err != nil {
			t.Error(err)
		}
		for _, d := range dead {
			t.Error(d)
		}
		all += n
	}
	t.Logf("%d links of %d pages", all, len(pages))
	if all < 20 || !slices.Contains(pages, "README.md") {
		t.Errorf("%d links of %q: most are not looked at", all, pages)
	}
}

// TestDeadLinks holds that a link that leads nowhere is found.
func TestDeadLinks(t *testing.T) {
	root := t.TempDir()
	write(t, root+"/b.md", "# A `flag`: twice, even\n## Same\n## Same\n")
	write(t, root+"/a.md", strings.Join([]string{
		"# Top", "[x](b.md) [y](b.md#a-flag-twice-even) [z](b.md#same-1) [t](#top) [w](https://example.com/none)", "`[code](gone.md)`",
		"```text", "[block](gone.md)", "```",
		"[1](c.md) [2](b.md#same-2) [3](#none) [4](../out.md)", "[5]: gone.md",
	}, "\n"))
	dead, n, err := Dead(root, "a.md")
	want := []string{
		"a.md:7: c.md: no such file", "a.md:7: b.md#same-2: no heading has this anchor", "a.md:7: #none: no heading has this anchor",
		"a.md:7: ../out.md: leads out of the project", "a.md:8: gone.md: no such file",
	}
	if err != nil || n != 9 || !slices.Equal(dead, want) {
		t.Errorf("%d links, %v\n got %q\nwant %q", n, err, dead, want)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
}

// TestFind holds what is a block, where it runs, and that mistakes are said.
func TestFind(t *testing.T) {
	text := strings.Join([]string{
		"```console", "$ one \\", "  more", "shown", "", "# two   # a comment", "```", // 1
		"<!-- first: mkdir a -->", "<!-- run: e2e -->", "", "```sh", "a", "b", "```", // 8
		"* list", "  <!-- not run: it needs a cluster -->", "  ~~~console", "  $ three &", "  ~~~", // 15
		"```yaml", "$ no", "```", // 20
		"<!-- run: trial -->", "```sh", "four", "```", // 23
	}, "\n")
	blocks, err := Find("p.md", text)
	if err != nil || len(blocks) != 4 {
		t.Fatalf("%d blocks, %v", len(blocks), err)
	}
	for i, want := range []struct {
		line  int
		place Place
		text  []string
		want  []string // of the first
	}{
		{1, Test, []string{"one \\\n  more", "two   # a comment"}, []string{"shown"}},
		{11, E2E, []string{"mkdir a", "(set -euo pipefail\na\nb\n)"}, nil},
		{17, Nowhere, []string{"three &"}, nil},
		{24, Trial, []string{"(set -euo pipefail\nfour\n)"}, nil},
	} {
		b := blocks[i]
		var got []string
		for _, c := range b.Commands() {
			got = append(got, c.Text)
		}
		if b.Line != want.line || b.Place != want.place || !slices.Equal(got, want.text) || !slices.Equal(b.Commands()[0].Want, want.want) {
			t.Errorf("block %d: %+v: %q", i, b, got)
		}
	}
	for text, want := range map[string]string{
		"```\n$ a\n```":                                        `p.md:1: a block of ""`,
		"```bash\na\n```":                                      `p.md:1: a block of "bash"`,
		"```sh\na":                                             "p.md:1: the fence does not end",
		"```console\nout\n$ a\n```":                            "p.md:1: a block begins with a command",
		"```sh\n```":                                           "p.md:1: a block begins with a command",
		"<!-- run: e2e -->\ntext\n```sh\na\n```":               "p.md:1: no block follows the mark",
		"<!-- run: e2e -->":                                    "p.md:1: no block follows the mark",
		"<!-- run: later -->\n```sh\na\n```":                   `p.md:1: unknown mark "run: later"`,
		"<!-- not run: -->\n```sh\na\n```":                     "p.md:1: the mark \"not run\" says nothing",
		"<!-- not run -->\n```sh\na\n```":                      "p.md:1: a mark stands alone",
		"<!-- run: e2e --><!-- run: demo -->\n```sh\na\n```":   "p.md:1: unknown mark",
		"<!-- run: e2e -->\n<!-- run: demo -->\n```sh\na\n```": "p.md:2: a second mark",
		"<!-- run: e2e -->\n```yaml\na\n```":                   "p.md:1: no command block follows the mark",
	} {
		if _, err := Find("p.md", text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

// TestSession holds that a session runs what is there, and that what differs from the page is said.
func TestSession(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want string // of the error; "" when there is none
	}{
		"the shell goes on": {"$ export A=1; mkdir d; cd d\n$ echo $A ${PWD##*/}\n1 d", ""},
		"wildcards":         {"$ printf 'a 12 b\\nx\\ny\\nend\\n'\na … b\n…\nend", ""},
		"no lines":          {"$ printf 'a\\nend\\n'\na\n…\nend", ""},
		"standard error":    {"$ echo e >&2\ne", ""},
		"status":            {"$ false\n$ echo $?\n1", ""},
		"stays":             {"$ (echo up; exec sleep 1000) &\nup\n$ echo next\nnext", ""},
		"replaced":          {"$ echo /dev/sdb\n/dev/sdb", ""},
		"other output":      {"$ echo b\na", "it printed\n    b\nand the page says\n    a\n"},
		"more output":       {"$ printf 'a\\nb\\n'\na", "it printed"},
		"less output":       {"$ echo a\na\nb", "it printed"},
		"failure":           {"$ echo why; false", "exit status 1; it printed\n    why"},
		"other status":      {"$ false\n$ echo $?\n2", "it printed\n    1"},
		"a shell that ends": {"$ exit 3", "the shell ended"},
		"syntax":            {"$ if", "the shell ended"},
	} {
		t.Run(name, func(t *testing.T) {
			blocks, err := Find("p.md", "```console\n"+c.text+"\n```")
			if err != nil {
				t.Fatal(err)
			}
			s, err := Start(t.Context(), Options{Dir: t.TempDir(), Replace: []string{"/dev/sdb", "/dev/loop7"}})
			if err != nil {
				t.Fatal(err)
			}
			err = s.Run(&blocks[0])
			if closed := s.Close(); closed != nil && c.want == "" {
				t.Error(closed)
			}
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
	blocks, err := Find("p.md", "```sh\nfalse\ntrue\n```")
	if err != nil {
		t.Fatal(err)
	}
	s, err := Start(t.Context(), Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Run(&blocks[0]); err == nil {
		t.Error("an sh block went on after an error")
	}
}
