package metrics

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// TestState scrapes a filesystem that has everything, with names that no label can hold.
func TestState(t *testing.T) {
	r := New(Build{})
	r.Export("vm1")
	r.Export("vm2")
	r.WatchRequests(func() map[string]int { return map[string]int{"vm1": 3, "gone": 9} })
	r.Watch("tank", func() State {
		return State{UUID: "u", Label: "a\xffb", DataProfile: "single,raid1", MetadataProfile: "raid1", Degraded: true,
			Devices: []DeviceState{
				{DevID: 1, Path: "/dev/\xfe", Model: "ST4000", Up: true, Errors: []uint64{1, 2, 3, 4, 5, 6}},
				{DevID: 2},
				{DevID: 2, Path: "again"},
			},
			Caches:     []CacheState{{Kind: "tree", Hits: 1, Misses: 2, Evictions: 3, Bytes: 4}},
			Decompress: []DecompressState{{Algorithm: "zstd", Seconds: 1.5}}}
	})
	r.HandshakeDone("aborted")
	r.HandshakeDone("no such word")
	r.Panicked()
	all := series(t, r)
	for name, want := range map[string]float64{
		"nbd_inflight_requests{export=vm1}":    3,
		"nbd_inflight_requests{export=vm2}":    0,
		"filesystem_degraded{filesystem=tank}": 1,
		"filesystem_info{data_profile=single,raid1,filesystem=tank,label=a\uFFFDb,metadata_profile=raid1,uuid=u}": 1,
		"device_info{devid=1,filesystem=tank,model=ST4000,path=/dev/\uFFFD}":                                      1,
		"device_info{devid=2,filesystem=tank,model=,path=}":                                                       1,
		"device_up{devid=1,filesystem=tank}":                                                                      1,
		"device_up{devid=2,filesystem=tank}":                                                                      0,
		"device_recorded_errors{devid=1,filesystem=tank,kind=write}":                                              1,
		"device_recorded_errors{devid=1,filesystem=tank,kind=generation}":                                         5,
		"cache_hits_total{filesystem=tank,kind=tree}":                                                             1,
		"cache_misses_total{filesystem=tank,kind=tree}":                                                           2,
		"cache_evictions_total{filesystem=tank,kind=tree}":                                                        3,
		"cache_bytes{filesystem=tank,kind=tree}":                                                                  4,
		"decompress_seconds_total{algorithm=zstd,filesystem=tank}":                                                1.5,
		"nbd_handshakes_total{result=aborted}":                                                                    1,
		"nbd_handshakes_total{result=error}":                                                                      1,
		"panics_total{}":                                                                                          1,
	} {
		if got, ok := all[name]; !ok || got != want {
			t.Errorf("%s: got %v (there: %v), want %v", name, got, ok, want)
		}
	}
	for name := range all {
		if strings.Contains(name, "gone") || strings.Contains(name, "recorded_errors{devid=2") {
			t.Errorf("%s is there", name)
		}
	}
	if problems, err := testutil.GatherAndLint(r.reg); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}

// TestForgedDevices: a chunk tree that names a great many devices does not fill the page.
func TestForgedDevices(t *testing.T) {
	r := New(Build{})
	r.Watch("forged", func() State {
		s := State{Devices: make([]DeviceState, 3*maxDevices)}
		for i := range s.Devices {
			s.Devices[i].DevID = uint64(i)
		}
		return s
	})
	if n := len(gather(t, r)["btrexport_device_up"].samples); n != maxDevices {
		t.Errorf("%d devices, want %d", n, maxDevices)
	}
}
