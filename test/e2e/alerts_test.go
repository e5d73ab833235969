//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/btrexport/btrexport/export"
	"github.com/btrexport/btrexport/export/nbdclient"
	"github.com/btrexport/btrexport/metrics"
	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

const rulesFile = "../../configs/prometheus/btrexport.rules.yml"

// elsewhere are the alerts that TestAlerts does not see fire, and why.
var elsewhere = map[string]string{
	"ChecksumFailures": "TestPrometheus ruins a copy",
	"ReadsLost":        "TestPrometheus ruins all copies of a block",
	"Panicked":         "TestAlertOfAMistake makes one",
}

// quickRules are our rules with minutes made seconds, and the names of the alerts.
func quickRules(t *testing.T) (path string, names []string) {
	t.Helper()
	text, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`alert: Btrexport(\w+)`).FindAllSubmatch(text, -1) {
		names = append(names, string(m[1]))
	}
	text = regexp.MustCompile(`\[\d+m\]`).ReplaceAll(text, []byte("[15s]"))
	text = regexp.MustCompile(`for: \d+m`).ReplaceAll(text, []byte("for: 5s"))
	path = filepath.Join(t.TempDir(), "quick.rules.yml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, names
}

// TestAlerts has a real Prometheus watch a server that is read all the time, while a device of a RAID1 fails, then crawls,
// another filesystem lacks a device, a configuration is refused and in the end nobody answers. Those alerts fire that
// should, for the device that it is, none besides, and they end with their cause. No read fails meanwhile.
func TestAlerts(t *testing.T) {
	needFaults(t, "prometheus", "nbdcopy")
	ctx, rng := bounded(t), chance(t)
	d := makeFaulty(ctx, t, rng, kernelfs.Options{Devices: 2, Data: "raid1", Metadata: "raid1"})
	sample, config := t.TempDir(), filepath.Join(t.TempDir(), "btrexport.yaml")
	must(ctx, t, program(t, plainBinary), "sample", sample)
	first := fmt.Sprintf("  - {name: sick, slow_read: never, devices: [%s]}\n", strings.Join(d.paths(t, false), ", "))
	text := func(second string) string {
		return "filesystems:\n" + first + second + "exports:\n" + exportYAML("sick", d.files[0])
	}
	half := filesystemYAML("half", true, sample+"/disk0.img")
	writeConfig(t, config, text(half))
	s := serve(t, "-c", config, "--metrics", "127.0.0.1:0")
	rules, names := quickRules(t)
	p := startPrometheus(ctx, t, s.metricsAddress(t), rules)

	fired := make(map[string]bool)
	wait := func(what, want string) {
		t.Helper()
		eventually(ctx, t, what, func() string { return p.alerts(ctx, "") }, want)
		for _, name := range strings.Split(want, ", ") {
			fired[strings.TrimSuffix(name, " firing")] = true
		}
	}
	sick := rng.IntN(len(d.disks))
	of := func(alert string) {
		t.Helper()
		expr := fmt.Sprintf(`ALERTS{alertname="Btrexport%s",alertstate="firing",filesystem="sick"} and on (devid) label_replace(vector(1), "devid", "%d", "", "")`, alert, sick+1)
		if v, err := p.values(ctx, expr); err != nil || len(v) != 1 {
			t.Errorf("%s for devid %d: got %v, %v, want one", alert, sick+1, v, err)
		}
	}
	readers := s.keepReading(ctx, t, d.files[0], 4, rng)
	wait("nothing but the missing device", "Degraded firing")

	d.disks[sick].FailAll(syscall.EIO)
	wait("the alerts of a device that fails", "Degraded firing, DeviceErrors firing, Repairing firing")
	of("DeviceErrors")
	d.heal()
	wait("the end of those alerts", "Degraded firing")

	d.disks[sick].Delay(700 * time.Millisecond)
	wait("the alert of a device that is slow", "Degraded firing, DeviceSlow firing")
	of("DeviceSlow")
	d.heal()
	wait("the end of that alert", "Degraded firing")

	writeConfig(t, config, "exports: 1\n")
	s.signal(t, syscall.SIGHUP)
	wait("the alert of a refused configuration", "Degraded firing, ReloadFailed firing")
	writeConfig(t, config, text(filesystemYAML("half", false, sample+"/disk0.img", sample+"/disk1.img")))
	s.signal(t, syscall.SIGHUP)
	wait("the end of all alerts", "")

	readers.end(t)
	s.end(t)
	wait("the alert of a server that is down", "Down firing")

	for _, name := range names {
		if (elsewhere[name] != "") == fired[name] {
			t.Errorf("%s: fired here %v, excepted %q", name, fired[name], elsewhere[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(elsewhere)) {
		if !slices.Contains(names, name) {
			t.Errorf("%s is excepted and no alert", name)
		}
	}
}

// broken is an export with a mistake in it: its reads panic.
type broken struct{}

func (broken) Size() uint64          { return 1 << 20 }
func (broken) Submit([]*export.Read) { panic("a mistake") }
func (broken) Extents(_ context.Context, off, end uint64, _ bool, list []export.Extent) (int, error) {
	list[0] = export.Extent{Length: end - off}
	return 1, nil
}

// listen gives a socket of loopback.
func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestAlertOfAMistake has a real Prometheus watch a server in this process, one of whose files makes it panic, since nothing
// that a client or a disk does may make the program do so: that connection ends, and the alert fires.
func TestAlertOfAMistake(t *testing.T) {
	need(t, "prometheus")
	ctx := bounded(t)
	registry := metrics.New(metrics.Build{Version: "e2e"})
	registry.Reloaded(true)
	server, err := export.NewServer(export.Options{Exports: []export.Export{{Name: "broken", File: broken{}}}, Stats: registry})
	if err != nil {
		t.Fatal(err)
	}
	nbd, scraped := listen(t), listen(t)
	page := metrics.NewServer(scraped, registry.Handler(), nil)
	var served sync.WaitGroup
	for _, serve := range []func() error{func() error { return server.Serve(ctx, nbd, registry.Listener("nbd")) }, page.Serve} {
		served.Go(func() {
			if err := serve(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		background := context.Background()
		if err := errors.Join(server.Shutdown(background), page.Shutdown(background)); err != nil {
			t.Error(err)
		}
		served.Wait()
	})
	rules, _ := quickRules(t)
	p := startPrometheus(ctx, t, scraped.Addr().String(), rules)
	eventually(ctx, t, "scrapes before the mistake", func() string {
		v, err := p.values(ctx, "count_over_time(btrexport_panics_total[1m]) >= 2")
		return fmt.Sprint(len(v), err)
	}, "1 <nil>")
	if got := p.alerts(ctx, ""); got != "" {
		t.Errorf("before the mistake: %s", got)
	}
	for range 2 { // the second finds the server there
		c, err := nbdclient.Dial(ctx, nbdclient.Target{Network: "tcp", Address: nbd.Addr().String(), Export: "broken"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.ReadAt(make([]byte, 4096), 0); err == nil {
			t.Error("a read that panics: got an answer")
		}
		_ = c.Close() // the server has done so
	}
	eventually(ctx, t, "the alert of a mistake", func() string { return p.alerts(ctx, "") }, "Panicked firing")
	eventually(ctx, t, "its end", func() string { return p.alerts(ctx, "") }, "")
}
