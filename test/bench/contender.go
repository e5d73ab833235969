package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// contender is a server and the way it is set up.
type contender struct {
	name    string
	tool    string // what must be installed; empty: ours
	noCache bool   // it reads past the page cache: it has nothing to do with warm rows
	command func(t target) ([]string, error)
}

// target is what a server is to serve.
type target struct {
	program string // ours
	dir     string // of this run
	socket  string
	fs      *filesystem
	row     row
}

const exportName = "file"

// contenders are the servers, ours first.
func contenders() []contender {
	return []contender{
		{name: "btrexport", command: ours},
		{name: "nbdkit", tool: "nbdkit", command: func(t target) ([]string, error) {
			return []string{"nbdkit", "--foreground", "--readonly", "--unix", t.socket, "file", t.fs.path()}, nil
		}},
		{name: "qemu-nbd", tool: "qemu-nbd", command: qemu()},
		{name: "qemu-nbd none", tool: "qemu-nbd", noCache: true, command: qemu("--cache=none", "--aio=native")},
	}
}

func qemu(flags ...string) func(target) ([]string, error) {
	return func(t target) ([]string, error) {
		command := []string{"qemu-nbd", "--read-only", "--persistent", "--shared=16", "--format=raw", "--export-name=" + exportName, "--socket=" + t.socket}
		return append(append(command, flags...), t.fs.path()), nil
	}
}

// defaultCache is what our cache: is when left out, in bytes.
const defaultCache = 64 << 20

// cacheSize is our cache in bytes.
func (r row) cacheSize(file int64) int64 {
	switch r.cache {
	case 0:
		return defaultCache
	case 1:
		return file + file/4 // tree blocks lie in it, too
	}
	return file / int64(r.cache)
}

// ours writes a configuration. The devices are mounted, read-only.
func ours(t target) ([]string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "listen: [%q]\nfilesystems:\n  - name: bench\n    allow_mounted: true\n    devices:\n", "unix://"+t.socket)
	for _, d := range t.fs.fs.Loops() {
		fmt.Fprintf(&b, "      - %s\n", d)
	}
	fmt.Fprintf(&b, "    degraded: %v\n    direct_io: %v\n    cache: %dKiB\n", t.fs.lay.missing > 0, !t.row.buffered, t.row.cacheSize(int64(len(t.fs.want.bytes)))>>10)
	fmt.Fprintf(&b, "exports:\n  - name: %s\n    path: /%s\n", exportName, fileName)
	path := filepath.Join(t.dir, "btrexport.yaml")
	return []string{t.program, "serve", "--log-level", "warn", "-c", path}, os.WriteFile(path, []byte(b.String()), 0o600)
}
