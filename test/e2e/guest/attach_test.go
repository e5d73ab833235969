//go:build linux

package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/btrexport/btrexport/export/tlstest"
)

// TestAttach: in a guest with Debian's kernel, nbd-client and our own attach each put an export at /dev/nbd0,
// with the right size and bytes, read-only; the ext4 on it mounts; a server that is killed means errors and
// not a hang, and one that comes back is read on. The block of docs/vm.md runs, too. testdata/attach.sh is the guest's side.
func TestAttach(t *testing.T) {
	need(t, "nbd-client")
	ctx := bounded(t)
	disks, sum := writeSample(ctx, t)
	s := newServer(t, "-d", disks[0], "-d", disks[1], "-e", "vm1=/@images/vm1.raw", "-e", "other=/@images/plain.raw")

	r := newTree(t, "attach.sh")
	r.add(t, "bin/btrexport", program(t))
	r.addProgram(ctx, t, "nbd-client")
	uri := "nbd://10.0.2.2:" + s.Port + "/"
	r.files["uri"] = []byte(uri)
	r.files["block"] = []byte(strings.ReplaceAll(guestBlocks(t, "docs/vm.md", 2)[0], "nbd://192.0.2.7/", uri))
	got := boot(ctx, t, r.write(t), map[string]func(){"kill": s.kill, "start": s.start}, network()...)

	const sectors = "32768" // of 512 bytes
	got.check(t, map[string]string{
		"nbd-client": "0", "nbd-client-size": sectors, "nbd-client-ro": "1", "nbd-client-sum": sum,
		"nbd-client-detach": "/dev/nbd0: detached",
		"attach":            "/dev/nbd0: attached  16 MiB  read-only  " + uri + "vm1", "attach-size": sectors, "attach-ro": "1", "attach-sector": "512",
		"attach-sum": sum, "write": "1", "again": "/dev/nbd0: already attached to " + uri + "vm1", "again-status": "0",
		"chosen": "/dev/nbd1", "chosen-size": "1953", "no-module": "btrexport: attach /dev/nbd0: kernel module nbd is not loaded (sudo modprobe nbd)",
		"parallel":   strings.TrimSpace(strings.Repeat(sum+" ", 4)),
		"mount":      "0",
		"detach":     "0",
		"not-detach": "/dev/nbd0: is not attached",
		"dead":       "failed", "alive": sum, "restart": strings.Repeat(sum+" ", 3) + "0", "watcher": "0", "stopped": "0", "end": "",
		"page": "0", "page-size": "0",
		"unix": "/dev/nbd0: attached  16 MiB  read-only  nbd+unix:///vm1?socket=/nbd.sock", "hung": "failed",
		"woken": "/dev/nbd0: already attached to nbd+unix:///vm1?socket=/nbd.sock", "unix-sum": sum,
	})
	if want := "btrexport: attach /dev/nbd0: in use by pid "; !strings.HasPrefix(got["in-use"], want) || !strings.HasSuffix(got["in-use"], " 1") {
		t.Errorf("another export on the device: got %q, want %q… and exit status 1", got["in-use"], want)
	}
	if want := "btrexport: detach /dev/nbd0: in use by /mnt (unmount it first, or --force) 1"; got["mounted"] != want {
		t.Errorf("detach while mounted: got %q, want %q", got["mounted"], want)
	}
	if !strings.Contains(got["file"], "ext4") {
		t.Errorf("the file in the ext4 holds %q", got["file"])
	}
}

// TestAttachTLS: in a guest, attach puts an export at /dev/nbd0 that only clients under TLS with a certificate get. Its
// relay stays behind in the background and goes with the device; a server that is killed means errors, and attached
// again, or with --reconnect, reads go on. The block of docs/vm.md runs, too. testdata/attachtls.sh is the guest's side.
func TestAttachTLS(t *testing.T) {
	need(t)
	ctx := bounded(t)
	disks, sum := writeSample(ctx, t)
	pki := tlstest.PKI(t)
	config := fmt.Sprintf(`
tls: {mode: require, certificate: %[1]s/server-cert.pem, key: %[1]s/server-key.pem, client_ca: %[1]s/ca-cert.pem}
filesystems:
  - {name: demo, devices: [%[2]s, %[3]s]}
exports:
  - {name: vm1, subvol: "@images", path: /vm1.raw, allow: ["name:vm-host-1"]}
  - {name: other, subvol: "@images", path: /plain.raw, allow: ["name:vm-host-10"]}
`, pki, disks[0], disks[1])
	path := filepath.Join(t.TempDir(), "btrexport.yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newServer(t, "-c", path)

	r := newTree(t, "attachtls.sh")
	r.add(t, "bin/btrexport", program(t))
	for _, name := range []string{"ca-cert.pem", "client-cert.pem", "client-key.pem"} {
		r.add(t, "pki/"+name, pki+"/"+name)
	}
	host := "nbds://10.0.2.2:" + s.Port + "/"
	const parameters = "?tls-certificates=/pki&tls-hostname=localhost"
	uri := host + "vm1" + parameters
	r.files["uri"] = []byte(host)
	r.files["block"] = []byte(strings.NewReplacer("nbds://vmhost/", host, "?tls-certificates=/etc/btrexport/pki", parameters).Replace(guestBlocks(t, "docs/vm.md", 2)[1]))
	got := boot(ctx, t, r.write(t), map[string]func(){"kill": s.kill, "start": s.start}, network()...)

	const sectors = "32768" // of 512 bytes
	got.check(t, map[string]string{
		"probe": sum, "attach": "/dev/nbd0: attached  16 MiB  read-only  " + uri, "size": sectors, "ro": "1", "sum": sum, "parallel": strings.TrimSpace(strings.Repeat(sum+" ", 4)),
		"relays": "1", "stdio": "/dev/null /dev/null /dev/null", "log": "1", "write": "1",
		"again": "/dev/nbd0: already attached to " + uri, "again-relays": "1", "again-sum": sum,
		"detach": "/dev/nbd0: detached", "detach-relays": "0",
		"refused-relays": "0", "dead": "failed", "dead-relays": "0", "renewed": "/dev/nbd0: already attached to " + uri, "renewed-sum": sum,
		"alive": sum, "reconnect-relays": "0", "restart": strings.Repeat(sum+" ", 3) + "0", "watcher": "0", "page": "0", "page-sum": sum, "end": "",
	})
	if want := "btrexport: attach /dev/nbd1: "; !strings.HasPrefix(got["refused"], want) || !strings.Contains(got["refused"], "other") || !strings.HasSuffix(got["refused"], " 1") {
		t.Errorf("an export of others: %q", got["refused"])
	}
	if !strings.Contains(got["stranger"], "certificate") {
		t.Errorf("without the CA: %q", got["stranger"])
	}
}
