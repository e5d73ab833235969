//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// archive is an apt with sources and state of its own in a directory, beside that of the machine, whose mirror and
// proxy it uses.
type archive struct {
	dir      string
	codename string // of the Debian that runs here
}

// debianKeys sign Debian's suites.
const debianKeys = "/usr/share/keyrings/debian-archive-keyring.gpg"

var codenameLine = regexp.MustCompile(`(?m)^VERSION_CODENAME=(\w+)$`)

// openArchive fetches the lists of suites, each "deb" or "deb-src" and what follows the codename, as in "deb -backports". An
// error tells why there are none: no Debian, or no mirror that can be reached.
func openArchive(ctx context.Context, dir string, suites ...string) (*archive, error) {
	release, err := os.ReadFile("/etc/os-release")
	codename := codenameLine.FindSubmatch(release)
	if err != nil || codename == nil || !strings.Contains(string(release), "\nID=debian\n") {
		return nil, errors.Join(err, errors.New("this is no Debian"))
	}
	a := &archive{dir: dir, codename: string(codename[1])}
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages").Output()
	if err != nil {
		return nil, fmt.Errorf("apt-get indextargets: %w", err)
	}
	mirror := ""
	for line := range strings.Lines(string(out)) {
		if suite, uri, _ := strings.Cut(strings.TrimSpace(line), " "); suite == a.codename {
			mirror = uri
		}
	}
	if mirror == "" {
		return nil, fmt.Errorf("apt has no source of %s", a.codename)
	}
	var sources strings.Builder
	for _, s := range suites {
		kind, more, _ := strings.Cut(s, " ")
		fmt.Fprintf(&sources, "%s [signed-by=%s] %s %s%s main\n", kind, debianKeys, mirror, a.codename, more)
	}
	for _, sub := range []string{"lists/partial", "archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "sources.list"), []byte(sources.String()), 0o644); err != nil {
		return nil, err
	}
	return a, a.get(ctx, "update")
}

// get runs apt-get in the archive's directory.
func (a *archive) get(ctx context.Context, args ...string) error {
	var options []string
	for name, value := range map[string]string{"Dir::Etc::sourcelist": a.dir + "/sources.list", "Dir::Etc::sourceparts": "/dev/null",
		"Dir::State::lists": a.dir + "/lists", "Dir::Cache": a.dir, "Dir::Cache::archives": a.dir + "/archives",
		"APT::Sandbox::User": "root", "Acquire::Languages": "none"} {
		options = append(options, "-o", name+"="+value)
	}
	cmd := exec.CommandContext(ctx, "apt-get", append(append(options, "-q", "-y"), args...)...)
	cmd.Dir = a.dir
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get %q: %w\n%s", args, err, text)
	}
	return nil
}

// unpack downloads a package with what it needs and is not installed, and unpacks all of that.
func (a *archive) unpack(ctx context.Context, name string) (root string, err error) {
	if err := a.get(ctx, "--no-install-recommends", "--download-only", "install", name); err != nil {
		return "", err
	}
	debs, err := filepath.Glob(a.dir + "/archives/*.deb")
	if err != nil || len(debs) == 0 {
		return "", fmt.Errorf("%s: nothing was downloaded: %w", name, err)
	}
	root = filepath.Join(a.dir, "root")
	for _, deb := range debs {
		if text, err := exec.CommandContext(ctx, "dpkg-deb", "-x", deb, root).CombinedOutput(); err != nil {
			return "", fmt.Errorf("dpkg-deb -x %s: %w\n%s", deb, err, text)
		}
	}
	return root, nil
}

// source downloads a source package and unpacks the authors' part of it.
func (a *archive) source(ctx context.Context, name string) (root string, err error) {
	if err := a.get(ctx, "source", "--download-only", name); err != nil {
		return "", err
	}
	tars, err := filepath.Glob(a.dir + "/" + name + "_*.orig.tar.*")
	if err != nil || len(tars) != 1 {
		return "", fmt.Errorf("%s: sources %q %w", name, tars, err)
	}
	root = filepath.Join(a.dir, "source")
	if err := os.Mkdir(root, 0o755); err != nil {
		return "", err
	}
	if text, err := exec.CommandContext(ctx, "tar", "-xf", tars[0], "-C", root, "--strip-components=1").CombinedOutput(); err != nil {
		return "", fmt.Errorf("tar -xf %s: %w\n%s", tars[0], err, text)
	}
	return root, nil
}

// useBackport puts the programs of a package of Debian's backports first in PATH, for the time of the test, which skips
// where it is not to be had.
func useBackport(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	a, err := openArchive(ctx, t.TempDir(), "deb ", "deb -backports")
	if err != nil {
		t.Skip(err)
	}
	root, err := a.unpack(ctx, name+"/"+a.codename+"-backports")
	if err != nil {
		t.Skip(err)
	}
	t.Setenv("PATH", root+"/usr/bin:"+os.Getenv("PATH"))
	if libraries, _ := filepath.Glob(root + "/usr/lib/*-linux-gnu"); len(libraries) == 1 {
		t.Setenv("LD_LIBRARY_PATH", libraries[0])
	}
}
