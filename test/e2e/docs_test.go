//go:build linux

package e2e

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/btrexport/btrexport/test/docs"
)

// TestDocs runs the pages that have blocks for root, loop devices and NBD clients (package docs), each from its top.
func TestDocs(t *testing.T) {
	need(t, "bash", "losetup", "btrfs", "curl", "openssl", "nbdinfo", "nbdcopy", "qemu-img", "qemu-system-x86_64")
	const root = "../.."
	pages, err := docs.Pages(root)
	if err != nil {
		t.Fatal(err)
	}
	released := moduleProxy(t)
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
			s := docSession(t, released)
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

// docSession starts a shell that knows the program, the loop devices of the sample as /dev/sdb and /dev/sdc, an empty one as
// /dev/sdd, and no display. What a page leaves mounted at /mnt is unmounted. With env, "go install" works there.
func docSession(t *testing.T, env []string) *docs.Session {
	t.Helper()
	ctx, binary, dir := bounded(t), program(t, plainBinary), shortDir(t, "")
	disks := map[string]string{"/dev/sdb": "disk0.img", "/dev/sdc": "disk1.img", "/dev/sdd": "empty.img"}
	images := t.TempDir()
	must(ctx, t, binary, "sample", images)
	must(ctx, t, "truncate", "--reference", filepath.Join(images, "disk0.img"), filepath.Join(images, "empty.img"))
	for name, file := range disks {
		disks[name] = strings.TrimSpace(must(ctx, t, "losetup", "--find", "--show", filepath.Join(images, file)))
		t.Cleanup(func() { must(context.Background(), t, "losetup", "--detach", disks[name]) })
	}
	pairs, err := docs.Stage(dir, disks)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := syscall.Unmount(filepath.Join(dir, "mnt"), 0)
		if err != nil && !errors.Is(err, syscall.EINVAL) { // nothing is mounted there
			t.Error(err)
		}
	})
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(binary, filepath.Join(dir, "bin/btrexport")); err != nil {
		t.Fatal(err)
	}
	env = append(env, "GOBIN="+filepath.Join(dir, "gobin"),
		fmt.Sprintf("PATH=%[1]s/gobin:%[1]s/bin:%[2]s", dir, os.Getenv("PATH")))
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

// moduleProxy publishes this tree as version v0.0.1 of its module, beside what Go has fetched before, and gives the environment
// that has "go install" take it from there and keep it apart.
func moduleProxy(t *testing.T) (env []string) {
	t.Helper()
	const root, module, version = "../..", "github.com/btrexport/btrexport", "v0.0.1"
	ctx, dir := bounded(t), t.TempDir()
	at := filepath.Join(dir, module, "@v")
	if err := os.MkdirAll(at, 0o777); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	z := zip.NewWriter(&archive)
	files := must(ctx, t, "git", "-c", "safe.directory=*", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	for name := range strings.SplitSeq(strings.TrimSuffix(files, "\x00"), "\x00") {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		w, err := z.Create(module + "@" + version + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"list": []byte(version + "\n"), version + ".info": []byte(`{"Version":"` + version + `"}`), version + ".mod": mod, version + ".zip": archive.Bytes(),
	} {
		if err := os.WriteFile(filepath.Join(at, name), b, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	fetched, built, _ := strings.Cut(strings.TrimSpace(must(ctx, t, "go", "env", "GOMODCACHE", "GOCACHE")), "\n")
	env = []string{"GOPROXY=file://" + dir + ",file://" + fetched + "/cache/download,off", "GOSUMDB=off", "GOMODCACHE=" + t.TempDir(),
		"GOCACHE=" + built, "GOFLAGS=-modcacherw -trimpath", "CGO_ENABLED=0"}
	once := exec.CommandContext(ctx, "go", "install", module+"/cmd/btrexport@"+version) // a page has less time
	once.Env = append(os.Environ(), append(env, "GOBIN="+dir)...)
	if out, err := once.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", once, err, out)
	}
	return env
}
