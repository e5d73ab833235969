// Package packaging holds what makes the released archives, packages and images, and tests of it.
package packaging

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// instruction is one of a Dockerfile: RUN, COPY, …, and what follows it.
type instruction struct{ name, rest string }

// instructions reads the Dockerfile: comments left out, continued lines joined.
func instructions(t *testing.T) []instruction {
	t.Helper()
	text, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	var list []instruction
	joined := ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if more, ok := strings.CutSuffix(line, `\`); ok {
			joined += more + " "
			continue
		}
		name, rest, _ := strings.Cut(joined+line, " ")
		list = append(list, instruction{name, strings.TrimSpace(rest)})
		joined = ""
	}
	return list
}

// TestImage builds the image's stages by hand: what COPY copies out of the context that .dockerignore leaves, and what
// RUN runs. Paths of the build stage lie below a directory.
func TestImage(t *testing.T) {
	if _, err := exec.LookPath("sh"); err != nil {
		t.Skip(err)
	}
	b := imageBuild{t: t, context: buildContext(t), stages: map[string]string{}, args: map[string]string{
		"BUILDPLATFORM": "linux/" + runtime.GOARCH, "TARGETOS": "linux", "TARGETARCH": runtime.GOARCH}}
	all := instructions(t)
	for _, in := range all {
		b.do(in)
	}
	var files []string
	err := filepath.WalkDir(b.root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, strings.TrimPrefix(path, b.root))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"/LICENSE", "/LICENSES", "/NOTICE", "/btrexport"}; !slices.Equal(files, want) {
		t.Fatalf("the image holds %q, want %q", files, want)
	}
	out, err := exec.Command(b.root+"/btrexport", "version").CombinedOutput()
	if err != nil || !bytes.HasPrefix(out, []byte("btrexport "+b.args["VERSION"]+"\n")) {
		t.Errorf("version: %v\n%s", err, out)
	}
	if licences, err := os.ReadFile(b.root + "/LICENSES"); err != nil || !bytes.Contains(licences, []byte("github.com/prometheus/client_golang")) {
		t.Errorf("LICENSES: %v, %d bytes", err, len(licences))
	}
	described(t, all)
}

// imageBuild is how far a build has come.
type imageBuild struct {
	t       *testing.T
	context string            // the directory that COPY copies from
	stages  map[string]string // root directories by the stage's name
	args    map[string]string
	root    string // of the stage that is built now
	workdir string // below root
	base    string // of FROM
}

var (
	fromLine  = regexp.MustCompile(`^(?:--platform=\S+ )?(\S+)(?: AS (\S+))?$`)
	mountFlag = regexp.MustCompile(`--mount=\S+ *`)
	absolute  = regexp.MustCompile(`(^|\s)/out/`)
)

func (b *imageBuild) do(in instruction) {
	b.t.Helper()
	switch in.name {
	case "FROM":
		m := fromLine.FindStringSubmatch(in.rest)
		if m == nil {
			b.t.Fatalf("FROM %s", in.rest)
		}
		b.root, b.workdir, b.base = b.t.TempDir(), "/", m[1]
		b.stages[m[2]] = b.root
	case "WORKDIR":
		b.workdir = in.rest
		if err := os.MkdirAll(b.root+b.workdir, 0o755); err != nil {
			b.t.Fatal(err)
		}
	case "ARG":
		for arg := range strings.FieldsSeq(in.rest) {
			if name, value, ok := strings.Cut(arg, "="); ok {
				b.args[name] = value
			}
		}
	case "COPY":
		b.copy(strings.Fields(in.rest))
	case "RUN":
		b.run(in.rest)
	case "LABEL", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD":
	default:
		b.t.Fatalf("%s: this test does not know it", in.name)
	}
}

func (b *imageBuild) copy(args []string) {
	b.t.Helper()
	from := b.context
	if stage, ok := strings.CutPrefix(args[0], "--from="); ok {
		from, args = b.stages[stage], args[1:]
	}
	to := args[len(args)-1]
	target := b.root + to
	if !filepath.IsAbs(to) {
		target = filepath.Join(b.root+b.workdir, to)
	}
	many := strings.HasSuffix(to, "/") || to == "."
	for _, name := range args[:len(args)-1] {
		source, dest := filepath.Join(from, name), target
		if many && name != "." {
			dest = filepath.Join(target, filepath.Base(name))
		}
		if out, err := exec.Command("cp", "-rT", source, dest).CombinedOutput(); err != nil {
			b.t.Fatalf("COPY %s: %v\n%s", name, err, out)
		}
	}
}

func (b *imageBuild) run(text string) {
	b.t.Helper()
	if b.base == "scratch" {
		b.t.Fatalf("RUN %s: there is no shell in this stage", text)
	}
	if err := os.MkdirAll(b.root+"/out", 0o755); err != nil {
		b.t.Fatal(err)
	}
	cmd := exec.Command("sh", "-euc", absolute.ReplaceAllString(mountFlag.ReplaceAllString(text, ""), "${1}"+b.root+"/out/"))
	cmd.Dir = b.root + b.workdir
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off")
	for name, value := range b.args {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		b.t.Fatalf("RUN %s: %v\n%s", text, err, out)
	}
}

// buildContext copies what .dockerignore leaves of the tree. As Docker has it, the last pattern that fits decides.
func buildContext(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../.dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	err = filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		name := strings.TrimPrefix(path, "../")
		if err != nil || d.IsDir() {
			if name == ".git" {
				return filepath.SkipDir
			}
			return err
		}
		if ignored(string(text), name) {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		to := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		return os.WriteFile(to, b, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func ignored(patterns, name string) bool {
	result := false
	for line := range strings.Lines(patterns) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		pattern, keeps := strings.CutPrefix(line, "!")
		// ** is any number of folders, * anything in one; what is in a folder goes with it.
		expression := strings.NewReplacer(`\*\*/`, `(.*/)?`, `\*`, `[^/]*`).Replace(regexp.QuoteMeta(pattern))
		if regexp.MustCompile(`^` + expression + `(/|$)`).MatchString(name) {
			result = !keeps
		}
	}
	return result
}

// TestIgnored: the patterns mean what they mean to Docker.
func TestIgnored(t *testing.T) {
	const patterns = "# a comment\n*\n!cmd\n!LICENSE\n**/*_test.go\n**/testdata\n"
	for name, want := range map[string]bool{"README.md": true, "LICENSE": false, "cmd/a/main.go": false, "cmd/a/main_test.go": true,
		"cmd/testdata/x/y": true, "docs/cmd/x": true, "cmd2/x": true} {
		if got := ignored(patterns, name); got != want {
			t.Errorf("%s: ignored %v, want %v", name, got, want)
		}
	}
}

// described: what stands on the image beside its files.
func described(t *testing.T, all []instruction) {
	t.Helper()
	last := map[string]string{}
	for _, in := range all {
		last[in.name] = in.rest
	}
	for name, want := range map[string]string{"FROM": "scratch", "USER": "65532:65532", "EXPOSE": "10809 9810"} {
		if last[name] != want {
			t.Errorf("%s %s, want %s", name, last[name], want)
		}
	}
	for _, label := range []string{"title", "source", "licenses", "revision", "version"} {
		if !strings.Contains(last["LABEL"], "org.opencontainers.image."+label+"=") {
			t.Errorf("no label %s", label)
		}
	}
	_, check, _ := strings.Cut(last["HEALTHCHECK"], "CMD ")
	for name, form := range map[string]string{"HEALTHCHECK": check, "ENTRYPOINT": last["ENTRYPOINT"]} {
		var args []string
		if err := json.Unmarshal([]byte(form), &args); err != nil || len(args) == 0 || args[0] != "/btrexport" {
			t.Errorf("%s %s: %v; want /btrexport in the form without a shell", name, form, err)
		}
	}
}
