//go:build linux

package guest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/btrexport/btrexport/test/docs"
)

// TestService: in a guest, systemd runs the units as they are shipped. With no more than btrexport-attach@nbd0.service
// leaves it attach gets the device, READY comes when that can be used, a server that is started again and a crash of attach
// go unnoticed, a stop detaches. btrexport.service reads disks by its group, and the kernel lets nobody write to them who
// runs where it does. The blocks of docs/service.md run there, too: by its rule udev lets the group read one disk.
// testdata/service.sh and testdata/trial.sh are the guest's side.
func TestService(t *testing.T) {
	const systemd = "/lib/systemd/systemd"
	need(t, "systemctl", systemd, "udevadm", "blkid", "mkfs.btrfs")
	ctx := bounded(t)
	disks, sum := writeSample(ctx, t)
	s := newServer(t, "-d", disks[0], "-d", disks[1], "-e", "vm1=/@images/vm1.raw")

	r := newTree(t, "service.sh")
	r.add(t, "bin/btrexport", program(t))
	r.add(t, "trial", "testdata/trial.sh")
	blocks := guestBlocks(t, "docs/service.md", 2)
	r.files["rule"], r.files["attach"] = []byte(strings.ReplaceAll(blocks[0], "/dev/sdb", "/dev/vdd")), []byte(blocks[1])
	r.add(t, "usr/share/doc/btrexport/examples/70-btrexport.rules", "../../../configs/udev/70-btrexport.rules")
	for _, rules := range []string{"50-udev-default", "60-persistent-storage", "64-btrfs"} {
		path := "/lib/udev/rules.d/" + rules + ".rules"
		r.add(t, path[1:], path)
	}
	for _, unit := range []string{"btrexport-attach@.service", "btrexport.service"} {
		r.add(t, unit, "../../../configs/systemd/"+unit)
	}
	r.addProgram(ctx, t, systemd)
	for _, name := range []string{"systemctl", "udevadm", "blkid"} {
		r.addProgram(ctx, t, name)
	}
	r.links["lib/systemd/systemd-udevd"] = "/bin/udevadm"
	other := filepath.Join(t.TempDir(), "other.img")
	must(ctx, t, "truncate", "--size=128M", other)
	must(ctx, t, "mkfs.btrfs", "--quiet", other)
	r.files["uri"] = []byte("nbd://10.0.2.2:" + s.Port + "/")
	got := boot(ctx, t, r.write(t), map[string]func(){"kill": s.kill, "start": s.start},
		append(network(), drives(append(disks, disks[1], other))...)...)

	const sectors = "32768" // of 512 bytes
	got.check(t, map[string]string{
		"started": "0", "size": sectors, "sum": sum, "ro": "1",
		"caps": "0000000000200000", "seccomp": "2", "privileges": "1", // CAP_SYS_ADMIN; a filter
		"restart": sum, "crashed": "1 " + sectors, "crashed-sum": sum,
		"detached": "success 0", "stop": "0 success 0", "wrong": "1 2 0",
		"outside": "written", "server": "0 active", "opened": "vda read vdc read", "server-sum": sum, "reload": "0 active",
		"page": "0 " + sectors, "page-sum": sum, "page-stop": "0 success 0", "server-stop": "0 success",
		"closed": "1 root disk 660", "rule": "0 root btrexport 640", "others": "root disk 660", "rule-write": "1", "end": "",
	})
}

// guestBlocks are the blocks of a page that are to run in a guest, so many, each as a script.
func guestBlocks(t *testing.T, page string, n int) (scripts []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../..", page))
	if err != nil {
		t.Fatal(err)
	}
	blocks, err := docs.Find(page, string(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blocks {
		if b.Place != docs.Guest {
			continue
		}
		script := "set -e\n"
		for _, c := range b.Commands() {
			script += c.Text + "\n"
		}
		scripts = append(scripts, script)
	}
	if len(scripts) != n {
		t.Fatalf("%s: %d blocks run in a guest, want %d", page, len(scripts), n)
	}
	return scripts
}
