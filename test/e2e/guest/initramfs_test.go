//go:build linux

package guest

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

// tree is the content of an initramfs.
type tree struct {
	files map[string][]byte // by path without the leading slash
	links map[string]string
}

// newTree holds busybox, the modules of the kernel and testdata/init, which loads them and runs testdata/script.
func newTree(t *testing.T, script string) *tree {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	r := &tree{files: make(map[string][]byte), links: map[string]string{"bin/sh": "busybox"}}
	r.add(t, "bin/busybox", busybox)
	r.add(t, "init", "testdata/init.sh")
	r.add(t, "test", "testdata/"+script)
	r.addModules(t, "modules", wanted...)
	return r
}

// addModules adds modules, and what they need, to a directory where the order of names is that of loading.
func (r *tree) addModules(t *testing.T, dir string, names ...string) {
	t.Helper()
	k, err := kernel()
	if err != nil {
		t.Fatal(err)
	}
	modules, err := inOrder(k.root, names)
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range modules {
		r.add(t, fmt.Sprintf("%s/%02d-%s", dir, i, filepath.Base(m)), m)
	}
}

func (r *tree) add(t *testing.T, name, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r.files[name] = b
}

var libraryLine = regexp.MustCompile(`(?m)(/\S+) \(0x`)

// addProgram adds a program of this host with its libraries: one of a path in its place, another one in /bin.
func (r *tree) addProgram(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	to := "bin/" + name
	if filepath.IsAbs(name) {
		to = name[1:]
	}
	r.add(t, to, path)
	for _, m := range libraryLine.FindAllStringSubmatch(must(ctx, t, "ldd", path), -1) {
		r.add(t, m[1][1:], m[1])
	}
}

// write writes the tree as a cpio archive of the form "newc", as the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst gives it, uncompressed: that is fastest here.
func (r *tree) write(t *testing.T) string {
	t.Helper()
	var b bytes.Buffer
	number := 0
	entry := func(name string, mode uint32, data []byte) {
		number++
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
			number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name + "\x00")
		align(&b)
		b.Write(data)
		align(&b)
	}
	dirs := make(map[string]bool)
	for name := range maps.Keys(r.files) {
		for d := filepath.Dir(name); d != "."; d = filepath.Dir(d) {
			dirs[d] = true
		}
	}
	for _, d := range []string{"dev", "mnt", "proc", "sys"} {
		dirs[d] = true
	}
	for _, d := range slices.Sorted(maps.Keys(dirs)) { // parents first
		entry(d, 0o40755, nil)
	}
	for name, data := range r.files {
		entry(name, 0o100755, data)
	}
	for name, to := range r.links {
		entry(name, 0o120777, []byte(to))
	}
	entry("TRAILER!!!", 0, nil)
	path := filepath.Join(t.TempDir(), "initramfs")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func align(b *bytes.Buffer) { b.Write(make([]byte, -b.Len()&3)) }
