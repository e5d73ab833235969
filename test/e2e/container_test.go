//go:build linux

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/btrexport/btrexport/fsread/fsreadtest"
)

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// largest is the largest file of a golden image in its default view, and its SHA-256.
func largest(t *testing.T, img *fsreadtest.Image) (path, sum string) {
	t.Helper()
	var best fsreadtest.Entry
	for _, e := range img.Manifest.Entries {
		if e.Type == "file" && e.SHA256 != "" && e.Size > best.Size {
			best = e
		}
	}
	if best.Size == 0 {
		t.Fatalf("image %s has no file", img.Manifest.Name)
	}
	return "/" + string(best.Path), best.SHA256
}

// What the container image promises: the static binary works in an empty root, as nobody.
func TestStaticBinaryInEmptyRoot(t *testing.T) {
	need(t, "chroot", "nbdcopy")
	ctx := bounded(t)
	root := t.TempDir()
	install(t, program(t, staticBinary), filepath.Join(root, "btrexport"), 0o755)
	img := fsreadtest.Load(t, "raid1-2")
	var devices []string
	for i, d := range img.Devices {
		name := "/" + img.Manifest.Devices[i].File
		install(t, d, root+name, 0o444)
		devices = append(devices, "-d", name)
	}
	for dir := root; dir != os.TempDir(); dir = filepath.Dir(dir) { // the test's own directories keep others out
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	inside := []string{"chroot", "--userspec=65532:65532", root, "/btrexport"}
	if out := must(ctx, t, inside[0], append(inside[1:], "version")...); !strings.Contains(out, "e2e") {
		t.Errorf("version: got %q, want the one that was linked in", out)
	}
	path, sum := largest(t, img)
	s := launch{command: inside, root: root}.serve(t, append(devices, "-e", "big="+path)...)
	out := filepath.Join(t.TempDir(), "out")
	must(ctx, t, "nbdcopy", s.uri("big"), out)
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if got := digest(b); got != sum {
		t.Errorf("%s: got SHA-256 %s, want %s", path, got, sum)
	}
}

// install copies a file.
func install(t *testing.T, from, to string, mode os.FileMode) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, mode); err != nil {
		t.Fatal(err)
	}
}
