//go:build linux

package e2e

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// nobody is a user and a group of clients that this machine need not know.
const nobody = 65534

// samplePair unpacks the sample into a short path.
func samplePair(t *testing.T) (dir string) {
	t.Helper()
	dir = shortDir(t, "")
	must(bounded(t), t, program(t, plainBinary), "sample", dir)
	return dir
}

// recipe is the n-th block of a kind in docs/security.md: what users paste.
func recipe(t *testing.T, kind string, n int) string {
	t.Helper()
	b, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(b), "```"+kind+"\n")
	if len(blocks) <= n+1 {
		t.Fatalf("docs/security.md has not %d blocks of %s", n+1, kind)
	}
	text, _, _ := strings.Cut(blocks[n+1], "```")
	return text
}

func inDir(ctx context.Context, dir, script string) (string, error) {
	cmd := exec.CommandContext(ctx, "sh", "-ec", script)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestTLSRecipe pastes certificates and configuration of docs/security.md: libnbd's and QEMU's tools over TLS. TestDocs runs the
// page's own clients.
func TestTLSRecipe(t *testing.T) {
	need(t, "openssl", "nbdinfo", "nbdcopy", "qemu-img", "qemu-nbd")
	ctx, dir := bounded(t), samplePair(t)
	port := strconv.Itoa(freePort(ctx, t))
	if out, err := inDir(ctx, dir, recipe(t, "sh", 0)); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	_, tls, _ := strings.Cut(recipe(t, "sh", 1), "\ntls:")
	tls, _, _ = strings.Cut(tls, "EOF")
	config := "tls:" + strings.ReplaceAll(tls, "pki/", dir+"/pki/") + fmt.Sprintf(`
filesystems:
  - {name: demo, devices: [%s/disk0.img, %s/disk1.img]}
exports:
  - {name: vm1, subvol: "@images", path: /vm1.raw}
  - {name: named, subvol: "@images", path: /vm1.raw, allow: ["name:vm-host-1"]}
  - {name: other, subvol: "@images", path: /vm1.raw, allow: ["name:vm-host-10"]}
`, dir, dir)
	file := filepath.Join(dir, "c.yaml")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	serve(t, "-c", file, "-l", "tcp://127.0.0.1:"+port)
	uri := func(name string) string {
		return "nbds://localhost:" + port + "/" + name + "?tls-certificates=" + dir + "/pki"
	}
	must(ctx, t, program(t, plainBinary), "cp", "-d", dir+"/disk0.img", "-d", dir+"/disk1.img", "/@images/vm1.raw", dir+"/want")
	for _, args := range [][]string{{"--connections=4"}, {"--no-extents"}, {"--synchronous"}} {
		must(ctx, t, "nbdcopy", append(args, uri("named"), dir+"/got")...)
		must(ctx, t, "cmp", dir+"/want", dir+"/got")
		if err := os.Remove(dir + "/got"); err != nil {
			t.Fatal(err)
		}
	}
	must(ctx, t, "nbdinfo", "--is", "tls", uri("vm1"))
	if list := must(ctx, t, "nbdinfo", "--list", uri("")); !strings.Contains(list, "named") || strings.Contains(list, "other") {
		t.Errorf("nbdinfo --list: %s", list)
	}
	must(ctx, t, "qemu-nbd", "-L", "-b", "localhost", "-p", port, "--object", "tls-creds-x509,id=t0,endpoint=client,dir="+dir+"/pki", "--tls-creds", "t0")
	must(ctx, t, "qemu-img", "compare", "--object", "tls-creds-x509,id=t0,endpoint=client,dir="+dir+"/pki", "--image-opts",
		"driver=raw,file.driver=file,file.filename="+dir+"/want",
		"driver=raw,file.driver=nbd,file.server.type=inet,file.server.host=localhost,file.server.port="+port+",file.export=vm1,file.tls-creds=t0")
	for name, args := range map[string][]string{
		"without TLS":      {"nbd://localhost:" + port + "/vm1"},
		"hidden":           {uri("other")},
		"PSK":              {"nbds://alice@localhost:" + port + "/vm1?tls-psk-file=" + dir + "/none"},
		"no certificate":   {"nbds://localhost:" + port + "/vm1?tls-certificates=" + onlyCA(t, dir)},
		"plain list of it": {"--list", "nbd://localhost:" + port},
	} {
		if out, err := exec.CommandContext(ctx, "nbdinfo", args...).CombinedOutput(); err == nil {
			t.Errorf("%s: nbdinfo succeeds: %s", name, out)
		}
	}
}

// TestForeignTLSServers: our own client reads from nbdkit and qemu-nbd under TLS, by TCP and unix sockets, with a
// certificate; and gets nothing, nor goes on without TLS, where it or the server is not what it must be.
func TestForeignTLSServers(t *testing.T) {
	need(t, "openssl", "nbdkit", "qemu-nbd")
	ctx, dir := bounded(t), shortDir(t, "")
	if out, err := inDir(ctx, dir, recipe(t, "sh", 0)); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	content := make([]byte, 3<<20+512)
	rng := chance(t)
	for i := range content {
		content[i] = byte(rng.Uint32())
	}
	if err := os.WriteFile(dir+"/disk", content, 0o644); err != nil {
		t.Fatal(err)
	}
	sum := fmt.Sprintf("%x", sha256.Sum256(content))
	port, binary, pki := strconv.Itoa(freePort(ctx, t)), program(t, plainBinary), dir+"/pki"
	creds := "tls-creds-x509,id=t,endpoint=server,verify-peer=on,dir=" + pki
	for _, tc := range []struct {
		name, uri string // without parameters
		server    []string
	}{
		{"nbdkit", "nbds://localhost:" + port + "/?", []string{"nbdkit", "-f", "-r", "-i", "127.0.0.1", "-p", port, "--tls=require", "--tls-certificates=" + pki, "--tls-verify-peer", "file", dir + "/disk"}},
		{"nbdkit, unix", "nbds+unix:///?socket=" + dir + "/k&", []string{"nbdkit", "-f", "-r", "-U", dir + "/k", "--tls=require", "--tls-certificates=" + pki, "--tls-verify-peer", "file", dir + "/disk"}},
		{"qemu-nbd", "nbds://localhost:" + port + "/vm1?", []string{"qemu-nbd", "-t", "-r", "-f", "raw", "-x", "vm1", "-b", "127.0.0.1", "-p", port, "--object", creds, "--tls-creds", "t", dir + "/disk"}},
		{"qemu-nbd, unix", "nbds+unix:///vm1?socket=" + dir + "/q&", []string{"qemu-nbd", "-t", "-r", "-f", "raw", "-x", "vm1", "-k", dir + "/q", "--object", creds, "--tls-creds", "t", dir + "/disk"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server := exec.CommandContext(ctx, tc.server[0], tc.server[1:]...)
			server.Stderr = t.Output()
			if err := server.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = server.Process.Kill(); _ = server.Wait() }() // it was killed
			good := tc.uri + "tls-certificates=" + pki
			for range 500 {
				if run(ctx, t, binary, "status", good).status == 0 {
					break
				}
				time.Sleep(20 * time.Millisecond)
			}
			if out := must(ctx, t, binary, "probe", "--reads", "10", good); !strings.Contains(out, "sha256 "+sum) || !strings.Contains(out, "  TLS\n") {
				t.Errorf("probe: %s", out)
			}
			for name, uri := range map[string]string{
				"no certificate": tc.uri + "tls-certificates=" + onlyCA(t, dir),
				"another name":   good + "&tls-hostname=vm-host-9",
				"system's CAs":   strings.TrimRight(tc.uri, "?&"),
				"without TLS":    strings.TrimRight(strings.Replace(tc.uri, "nbds", "nbd", 1), "?&"),
			} {
				if o := run(ctx, t, binary, "probe", "--quick", uri); o.status != 1 || o.out != "" {
					t.Errorf("%s: %+v", name, o)
				}
			}
		})
	}
	plain := exec.CommandContext(ctx, "nbdkit", "-f", "-r", "-U", dir+"/p", "--tls=off", "file", dir+"/disk")
	if err := plain.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = plain.Process.Kill(); _ = plain.Wait() }() // it was killed
	for range 500 {
		if run(ctx, t, binary, "status", "nbd+unix://?socket="+dir+"/p").status == 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if o := run(ctx, t, binary, "probe", "nbds+unix:///?socket="+dir+"/p&tls-verify-peer=0"); o.status != 1 || !strings.Contains(o.errOut, "the server refuses TLS") {
		t.Errorf("a server without TLS: %+v", o)
	}
}

// onlyCA is a directory with the CA's certificate alone.
func onlyCA(t *testing.T, dir string) string {
	t.Helper()
	only := t.TempDir()
	b, err := os.ReadFile(dir + "/pki/ca-cert.pem")
	if err == nil {
		err = os.WriteFile(only+"/ca-cert.pem", b, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return only
}

// TestAccessByUser runs nbdinfo as other users, with groups of their own.
func TestAccessByUser(t *testing.T) {
	need(t, "nbdinfo")
	ctx, dir := bounded(t), samplePair(t)
	file := filepath.Join(dir, "c.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, `
listen: ["unix://%[1]s/s?mode=0666"]
filesystems:
  - {name: demo, devices: [%[1]s/disk0.img, %[1]s/disk1.img]}
exports:
  - {name: user, subvol: "@images", path: /vm1.raw, allow: ["uid:%[2]d"]}
  - {name: group, subvol: "@images", path: /vm1.raw, allow: ["gid:4242"]}
  - {name: network, subvol: "@images", path: /vm1.raw, allow: ["0.0.0.0/0", "::/0"]}
`, dir, nobody), 0o644); err != nil {
		t.Fatal(err)
	}
	s := serve(t, "-c", file)
	if err := os.Chmod(s.socket, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		who    syscall.Credential
		export string
		want   bool
	}{
		{"the user", syscall.Credential{Uid: nobody, Gid: nobody}, "user", true},
		{"another user", syscall.Credential{Uid: nobody - 1, Gid: nobody}, "user", false},
		{"root", syscall.Credential{}, "user", false},
		{"the group", syscall.Credential{Uid: nobody - 1, Gid: 4242}, "group", true},
		{"a supplementary group", syscall.Credential{Uid: nobody - 1, Gid: nobody, Groups: []uint32{7, 4242}}, "group", true},
		{"other groups", syscall.Credential{Uid: 4242, Gid: nobody, Groups: []uint32{7, 42}}, "group", false},
		{"a list of networks", syscall.Credential{Uid: nobody, Gid: nobody}, "network", false},
	} {
		cmd := exec.CommandContext(ctx, "nbdinfo", "--size", s.uri(tc.export))
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &tc.who}
		out, err := cmd.CombinedOutput()
		if got := err == nil; got != tc.want {
			t.Errorf("%s: %v, want %v: %s", tc.name, got, tc.want, out)
		}
	}
}

// TestSocketActivation: systemd's own tool and libnbd start the server with a socket, and libnbd with pipes.
func TestSocketActivation(t *testing.T) {
	need(t, "nbdinfo", "systemd-socket-activate")
	ctx, dir, binary := bounded(t), samplePair(t), program(t, plainBinary)
	args := []string{binary, "serve", "-d", dir + "/disk0.img", "-d", dir + "/disk1.img", "-e", "vm1=/@images/vm1.raw", "--log-level", "error"}
	if got := strings.TrimSpace(must(ctx, t, "nbdinfo", append(append([]string{"--size", "--", "["}, args...), "]")...)); got != "16777216" {
		t.Errorf("started by libnbd: size %q", got)
	}
	cmd := exec.CommandContext(ctx, "systemd-socket-activate", append([]string{"--fdname=nbd", "-l", dir + "/s"}, args...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for range 200 { // the tool says nothing when it listens
		if _, serr := os.Lstat(dir + "/s"); serr == nil {
			break
		}
		_, _ = inDir(ctx, dir, "sleep 0.05")
	}
	out, err := exec.CommandContext(ctx, "nbdinfo", "--size", "nbd+unix:///vm1?socket="+dir+"/s").CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "16777216" {
		t.Errorf("started by systemd: %v %s", err, out)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("end: %v", err)
	}
}
