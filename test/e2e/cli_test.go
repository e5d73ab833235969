//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/btrexport/btrexport/fsread/fsreadtest"
)

// listed is what "ls --json" prints of one entry.
type listed struct {
	Path      string `json:"path"`
	RawPath   string `json:"path_base64"`
	Type      string `json:"type"`
	Size      int64  `json:"size"`
	Mode      string `json:"mode"`
	UID       uint32 `json:"uid"`
	GID       uint32 `json:"gid"`
	Links     uint64 `json:"links"`
	Modified  string `json:"mtime"`
	Subvolume uint64 `json:"subvolume"`
	Inode     uint64 `json:"inode"`
	Device    string `json:"device"`
	Target    string `json:"target"`
	RawTarget string `json:"target_base64"`
}

// madeUpInode is the inode of the directory that the kernel shows where a snapshot holds the name
// of a subvolume of its source. Nothing of it stands on the disk but its name.
const madeUpInode = 2

// asListed is a manifest's entry in the words of ls.
func asListed(e fsreadtest.Entry) listed {
	l := listed{Path: "/" + string(e.Path), Type: e.Type}
	if e.Ino == madeUpInode {
		return l
	}
	l.Size, l.Mode, l.UID, l.GID, l.Links = e.Size, e.Mode, e.UID, e.GID, e.Nlink
	l.Modified = time.Unix(e.MtimeSec, e.MtimeNsec).UTC().Format(time.RFC3339Nano)
	l.Subvolume, l.Inode, l.Device, l.Target = e.Subvol, e.Ino, e.Rdev, string(e.Target)
	return l
}

// exact puts the bytes in the place of a name that JSON could not hold.
func exact(t *testing.T, name, raw string) string {
	t.Helper()
	if raw == "" {
		return name
	}
	b, err := base64.StdEncoding.DecodeString(raw)
	if err != nil {
		t.Errorf("%q: %v", raw, err)
	}
	return string(b)
}

// decodeLines decodes one JSON object per line.
func decodeLines[T any](t *testing.T, text string) []T {
	t.Helper()
	var list []T
	for line := range strings.Lines(text) {
		var v T
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		list = append(list, v)
	}
	return list
}

// checkListing compares "ls -R --json" with the kernel's view, every entry and every field.
func (k *truth) checkListing(ctx context.Context, t *testing.T, devices []string) {
	t.Helper()
	out := must(ctx, t, program(t, plainBinary), append([]string{"ls", "-R", "--json"}, append(devices, "/")...)...)
	got := make(map[string]listed)
	for _, l := range decodeLines[listed](t, out) {
		l.Path, l.Target = exact(t, l.Path, l.RawPath), exact(t, l.Target, l.RawTarget)
		l.RawPath, l.RawTarget = "", ""
		if l.Inode == madeUpInode {
			l = listed{Path: l.Path, Type: l.Type}
		}
		if _, twice := got[l.Path]; twice {
			t.Errorf("ls: %q stands twice", l.Path)
		}
		got[l.Path] = l
	}
	want := make(map[string]listed)
	for _, e := range k.view.Entries {
		if e.Path != "." {
			want["/"+string(e.Path)] = asListed(e)
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("ls -R --json (-kernel +ls):\n%s", d)
	}
}

// subvolume is what "subvolumes --json" prints of one.
type subvolume struct {
	ID         uint64 `json:"id"`
	Path       string `json:"path"`
	RawPath    string `json:"path_base64"`
	Parent     uint64 `json:"parent"`
	UUID       string `json:"uuid"`
	ParentUUID string `json:"parent_uuid"`
	ReadOnly   bool   `json:"read_only"`
}

// checkSubvolumes compares "subvolumes --json" with the kernel's answers, order included.
func (k *truth) checkSubvolumes(ctx context.Context, t *testing.T, devices []string) {
	t.Helper()
	out := must(ctx, t, program(t, plainBinary), append([]string{"subvolumes", "--json"}, devices...)...)
	var got, want []subvolume
	for _, s := range decodeLines[subvolume](t, out) {
		if s.ID == 5 { // the mount's own root is not in the manifest
			continue
		}
		s.Path, s.RawPath = exact(t, s.Path, s.RawPath), ""
		got = append(got, s)
	}
	for _, s := range k.view.Subvolumes {
		want = append(want, subvolume{ID: s.ID, Path: "/" + string(s.Path), Parent: s.Parent, UUID: s.UUID, ParentUUID: s.ParentUUID, ReadOnly: s.ReadOnly})
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("subvolumes --json (-kernel +subvolumes):\n%s", d)
	}
}

// checkCp copies every regular file out, some to standard output.
func (k *truth) checkCp(ctx context.Context, t *testing.T, rng *rand.Rand, devices []string) {
	t.Helper()
	dir := t.TempDir()
	for _, e := range k.regular() {
		want := k.read(t, e.Path)
		if rng.IntN(3) == 0 {
			got := must(ctx, t, program(t, plainBinary), append([]string{"cp"}, append(devices, "/"+string(e.Path), "-")...)...)
			if d := diff([]byte(got), want); d != "" {
				t.Errorf("cp %q -: %s", e.Path, d)
			}
			continue
		}
		dest := filepath.Join(dir, "copy")
		must(ctx, t, program(t, plainBinary), append([]string{"cp", "-f"}, append(devices, "/"+string(e.Path), dest)...)...)
		sameFile(t, "cp "+string(e.Path), dest, want)
		if _, err := os.Stat(dest + ".partial"); !os.IsNotExist(err) {
			t.Errorf("cp %q: %s.partial is left: %v", e.Path, dest, err)
		}
	}
}

// The whole of a file through "serve --run": the command finds the export, and its status is ours.
func TestServeRun(t *testing.T) {
	need(t, "nbdcopy")
	ctx := bounded(t)
	img := fsreadtest.Load(t, "raid1-2")
	path, sum := largest(t, img)
	dir := t.TempDir()
	devices := flags("-d", img.Devices)
	o := run(ctx, t, program(t, plainBinary), append(append([]string{"serve"}, devices...), "-e", "big="+path,
		"--run", `nbdcopy "$uri" "`+dir+`/out" && nbdcopy "$uri" - > "`+dir+`/stream" && test -S "$unixsocket" && exit 7`)...)
	if o.status != 7 {
		t.Errorf("exit status: got %d, want the command's 7\n%s", o.status, o.errOut)
	}
	var both [2][]byte
	for i, name := range []string{"out", "stream"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if got := digest(b); got != sum {
			t.Errorf("%s of %s: got SHA-256 %s, want %s", name, path, got, sum)
		}
		both[i] = b
	}
	if !bytes.Equal(both[0], both[1]) {
		t.Error("nbdcopy to a file and to a pipe differ")
	}
}
