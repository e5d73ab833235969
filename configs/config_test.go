package configs

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// small is a valid file that cases append to or replace lines of. Its lines: 1 filesystems, 2 name, 3
// devices, 4 exports, 5 name, 6 path.
const small = `filesystems:
  - name: tank
    devices: [/dev/sdb]
exports:
  - name: vm1
    path: /vm1.raw
`

func TestExample(t *testing.T) {
	const file = "btrexport.yaml"
	c, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	at := func(line int) Pos { return Pos{File: file, Line: line} }
	want := &Config{
		File: file,
		Listen: []Listen{
			{Network: "unix", Address: "/run/btrexport/nbd.sock", Pos: at(11)},
			{Network: "tcp", Address: "127.0.0.1:10809", Pos: at(12)},
		},
		Metrics: &Listen{Network: "tcp", Address: "127.0.0.1:9810", Pos: at(17)},
		Filesystems: []Filesystem{{
			Name:     "tank",
			Devices:  []Device{{Path: "/dev/sdb", Pos: at(21)}, {Path: "/dev/sdc", Pos: at(21)}},
			DirectIO: true, Cache: 64 << 20, IOEngine: "auto", SlowRead: time.Second, Pos: at(20),
		}},
		Exports: []Export{
			{Name: "vm1", Filesystem: "tank", Subvol: "/@images", Path: "/vm1.raw", Description: "first VM", RoundUp: 512,
				Pos: at(32), PathPos: at(35), SubvolPos: at(34), FilesystemPos: at(33), TLSPos: at(32), AllowPos: at(32)},
			{Name: "vm2", Filesystem: "tank", SubvolID: 257, Path: "/vm2.raw", Pos: at(42), PathPos: at(44), SubvolPos: at(43), FilesystemPos: at(42),
				TLSPos: at(42), AllowPos: at(42)},
		},
		TLS:    TLS{Mode: "off", Pos: at(49), CertificatePos: at(49), KeyPos: at(49), ClientCAPos: at(49)},
		Limits: Limits{Connections: 100, Handshake: 10 * time.Second, Drain: 10 * time.Second},
	}
	if d := cmp.Diff(want, c); d != "" {
		t.Errorf("%s (-want +got):\n%s", file, d)
	}
}

// TestExampleDocumentsEveryKey takes the known keys from the parser's own words and looks for each in the
// example, commented out or not.
func TestExampleDocumentsEveryKey(t *testing.T) {
	example, err := os.ReadFile("btrexport.yaml")
	if err != nil {
		t.Fatal(err)
	}
	const odd = "zzzzzzzzzzzzzzzz"
	levels := []string{
		odd + ": 1\n", "metrics: {" + odd + ": 1}\n", "filesystems: [{" + odd + ": 1}]\n",
		"exports: [{" + odd + ": 1}]\n", "tls: {" + odd + ": 1}\n", "limits: {" + odd + ": 1}\n",
	}
	total := 0
	for _, text := range levels {
		_, err := Parse("f", []byte(text))
		_, rest, ok := strings.Cut(fmt.Sprint(err), "(known keys: ")
		if !ok {
			t.Fatalf("%q: no list of known keys in %v", text, err)
		}
		keys, _, _ := strings.Cut(rest, ")")
		for key := range strings.SplitSeq(keys, ", ") {
			total++
			if !strings.Contains(string(example), " "+key+": ") && !strings.Contains(string(example), "\n"+key+":") &&
				!strings.Contains(string(example), "#"+key+": ") {
				t.Errorf("the example does not show %s", key)
			}
		}
	}
	if total != 6+1+10+9+4+5 {
		t.Errorf("%d keys checked, want all 35 of the schema", total)
	}
}

func TestDefaults(t *testing.T) {
	c, err := Parse("f.yaml", []byte(small))
	if err != nil {
		t.Fatal(err)
	}
	at := func(line int) Pos { return Pos{File: "f.yaml", Line: line} }
	want := &Config{
		File:   "f.yaml",
		Listen: []Listen{{Network: "tcp", Address: "127.0.0.1:10809", Pos: Pos{File: "f.yaml"}}},
		Filesystems: []Filesystem{{Name: "tank", Devices: []Device{{Path: "/dev/sdb", Pos: at(3)}},
			DirectIO: true, Cache: DefaultCache, IOEngine: "auto", SlowRead: time.Second, Pos: at(2)}},
		Exports: []Export{{Name: "vm1", Filesystem: "tank", Path: "/vm1.raw", Pos: at(5), PathPos: at(6), SubvolPos: at(5), FilesystemPos: at(5),
			TLSPos: at(5), AllowPos: at(5)}},
		TLS:    TLS{Mode: "off"},
		Limits: Limits{Connections: 100, Handshake: 10 * time.Second, Drain: 10 * time.Second},
	}
	if d := cmp.Diff(want, c); d != "" {
		t.Errorf("defaults (-want +got):\n%s", d)
	}
	if got := c.Listen[0].String(); got != DefaultListen {
		t.Errorf("default address is %s, want %s", got, DefaultListen)
	}
}

func TestEveryValueIsTaken(t *testing.T) {
	const text = `
listen: ["tcp://[::1]:99", "unix:///run/a?b.sock?mode=0640&user=u&group=7"]
metrics: {listen: "unix:///run/m.sock"}
filesystems:
- {name: a, devices: [disk.img], degraded: true, direct_io: false, workers: 3, cache: 1MB, io_engine: pread, allow_mounted: true, ignore_log: true, slow_read: 250ms}
- {name: "10", devices: [/dev/sdd], slow_read: never}
exports:
- {name: x y, filesystem: "10", subvol: "@s", path: /p, description: "two\nlines", round_up: 4KiB, tls: allow,
   allow: [10.0.0.0/8, 192.0.2.1, "::ffff:10.1.0.0/112", "2001:db8::/32", "::1", uid:0, uid:4294967294, gid:6, "name:a b:c"]}
- {name: "üñ/=", filesystem: a, subvolid: 5, path: "/a b", tls: require}
tls: {mode: require, certificate: c.pem, key: /k, client_ca: /ca}
limits: {connections: 7, connections_per_address: 3, handshake: 1m30s, idle: 1h, drain: 0s}
`
	c, err := Parse("f", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	noPos := cmp.Transformer("noPos", func(Pos) int { return 0 })
	want := &Config{
		File:    "f",
		Listen:  []Listen{{Network: "tcp", Address: "[::1]:99"}, {Network: "unix", Address: "/run/a?b.sock", Mode: 0o640, User: "u", Group: "7"}},
		Metrics: &Listen{Network: "unix", Address: "/run/m.sock"},
		Filesystems: []Filesystem{
			{Name: "a", Devices: []Device{{Path: "disk.img"}}, Degraded: true, Workers: 3, Cache: 1e6, IOEngine: "pread", AllowMounted: true, IgnoreLog: true, SlowRead: 250 * time.Millisecond},
			{Name: "10", Devices: []Device{{Path: "/dev/sdd"}}, DirectIO: true, Cache: 64 << 20, IOEngine: "auto", SlowRead: -1},
		},
		Exports: []Export{
			{Name: "x y", Filesystem: "10", Subvol: "/@s", Path: "/p", Description: "two\nlines", RoundUp: 4096, TLS: "allow", Allow: Access{
				Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.1/32"),
					netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("::1/128")},
				UIDs: []uint32{0, 1<<32 - 2}, GIDs: []uint32{6}, Names: []string{"a b:c"}}},
			{Name: "üñ/=", Filesystem: "a", SubvolID: 5, Path: "/a b", TLS: "require"},
		},
		TLS:    TLS{Mode: "require", Certificate: "c.pem", Key: "/k", ClientCA: "/ca"},
		Limits: Limits{Connections: 7, ConnectionsPerAddress: 3, Handshake: 90 * time.Second, Idle: time.Hour},
	}
	if d := cmp.Diff(want, c, noPos, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestAliasesAreFollowed(t *testing.T) {
	const text = `filesystems:
  - name: &n tank
    devices: &d [/dev/sdb]
  - name: other
    devices: [/dev/sdc]
exports:
  - {name: vm1, path: /a, filesystem: *n}
`
	c, err := Parse("f", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if e := c.Exports[0]; e.Filesystem != "tank" || e.FilesystemPos.Line != 7 {
		t.Errorf("aliased filesystem is %q on line %d, want tank, on line 7 where the alias stands", e.Filesystem, e.FilesystemPos.Line)
	}
}

func TestLimitsAreInclusive(t *testing.T) {
	long := strings.Repeat("n", 4096)
	text := fmt.Sprintf(`
filesystems:
  - {name: least, devices: [/a], workers: 1, cache: 64KiB}
  - {name: most, devices: [/b], workers: 1024}
exports:
  - {name: %s, filesystem: most, path: /%s, description: %s, round_up: 512, subvolid: 256}
  - {name: b, filesystem: least, path: /, round_up: 32MiB, subvolid: 18446744073709551360}
limits: {connections: 1, handshake: 1ms}
`, long, long[1:], long)
	if _, err := Parse("f", []byte(text)); err != nil {
		t.Error(err)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(filepath.Join(dir, "none.yaml")); !errors.Is(err, fs.ErrNotExist) || strings.Count(err.Error(), "none.yaml") != 1 {
		t.Errorf("missing file: got %v, want ErrNotExist and the name once", err)
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "is a directory") {
		t.Errorf("directory: got %v, want \"is a directory\"", err)
	}
	big := filepath.Join(dir, "big.yaml")
	if err := os.WriteFile(big, []byte(small+strings.Repeat("#\n", maxFile/2)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(big); err == nil || !strings.Contains(err.Error(), "big.yaml:1: the file is larger than 1024 KiB") {
		t.Errorf("large file: got %v, want a refusal", err)
	}
	if _, err := Parse("f", []byte(small+strings.Repeat("#", maxFile-len(small)))); err != nil {
		t.Errorf("file of exactly 1 MiB: %v", err)
	}
}

func TestErrorsKeepTheirPlace(t *testing.T) {
	_, err := Parse("f.yaml", []byte(small+"tlss: 1\nlimits: {drain: 1}\n"))
	var first *Error
	if !errors.As(err, &first) || first.Pos != (Pos{File: "f.yaml", Line: 7}) {
		t.Fatalf("got %#v, want an *Error on line 7", err)
	}
	if got, want := err.Error(), "f.yaml:7: unknown key \"tlss\" (did you mean \"tls\"?)\nf.yaml:8: drain: \"1\" has no unit (write 1s or 1ms)"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	missing := Pos{File: "f.yaml", Line: 3}.Errorf("open /dev/sdb: %w (plug it in)", fs.ErrNotExist)
	if got, want := missing.Error(), "f.yaml:3: open /dev/sdb: file does not exist (plug it in)"; got != want || !errors.Is(missing, fs.ErrNotExist) {
		t.Errorf("got %q, want %q, wrapping ErrNotExist", got, want)
	}
}

func TestSameAs(t *testing.T) {
	e := Export{Name: "a", Filesystem: "f", Path: "/a", Pos: Pos{Line: 1}}
	moved := e
	moved.Pos, moved.PathPos.Line, moved.SubvolPos.Line, moved.FilesystemPos.Line = Pos{File: "g", Line: 9}, 10, 11, 12
	moved.TLSPos.Line, moved.AllowPos.Line = 13, 14
	if !e.SameAs(moved) {
		t.Error("an export that only moved in the file is not the same")
	}
	for name, change := range map[string]func(*Export){
		"name": func(e *Export) { e.Name = "b" }, "filesystem": func(e *Export) { e.Filesystem = "g" },
		"subvol": func(e *Export) { e.Subvol = "/s" }, "subvolid": func(e *Export) { e.SubvolID = 5 },
		"path": func(e *Export) { e.Path = "/b" }, "description": func(e *Export) { e.Description = "d" },
		"round_up": func(e *Export) { e.RoundUp = 512 }, "tls": func(e *Export) { e.TLS = "require" },
		"network": func(e *Export) { e.Allow.Networks = []netip.Prefix{{}} }, "uid": func(e *Export) { e.Allow.UIDs = []uint32{0} },
		"gid": func(e *Export) { e.Allow.GIDs = []uint32{0} }, "certificate name": func(e *Export) { e.Allow.Names = []string{"a"} },
	} {
		o := e
		if change(&o); e.SameAs(o) {
			t.Errorf("an export with another %s is the same", name)
		}
	}
	f := Filesystem{Name: "f", Devices: []Device{{Path: "/a"}, {Path: "/b", Pos: Pos{Line: 2}}}}
	swapped := Filesystem{Name: "f", Devices: []Device{{Path: "/b"}, {Path: "/a"}}, Pos: Pos{Line: 7}}
	if !f.SameAs(swapped) {
		t.Error("a filesystem with its devices in another order is not the same")
	}
	for name, change := range map[string]func(*Filesystem){
		"name": func(f *Filesystem) { f.Name = "g" }, "a device": func(f *Filesystem) { f.Devices = []Device{{Path: "/a"}, {Path: "/c"}} },
		"fewer": func(f *Filesystem) { f.Devices = f.Devices[:1] }, "degraded": func(f *Filesystem) { f.Degraded = true },
		"direct_io": func(f *Filesystem) { f.DirectIO = true }, "workers": func(f *Filesystem) { f.Workers++ },
		"cache": func(f *Filesystem) { f.Cache++ }, "engine": func(f *Filesystem) { f.IOEngine = "pread" },
		"mounted": func(f *Filesystem) { f.AllowMounted = true }, "log": func(f *Filesystem) { f.IgnoreLog = true },
		"patience":   func(f *Filesystem) { f.SlowRead++ },
		"generation": func(f *Filesystem) { f.Generation = 9 }, "backup root": func(f *Filesystem) { f.BackupRoot = 1 },
		"one device twice": func(f *Filesystem) { f.Devices = []Device{{Path: "/a"}, {Path: "/a"}} },
	} {
		o := f
		if change(&o); f.SameAs(o) {
			t.Errorf("a filesystem with another %s is the same", name)
		}
	}
}
