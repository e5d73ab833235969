//go:build linux

package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/btrexport/btrexport/test/docs"
)

// TestDocs runs the pages that have blocks for root, loop devices and NBD clients (package docs), each from its top.
func TestDocs(t *testing.T) {
	need(t, "bash", "losetup", "curl", "openssl", "nbdinfo", "nbdcopy", "qemu-img", "qemu-system-x86_64")
	const root = "../.."
	pages, err := docs.Pages(root)
	if err != nil {
		t.Fatal(err)
	}
	ran, want := 0, 0
	for _, page := range pages {
		text, err := os.ReadFile(filepath.Join(root, page))
		if err != nil {
			t.Fatal(err)
		}
		blocks, err := docs.Find(page, string(text))
		if err != nil {
			t.Fatal(err)
		}
		of := func(place docs.Place) (n int) {
			for _, b := range blocks {
				if b.Place == place {
					n++
				}
			}
			return n
		}
		if of(docs.E2E) == 0 {
			continue
		}
		want += of(docs.E2E) + of(docs.Test)
		t.Run(page, func(t *testing.T) {
			s := docSession(t)
			for i := range blocks {
				if b := &blocks[i]; b.Place == docs.E2E || b.Place == docs.Test {
					if err := s.Run(b); err != nil {
						t.Fatal(err)
					}
					ran++
				}
			}
		})
	}
	t.Logf("%d blocks", ran)
	if ran != want || ran == 0 {
		t.Errorf("%d blocks ran, want %d", ran, want)
	}
}

// docSession starts a shell that knows the program, the loop devices of the sample as /dev/sdb and /dev/sdc, and no display.
func docSession(t *testing.T) *docs.Session {
	t.Helper()
	ctx, binary, dir := bounded(t), program(t, plainBinary), shortDir(t, "")
	disks := map[string]string{"/dev/sdb": "disk0.img", "/dev/sdc": "disk1.img"}
	images := t.TempDir()
	must(ctx, t, binary, "sample", images)
	for name, file := range disks {
		disks[name] = strings.TrimSpace(must(ctx, t, "losetup", "--find", "--show", filepath.Join(images, file)))
		t.Cleanup(func() { must(context.Background(), t, "losetup", "--detach", disks[name]) })
	}
	pairs, err := docs.Stage(dir, disks)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(binary, filepath.Join(dir, "bin/btrexport")); err != nil {
		t.Fatal(err)
	}
	env := []string{"PATH=" + filepath.Join(dir, "bin") + ":" + os.Getenv("PATH")}
	s, err := docs.Start(context.WithoutCancel(ctx), docs.Options{Dir: dir, Env: env, Replace: pairs})
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
