package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/test/docs"
)

// root is that of the project.
const root = "../.."

// TestDocs runs the command blocks of README, CONTRIBUTING and docs that need neither root nor foreign programs. Package
// docs says what a page may hold and how the others are marked.
func TestDocs(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		t.Fatalf("%v: the blocks are for it", err)
	}
	pages, err := docs.Pages(root)
	if err != nil {
		t.Fatal(err)
	}
	total, want, ran := map[docs.Place]int{}, 0, 0
	for _, page := range pages {
		blocks := pageBlocks(t, page)
		here := 0
		for _, b := range blocks {
			total[b.Place]++
			if b.Place == docs.Test {
				here++
			}
		}
		t.Run(page, func(t *testing.T) {
			want += here // a page that -run leaves out does not count
			runPage(t, blocks, &ran)
		})
	}
	t.Logf("%d pages: blocks %v, run here %d", len(pages), total, ran)
	if ran != want || ran == 0 {
		t.Errorf("%d blocks ran, want all %d", ran, want)
	}
}

// fences counts the opening fences of command blocks, in another way than docs.Find.
var fences = regexp.MustCompile("(?m)^[ \t>]*[`~]{3,}[ \t]*(sh|bash|shell|console|shell-session|zsh)\\b")

func pageBlocks(t *testing.T, page string) []docs.Block {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, page))
	if err != nil {
		t.Fatal(err)
	}
	blocks, err := docs.Find(page, string(text))
	if err != nil {
		t.Error(err)
	}
	if n := len(fences.FindAllIndex(text, -1)); n != len(blocks) {
		t.Errorf("%s: %d blocks found, %d fences of commands", page, len(blocks), n)
	}
	return blocks
}

func runPage(t *testing.T, blocks []docs.Block, ran *int) {
	var s *docs.Session
	for i := range blocks {
		b := &blocks[i]
		if b.Place != docs.Test {
			t.Logf("%s: %s %s", b.Where(), b.Place, b.Reason)
			continue
		}
		if s == nil {
			s = startPage(t)
		}
		if err := s.Run(b); err != nil {
			t.Fatal(err)
		}
		*ran++
	}
}

func startPage(t *testing.T) *docs.Session {
	t.Helper()
	dir, err := os.MkdirTemp("", "docs") // t.TempDir's name is too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	pairs, err := docs.Stage(dir, pageDisks(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	pairs = append(pairs, "/srv/vm1.raw", "/zoo/shared-source") // a file of /dev/sdd
	s, err := docs.Start(context.WithoutCancel(t.Context()), docs.Options{Dir: dir, Replace: pairs, Env: []string{"GORACE=atexit_sleep_ms=0"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// pageDisks makes what pages call /dev/sdb and /dev/sdc, the sample's two devices, and /dev/sdd, a filesystem whose last
// commit can't be opened.
func pageDisks(t *testing.T, dir string) map[string]string {
	t.Helper()
	for _, name := range []string{"sample", "single"} {
		from := filepath.Join(root, "testdata/images")
		if name == "sample" {
			from = "sample"
		}
		m, err := fsreadtest.ReadManifest(from, name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(filepath.Join(dir, name), 0o777); err != nil {
			t.Fatal(err)
		}
		if _, err := fsreadtest.Unpack(from, m, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	ruined := filepath.Join(dir, "single/disk0.img")
	f, err := (&deviceFlags{devices: []string{ruined}}).open(t.Context(), slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	roots, err := f.Roots(t.Context())
	if err == nil {
		err = ruinAll(f, roots[0].Root, int(f.Info().NodeSize))
	}
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{
		"/dev/sdb": filepath.Join(dir, "sample/disk0.img"), "/dev/sdc": filepath.Join(dir, "sample/disk1.img"), "/dev/sdd": ruined,
	}
}

// TestDocsOfCI holds that the blocks which CI runs from a fresh clone are named in its script.
func TestDocsOfCI(t *testing.T) {
	script, err := os.ReadFile(filepath.Join(root, ".ci/run"))
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]int{}
	for _, b := range pageBlocks(t, "README.md") {
		if b.Place == docs.CI {
			named[b.Reason]++
		}
	}
	for _, name := range []string{"demo", "test"} {
		if named[name] != 1 || !bytes.Contains(script, []byte(fmt.Sprintf(" readme %s\n", name))) {
			t.Errorf("block %q: %d in README.md; .ci/run must have a stage for it", name, named[name])
		}
	}
	pages, err := docs.Pages(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		for _, b := range pageBlocks(t, page) {
			if b.Place == docs.CI && page != "README.md" {
				t.Errorf("%s: .ci/run looks into README.md alone", b.Where())
			}
			if b.Place == docs.Nowhere && len(strings.Fields(b.Reason)) < 3 {
				t.Errorf("%s: %q is no reason", b.Where(), b.Reason)
			}
		}
	}
}

// TestExampleIsServed holds that the example configuration is one that can be served, once it names devices that are there,
// and the second export a file that they hold.
func TestExampleIsServed(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "configs/btrexport.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	disks := pageDisks(t, dir)
	file := filepath.Join(dir, "btrexport.yaml")
	config := strings.NewReplacer("/dev/sdb", disks["/dev/sdb"], "/dev/sdc", disks["/dev/sdc"], "/vm2.raw", "/hello.txt").Replace(string(text))
	if err := os.WriteFile(file, []byte(config), 0o666); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("btrexport", "check-config", file).CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("vm1")) || !bytes.Contains(out, []byte("vm2")) {
		t.Errorf("%v\n%s", err, out)
	}
}
