package configs

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestFromFlags(t *testing.T) {
	got, err := FromFlags(Flags{
		Devices: []string{"disk0.img", "/dev/sdb", "disk0.img"}, Generation: 12, BackupRoot: 1, Exports: []string{"vm1=/a=b", "vm2=/c"},
		Listen: []string{"unix:///run/x.sock"}, Metrics: "127.0.0.1:9810", Subvol: "@s", Degraded: true, AllowMounted: true, IgnoreLog: true,
		SlowRead: 3 * time.Second, IOEngine: "pread",
	})
	if err != nil {
		t.Fatal(err)
	}
	at := func(flag string) Pos { return Pos{Flag: flag} }
	export := func(flag, name, path string) Export {
		return Export{Name: name, Path: path, Subvol: "/@s", Pos: at(flag), PathPos: at(flag), SubvolPos: at("--subvol @s"), FilesystemPos: at(flag)}
	}
	want := &Config{
		Listen:  []Listen{{Network: "unix", Address: "/run/x.sock", Pos: at("-l unix:///run/x.sock")}},
		Metrics: &Listen{Network: "tcp", Address: "127.0.0.1:9810", Pos: at("--metrics 127.0.0.1:9810")},
		Filesystems: []Filesystem{{
			Devices:    []Device{{Path: "disk0.img", Pos: at("-d disk0.img")}, {Path: "/dev/sdb", Pos: at("-d /dev/sdb")}, {Path: "disk0.img", Pos: at("-d disk0.img")}},
			Generation: 12, BackupRoot: 1, Degraded: true, DirectIO: true, Cache: 64 << 20, IOEngine: "pread", AllowMounted: true, IgnoreLog: true,
			SlowRead: 3 * time.Second,
		}},
		Exports: []Export{export("-e vm1=/a=b", "vm1", "/a=b"), export("-e vm2=/c", "vm2", "/c")},
		TLS:     TLS{Mode: "off"},
		Limits:  Limits{Connections: 100, Handshake: 10 * time.Second, Drain: 10 * time.Second},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestFromFlagsDefaultsAndSubvolID(t *testing.T) {
	c, err := FromFlags(Flags{Devices: []string{"d"}, Exports: []string{"a=/b"}, SubvolID: 257})
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Listen; len(got) != 1 || got[0].String() != DefaultListen || c.Metrics != nil {
		t.Errorf("addresses %v, metrics %v, want %s and none", got, c.Metrics, DefaultListen)
	}
	if e := c.Exports[0]; e.SubvolID != 257 || e.Subvol != "" || e.SubvolPos.String() != "--subvolid 257" {
		t.Errorf("export %+v, want subvolid 257", e)
	}
}

func TestFromFlagsRefused(t *testing.T) {
	d, e := []string{"/dev/sdb"}, []string{"a=/b"}
	for _, tc := range []struct {
		name  string
		flags Flags
		want  string
	}{
		{"nothing", Flags{}, "no device is given (add -d DEVICE for each device of the filesystem, or -c FILE)\nno export is given (add -e NAME=PATH, or -c FILE)"},
		{"no path", Flags{Devices: d, Exports: []string{"a"}}, "-e a: the path is missing (write -e NAME=PATH, for example -e vm1=/vm1.raw)"},
		{"relative path", Flags{Devices: d, Exports: []string{"a=b"}}, `-e a=b: "b" is not absolute (write /b; it is resolved inside the filesystem)`},
		{"empty name", Flags{Devices: d, Exports: []string{"=/b"}}, "-e =/b: the name is empty (write a name)"},
		{"broken UTF-8", Flags{Devices: d, Exports: []string{"\xff=/b"}}, `"-e \xff=/b": ` + "\"\\xff\" is not UTF-8 (write it in UTF-8)"},
		{"doubled name", Flags{Devices: d, Exports: []string{"a=/b", "a=/c"}}, `-e a=/c: export "a" is already defined by -e a=/b (give it another name)`},
		{"empty device", Flags{Devices: []string{""}, Exports: e}, "-d : the path is empty (write one)"},
		{"bad address", Flags{Devices: d, Exports: e, Listen: []string{"x"}}, `-l x: "x" is no address (write unix:///path/to.sock or tcp://host:port)`},
		{"bad metrics", Flags{Devices: d, Exports: e, Metrics: "x"}, `--metrics x: "x": the port is missing (write x:PORT)`},
		{"two subvolumes", Flags{Devices: d, Exports: e, Subvol: "/s", SubvolID: 256}, "--subvolid 256: the subvolume is already given by --subvol /s (keep one of the two)"},
		{"no such subvolume", Flags{Devices: d, Exports: e, SubvolID: 7}, "--subvolid 7: no subvolume has the id 7 (5 is the top level, others begin at 256: see btrexport subvolumes)"},
		{"NUL in subvol", Flags{Devices: d, Exports: e, Subvol: "\x00"}, `"--subvol \x00": ` + "\"\\x00\" holds a NUL (remove it)"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := FromFlags(tc.flags); fmt.Sprint(err) != tc.want {
				t.Errorf("\n got %v\nwant %s", err, tc.want)
			}
		})
	}
}

func TestOverride(t *testing.T) {
	c, err := Parse("f", []byte(small+"listen: [\"tcp://h:1\"]\nmetrics: {listen: \"h:2\"}\n"))
	if err != nil {
		t.Fatal(err)
	}
	addresses := func() string { return fmt.Sprint(c.Listen, " ", *c.Metrics) }
	for _, tc := range []struct {
		listen        []string
		metrics       string
		want, wantErr string
	}{
		{want: "[tcp://h:1] tcp://h:2"},
		{listen: []string{"tcp://h:2"}, want: "[tcp://h:1] tcp://h:2", wantErr: "f:8: tcp://h:2 is already used by -l tcp://h:2 (use another address)"},
		{listen: []string{"x"}, want: "[tcp://h:1] tcp://h:2", wantErr: `-l x: "x" is no address (write unix:///path/to.sock or tcp://host:port)`},
		{listen: []string{"tcp://h:3", "unix:///s"}, want: "[tcp://h:3 unix:///s] tcp://h:2"},
		{metrics: "h:4", want: "[tcp://h:3 unix:///s] tcp://h:4"},
	} {
		if err := c.Override(tc.listen, tc.metrics); errText(err) != tc.wantErr || addresses() != tc.want {
			t.Errorf("Override(%q, %q) = %v, leaving %s; want %q and %s", tc.listen, tc.metrics, err, addresses(), tc.wantErr, tc.want)
		}
	}
}
