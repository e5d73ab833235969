//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// Where the partition of a disk begins that partitioned makes, and how long it is, in bytes.
const partitionOffset, partitionLength = 1 << 20, 3 << 20

// masterBootRecord names one partition of Linux's kind.
func masterBootRecord() string {
	b := make([]byte, 512)
	b[446+4] = 0x83
	binary.LittleEndian.PutUint32(b[446+8:], partitionOffset/512)
	binary.LittleEndian.PutUint32(b[446+12:], partitionLength/512)
	return string(append(b[:510], 0x55, 0xaa))
}

// serveDisk serves one export, a partitioned disk with data, holes and preallocated ranges, on TCP too.
func serveDisk(ctx context.Context, t *testing.T) (s *server, disk served, address string) {
	t.Helper()
	k := makeTruth(ctx, t, kernelfs.Options{DeviceSize: 256 << 20}, func(tree *kernelfs.Tree) {
		tree.WriteString("disk", masterBootRecord())
		tree.WriteAt("disk", partitionOffset+8192, 700_000)
		tree.WriteAt("disk", 5<<20, 2<<20)
		tree.Fallocate("disk", 8<<20, 1<<20, false)
		tree.Truncate("disk", 16<<20)
	})
	disk = served{name: "disk", path: "/disk", want: k.read(t, "disk")}
	address = fmt.Sprintf("127.0.0.1:%d", freePort(ctx, t))
	args := append(flags("-d", k.fs.Loops()), exports([]served{disk})...)
	return serve(t, append(args, "-l", "tcp://"+address)...), disk, address
}

// Every tool of libnbd that docs or users name, on one export.
func TestLibnbdTools(t *testing.T) {
	need(t, "mkfs.btrfs", "nbdinfo", "nbddump", "nbdcopy", "nbdsh", "cmp")
	ctx := bounded(t)
	s, disk, _ := serveDisk(ctx, t)
	uri := s.uri("disk")
	totals := must(ctx, t, "nbdinfo", "--map", "--totals", uri)
	for _, kind := range []string{" data", " zero", " hole,zero"} {
		if !strings.Contains(totals, kind) {
			t.Errorf("nbdinfo --map --totals: no%s in\n%s", kind, totals)
		}
	}
	if dump := must(ctx, t, "nbddump", "-n", "512", uri); !strings.Contains(dump, "55 aa") {
		t.Errorf("nbddump:\n%s", dump)
	}
	out := filepath.Join(t.TempDir(), "out")
	for _, options := range [][]string{{"--no-extents"}, {"--connections=4", "--requests=64", "--request-size=262144", "--queue-size=16777216"}, {"--synchronous", "--no-extents"}} {
		must(ctx, t, "nbdcopy", append(options, uri, out)...)
		sameFile(t, fmt.Sprintf("nbdcopy %q", options), out, disk.want)
	}
	must(ctx, t, "nbdcopy", uri, "null:")
	for what, want := range map[string]int{"--is=read-only": 0, "--can=multi-conn": 0, "--can=df": 0, "--can=cache": 0, "--can=flush": 0, "--can=write": 2, "--is=tls": 2, "--can=trim": 2, "--can=fua": 2} {
		flag, name, _ := strings.Cut(what, "=")
		if o := run(ctx, t, "nbdinfo", flag, name, uri); o.status != want {
			t.Errorf("nbdinfo %s: exit status %d, want %d: %s", what, o.status, want, o.errOut)
		}
	}
	t.Setenv("PATH", "/usr/bin:"+os.Getenv("PATH")) // nbdsh takes the first python3, and the bindings are Debian's
	if o := run(ctx, t, "python3", "-c", "import nbd"); o.status != 0 {
		t.Skipf("libnbd's Python bindings are not here: %s", o.errOut)
	}
	for range 20 {
		got := must(ctx, t, "nbdsh", "--opt-mode", "-u", uri, "-c", "h.opt_info()", "-c", "print(h.get_size())", "-c", "h.opt_abort()")
		if strings.TrimSpace(got) != fmt.Sprint(len(disk.want)) {
			t.Fatalf("nbdsh --opt-mode: %q", got)
		}
	}
}

// libnbd's FUSE shows the export as a file.
func TestNbdfuse(t *testing.T) {
	need(t, "mkfs.btrfs", "nbdfuse", "umount")
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		t.Skip(err) // as where the faults are
	} else {
		_ = f.Close()
	}
	ctx := bounded(t)
	s, disk, _ := serveDisk(ctx, t)
	file := filepath.Join(t.TempDir(), "mnt.file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fuse := exec.Command("nbdfuse", "-r", file, s.uri("disk"))
	fuse.Stderr = os.Stderr
	if err := fuse.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- fuse.Wait() }()
	defer func() {
		if o := run(ctx, t, "umount", file); o.status != 0 {
			t.Errorf("umount: %s", o.errOut)
			_ = fuse.Process.Kill()
		}
		<-ended
	}()
	for range 500 {
		if st, err := os.Stat(file); err == nil && st.Size() == int64(len(disk.want)) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	sameFile(t, "nbdfuse", file, disk.want)
}

// QEMU's tools beside those that every other test runs: they measure, bench, copy, stack an overlay, and write nothing.
func TestQEMUTools(t *testing.T) {
	need(t, "mkfs.btrfs", "qemu-img", "qemu-io", "qemu-nbd")
	ctx := bounded(t)
	s, disk, address := serveDisk(ctx, t)
	uri, dir := s.uri("disk"), t.TempDir()
	if got := must(ctx, t, "qemu-img", "measure", "-f", "raw", "-O", "qcow2", uri); !strings.Contains(got, "required size:") {
		t.Errorf("qemu-img measure: %q", got)
	}
	must(ctx, t, "qemu-img", "bench", "-f", "raw", "-c", "2000", "-d", "32", "-s", "4096", uri)
	must(ctx, t, "qemu-img", "dd", "-f", "raw", "-O", "raw", "bs=64k", "if="+uri, "of="+dir+"/dd")
	sameFile(t, "qemu-img dd", dir+"/dd", disk.want)
	must(ctx, t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, dir+"/q")
	must(ctx, t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", uri, dir+"/q")
	must(ctx, t, "qemu-img", "create", "-f", "qcow2", "-b", uri, "-F", "raw", dir+"/overlay")
	must(ctx, t, "qemu-io", "-c", "write -P 0x5a 5M 4096", "-c", "flush", dir+"/overlay")
	must(ctx, t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", dir+"/overlay", dir+"/merged")
	sameFile(t, "overlay", dir+"/merged", slices.Concat(disk.want[:5<<20], bytes.Repeat([]byte{0x5a}, 4096), disk.want[5<<20+4096:]))
	must(ctx, t, "qemu-io", "-r", "-f", "raw", "-c", "read 0 1M", "-c", "read 1000 3000", "-c", "aio_read 0 64k", "-c", "aio_read 64k 64k",
		"-c", "aio_flush", "-c", "map", "-c", "alloc 0 1M", "-c", "read -P 0 9M 1M", uri)
	if o := run(ctx, t, "qemu-io", "-f", "raw", "-c", "write 0 512", uri); o.status == 0 {
		t.Errorf("qemu-io write: exit status 0, want another: %s", o.out)
	}
	long := strings.Repeat("a", 3000) // CVE-2017-15118
	if o := run(ctx, t, "qemu-io", "-r", "-f", "raw", "-c", "read 0 512", "nbd://"+address+"/"+long); o.status == 0 || !strings.Contains(o.errOut, "no export") {
		t.Errorf("qemu-io with a name of 3000 bytes: exit status %d: %.300s", o.status, o.errOut)
	}
	must(ctx, t, "qemu-img", "compare", "-f", "raw", "-F", "raw", dir+"/dd", "nbd://"+address+"/disk")
}

// A server that is killed and started again costs QEMU's client a pause.
func TestQEMUReconnects(t *testing.T) {
	need(t, "mkfs.btrfs", "qemu-io")
	ctx := bounded(t)
	s, _, _ := serveDisk(ctx, t)
	client := exec.CommandContext(ctx, "qemu-io", "-r", "--image-opts",
		"driver=raw,file.driver=nbd,file.server.type=unix,file.server.path="+s.socket+",file.export=disk,file.reconnect-delay=60",
		"-c", "read 0 4k", "-c", "sleep 3000", "-c", "read -P 0 9M 4k", "-c", "read 5M 1M")
	var out bytes.Buffer
	client.Stdout, client.Stderr = &out, &out
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	for s.scrape(ctx, t).sum("btrexport_nbd_requests_total", `command="read"`, `result="ok"`) == 0 {
		if ctx.Err() != nil {
			t.Fatal(ctx.Err())
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	s.wait()
	s.again(t)
	if err := client.Wait(); err != nil || strings.Count(out.String(), "ops;") != 3 {
		t.Errorf("qemu-io: %v, want 3 reads\n%s", err, out.Bytes())
	}
}

// nbdkit's nbd plugin is a client, and its filters ask in ways of their own.
func TestNbdkitFilters(t *testing.T) {
	need(t, "mkfs.btrfs", "nbdkit", "nbdcopy", "qemu-io")
	ctx := bounded(t)
	s, disk, _ := serveDisk(ctx, t)
	out, stats := filepath.Join(t.TempDir(), "out"), filepath.Join(t.TempDir(), "stats")
	through := func(script string, want []byte, args ...string) {
		t.Helper()
		must(ctx, t, "nbdkit", append(append([]string{"-U", "-"}, args...), "nbd", "uri="+s.uri("disk"), "--run", script)...)
		sameFile(t, fmt.Sprintf("through nbdkit %q", args), out, want)
		if err := os.Remove(out); err != nil {
			t.Fatal(err)
		}
	}
	copied := `nbdcopy "$uri" ` + out
	written := slices.Concat(disk.want[:5<<20], bytes.Repeat([]byte{0x5a}, 65536), disk.want[5<<20+65536:])
	through(`qemu-io -f raw -c 'write -P 0x5a 5M 64k' -c flush "$uri" && `+copied, written, "--filter=cow")
	must(ctx, t, "nbdkit", "-U", "-", "--filter=stats", "nbd", "uri="+s.uri("disk"), "statsfile="+stats, "--run", copied)
	if text, err := os.ReadFile(stats); err != nil || !bytes.Contains(text, []byte("read:")) {
		t.Errorf("nbdkit's statistics: %v %s", err, text)
	}
	must(ctx, t, "nbdkit", "-U", "-", "-r", "--filter=partition", "nbd", "uri="+s.uri("disk"), "partition=1", "--run", copied)
	sameFile(t, "nbdkit's partition 1", out, disk.want[partitionOffset:partitionOffset+partitionLength])
	through(copied+` && nbdcopy --no-extents "$uri" `+out, disk.want, "-r")
}

// nbdTester builds the client of the tests of nbd-server, of Debian's source package or of BTREXPORT_NBD_SOURCE.
func nbdTester(ctx context.Context, t *testing.T) string {
	t.Helper()
	source := os.Getenv("BTREXPORT_NBD_SOURCE")
	if source == "" {
		a, err := openArchive(ctx, t.TempDir(), "deb-src ")
		if err == nil {
			source, err = a.source(ctx, "nbd")
		}
		if err != nil {
			t.Skipf("sources of nbd-tester-client (BTREXPORT_NBD_SOURCE may name them): %v", err)
		}
	}
	dir := t.TempDir()
	config := "#define _GNU_SOURCE\n#define _FILE_OFFSET_BITS 64\n#define SIZEOF_UNSIGNED_SHORT_INT 2\n#define SIZEOF_UNSIGNED_INT 4\n#define SIZEOF_UNSIGNED_LONG_INT 8\n" +
		"#define PACKAGE_VERSION \"debian\"\n#define HAVE_GNUTLS 0\n#define HAVE_MKSTEMP 1\n"
	if err := os.WriteFile(dir+"/config.h", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	glib := strings.Fields(must(ctx, t, "pkg-config", "--cflags", "--libs", "glib-2.0"))
	args := append([]string{"-w", "-I" + dir, "-I" + source, "-o", dir + "/tester", source + "/tests/run/nbd-tester-client.c", source + "/cliserv.c"}, glib...)
	must(ctx, t, "gcc", args...)
	return dir + "/tester"
}

// The client of the tests of nbd-server: EXPORT_NAME, pipelined reads, requests of odd sizes, writes that must fail.
func TestNBDTester(t *testing.T) {
	need(t, "mkfs.btrfs", "apt-get", "gcc", "pkg-config")
	ctx := bounded(t)
	tester := nbdTester(ctx, t)
	s, _, address := serveDisk(ctx, t)
	host, port, _ := strings.Cut(address, ":")
	for _, args := range [][]string{
		{"-N", "disk", host, port}, {"-f", "-N", "disk", host, port}, {"-o", "-N", "disk", host, port}, {"-h", "-N", "disk", host, port},
		{"-w", "-F", "-N", "disk", host, port}, {"-N", "disk", "-u", s.socket}, {"-o", "-N", "disk", "-u", s.socket},
	} {
		if o := run(ctx, t, tester, args...); o.status != 0 {
			t.Errorf("nbd-tester-client %q: exit status %d\n%.500s", args, o.status, o.errOut)
		}
	}
	for _, args := range [][]string{{"-N", "nope", host, port}, {"-w", "-N", "disk", host, port}} {
		if o := run(ctx, t, tester, args...); o.status == 0 {
			t.Errorf("nbd-tester-client %q: exit status 0, want another", args)
		}
	}
}
