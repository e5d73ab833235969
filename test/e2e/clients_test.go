//go:build linux

package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMoreClients has QEMU's storage daemon serve our export on, byte for byte, and fio read it at random and from end to end.
func TestMoreClients(t *testing.T) {
	need(t, "qemu-storage-daemon", "fio", "nbdcopy")
	ctx := bounded(t)
	binary, dir := program(t, plainBinary), t.TempDir()
	must(ctx, t, binary, "sample", dir)
	devices := []string{"-d", dir + "/disk0.img", "-d", dir + "/disk1.img"}
	must(ctx, t, binary, append([]string{"cp"}, append(devices, "/@images/vm1.raw", dir+"/vm1")...)...)
	want, err := os.ReadFile(dir + "/vm1")
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, append(devices, "-e", "vm1=/@images/vm1.raw")...)

	again := filepath.Join(shortDir(t, ""), "again.sock")
	daemon := exec.Command("qemu-storage-daemon",
		"--blockdev", "driver=nbd,node-name=vm1,read-only=on,server.type=unix,export=vm1,server.path="+s.socket,
		"--nbd-server", "addr.type=unix,addr.path="+again,
		"--export", "type=nbd,id=e,node-name=vm1,name=again,writable=off")
	daemon.Stderr = os.Stderr
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = daemon.Process.Kill()
		_ = daemon.Wait() // it was killed
	}()
	for range 500 {
		if _, err := os.Stat(again); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	out := dir + "/out"
	must(ctx, t, "nbdcopy", "nbd+unix:///again?socket="+again, out)
	sameFile(t, "nbdcopy through qemu-storage-daemon", out, want)

	for name, options := range map[string][]string{
		"random":     {"--rw=randread", "--bs=4k", "--iodepth=32", "--number_ios=4000", "--size=16m"},
		"sequential": {"--rw=read", "--bs=128k", "--iodepth=8", "--size=16m"},
	} {
		var report struct {
			Jobs []struct {
				Error int `json:"error"`
				Read  struct {
					Bytes int `json:"io_bytes"`
				} `json:"read"`
			} `json:"jobs"`
		}
		text := must(ctx, t, "fio", append(options, "--name="+name, "--ioengine=nbd", "--uri="+s.uri("vm1"), "--output-format=json")...)
		_, text, _ = strings.Cut(text, "\n") // which says that it has connected
		if err := json.Unmarshal([]byte(text), &report); err != nil {
			t.Fatalf("fio: %v in %.200q", err, text)
		}
		if len(report.Jobs) != 1 || report.Jobs[0].Error != 0 || report.Jobs[0].Read.Bytes < 4000*4096 {
			t.Errorf("fio, %s: %+v, want 16 MB and no error", name, report.Jobs)
		}
	}
}
