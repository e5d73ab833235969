//go:build linux

package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

const rulesFile = "../../configs/prometheus/btrexport.rules.yml"

// elsewhere are the alerts that TestAlerts does not see fire, and why.
var elsewhere = map[string]string{
	"ChecksumFailures": "TestPrometheus ruins a copy",
	"ReadsLost":        "TestPrometheus ruins all copies of a block",
	"Panicked":         "nothing that a client or a disk does may make the program panic: promtool's unit test has it",
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
