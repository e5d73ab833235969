package configs

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// top and tail build a file around the part that a case is about: top ends with line 3, so an exports list
// begins on line 4.
const (
	top  = "filesystems:\n  - name: tank\n    devices: [/dev/sdb]\n"
	tail = "exports: [{name: vm1, path: /vm1.raw}]\n"
)

func TestRefused(t *testing.T) {
	two := "filesystems: [{name: tank, devices: [/a]}, {name: pool, devices: [/b]}]\n"
	for _, tc := range []struct{ name, text, want string }{
		// the whole text
		{"empty", "", `f:1: the file is empty (it wants at least filesystems: and exports:)`},
		{"only a comment", "# nothing\n", `f:1: the file is empty (it wants at least filesystems: and exports:)`},
		{"only a dash line", "---\n", `f:1: the file is empty (it wants at least filesystems: and exports:)`},
		{"null", "~\n", `f:1: the file is empty (it wants at least filesystems: and exports:)`},
		{"a list", "- a\n", `f:1: the file: wants keys with values, found a list (write listen: and a value)`},
		{"a word", "hello\n", `f:1: the file: wants keys with values, found the text "hello" (write listen: and a value)`},
		{"second document", small + "---\na: 1\n", `f:7: a second document begins (remove the line "---" and join the two)`},
		{"empty second document", small + "---\n", `f:7: a second document begins (remove the line "---" and join the two)`},
		{"NUL", small + "\x00", `f:7: a control character (save the file as UTF-8 text)`},
		{"latin1", "# \xe4\n" + small, `f:1: a byte that is not UTF-8 (save the file as UTF-8 text)`},
		{"utf16", "\xff\xfea\x00", `f:1: a byte that is not UTF-8 (save the file as UTF-8 text)`},
		{"tab", "limits:\n\tdrain: 1s\n", `f:2: found character that cannot start any token (indent with spaces, and put values that begin with @, % or ` + "`" + ` into quotes)`},
		{"at sign", top + "exports: [{name: a, path: /a, subvol: @x}]\n",
			`f:4: found character that cannot start any token (indent with spaces, and put values that begin with @, % or ` + "`" + ` into quotes)`},
		{"two colons", "limits: drain: 1s\n", `f:1: mapping values are not allowed in this context (check the indentation, and put values that hold ": " into quotes)`},
		{"open bracket", "listen: [a\n", `f:1: did not find expected ',' or ']' (check the indentation and the quotes on this line and the one before)`},
		{"unknown anchor", top + "exports: *x\n", `f:4: no anchor &x is defined above (write the value out)`},
		{"tag", top + "exports: !!seq []\n", `f:4: the tag "!!seq" is not supported (remove it)`},
		{"merge key", top + "exports:\n  - <<: {a: 1}\n", `f:5: the merge key << is not supported (write the keys out)`},
		{"key is a list", small + "[a]: 1\n", `f:7: a key is a list (keys are words)`},
		{"nested", small + "limits: " + strings.Repeat("[", 20) + strings.Repeat("]", 20), `f:7: values are nested more than 16 deep (write them out flat)`},
		{"alias inside its anchor", "listen: &a [*a]\n", `f:1: values are nested more than 16 deep (write them out flat)`},
		{"alias bomb", bomb(), `f:1: aliases add more than 10000 values (write them out)`},

		// unknown and doubled keys, at each level
		{"unknown at the top", small + "exprots: []\n", `f:7: unknown key "exprots" (did you mean "exports"?)`},
		{"unknown and far", small + "gibberish: 1\n", `f:7: unknown key "gibberish" (known keys: listen, metrics, filesystems, exports, tls, limits)`},
		{"unknown in metrics", small + "metrics:\n  listne: x\n", `f:8: unknown key "listne" in metrics (did you mean "listen"?)`},
		{"unknown in filesystems", top + "    worker: 4\n" + tail, `f:4: unknown key "worker" in filesystems[0] (did you mean "workers"?)`},
		{"unknown in exports", small + "    pth: /x\n", `f:7: unknown key "pth" in exports[0] (did you mean "path"?)`},
		{"unknown in tls", small + "tls:\n  mode: off\n  cert: x\n", `f:9: unknown key "cert" in tls (known keys: mode, certificate, key, client_ca)`},
		{"unknown near in tls", small + "tls:\n  mode: off\n  clientca: x\n", `f:9: unknown key "clientca" in tls (did you mean "client_ca"?)`},
		{"unknown in limits", small + "limits:\n  conections: 4\n", `f:8: unknown key "conections" in limits (did you mean "connections"?)`},
		{"misspelt and so missing is one mistake", top + "exports:\n  - name: a\n    paht: /x\n", `f:6: unknown key "paht" in exports[0] (did you mean "path"?)`},
		{"upper case", small + "Limits: {}\n", `f:7: unknown key "Limits" (did you mean "limits"?)`},
		{"doubled at the top", small + "exports: []\n", `f:7: key "exports" is already given on line 4 (keep one)`},
		{"doubled in filesystems", top + "    name: b\n" + tail, `f:4: key "name" in filesystems[0] is already given on line 2 (keep one)`},
		{"doubled in exports", small + "    path: /b\n", `f:7: key "path" in exports[0] is already given on line 6 (keep one)`},
		{"doubled in limits", small + "limits:\n  drain: 1s\n  drain: 2s\n", `f:9: key "drain" in limits is already given on line 8 (keep one)`},
		{"doubled in metrics", small + "metrics:\n  listen: a:1\n  listen: b:1\n", `f:9: key "listen" in metrics is already given on line 8 (keep one)`},
		{"doubled in tls", small + "tls:\n  mode: off\n  mode: off\n", `f:9: key "mode" in tls is already given on line 8 (keep one)`},

		// missing
		{"no exports", top, `f:1: exports is missing (add exports: with an entry for each file to serve)`},
		{"no filesystems", tail, `f:1: filesystems is missing (add filesystems: with an entry for each filesystem)`},
		{"empty exports", top + "exports: []\n", `f:4: exports is an empty list (add an entry)`},
		{"exports without a value", top + "exports:\n", `f:4: exports has no value (write one, or remove the key)`},
		{"limits without a value", small + "limits:\n  #drain: 1s\n", `f:7: limits has no value (write one, or remove the key)`},
		{"path without a value", top + "exports:\n  - name: a\n    path:\n", `f:6: exports[0]: path has no value (write one, or remove the key)`},
		{"entry without a value", top + "exports:\n  - name: a\n    path: /a\n  -\n", `f:7: exports[1] has no value (write one, or remove the "-")`},
		{"no name", top + "exports:\n  - path: /a\n", `f:5: exports[0]: name is missing (add name: vm1)`},
		{"no path", top + "exports:\n  - name: a\n", `f:5: exports[0]: path is missing (add path: /vm1.raw)`},
		{"no filesystem name", "filesystems: [{devices: [/a]}]\n" + tail, `f:1: filesystems[0]: name is missing (add name: tank)`},
		{"no devices", "filesystems: [{name: a}]\n" + tail, `f:1: filesystems[0]: devices is missing (add devices: [/dev/sdb])`},
		{"empty devices", "filesystems: [{name: a, devices: []}]\n" + tail, `f:1: devices is an empty list (add an entry)`},
		{"no metrics address", small + "metrics: {}\n", `f:7: metrics: listen is missing (add listen: 127.0.0.1:9810)`},
		{"no tls mode", small + "tls: {key: /k}\n", `f:7: tls: mode is missing (add mode: off)`},

		// wrong types
		{"list for text", top + "exports: [{name: [a], path: /a}]\n", `f:4: name: wants text, found a list (write one value)`},
		{"number for text", top + "exports: [{name: 12, path: /a}]\n", `f:4: name: wants text, found the number 12 (write "12", with the quotes)`},
		{"yaml 1.1 boolean for text", top + "exports: [{name: no, path: /a}]\n", `f:4: name: wants text, found the boolean no (write "no", with the quotes)`},
		{"text for list", top + "exports: x\n", `f:4: exports: wants a list, found the text "x" (begin each entry with "- ", or write [a, b])`},
		{"keys for list", top + "exports: {name: a}\n", `f:4: exports: wants a list, found keys with values (begin each entry with "- ", or write [a, b])`},
		{"text for keys", small + "limits: 5s\n", `f:7: limits: wants keys with values, found the text "5s" (write connections: and a value)`},
		{"text for entry", top + "exports: [x]\n", `f:4: exports[0]: wants keys with values, found the text "x" (write name: and a value)`},
		{"text for number", top + "    workers: many\n" + tail, `f:4: workers: "many" is no whole number (write digits only)`},
		{"quoted number", top + "    workers: \"4\"\n" + tail, `f:4: workers: wants a whole number, found the text "4" (write digits only, without quotes)`},
		{"list for number", top + "    workers: [4]\n" + tail, `f:4: workers: wants a whole number, found a list (write digits only, without quotes)`},
		{"float for number", top + "    workers: 1.5\n" + tail, `f:4: workers: "1.5" is no whole number (write digits only)`},
		{"leading zero", top + "    workers: 010\n" + tail, `f:4: workers: "010" has a leading zero (write 10, or 8 if you mean octal)`},
		{"leading zero, no octal", top + "    workers: 08\n" + tail, `f:4: workers: "08" has a leading zero (write 8)`},
		{"hexadecimal", top + "    workers: 0x10\n" + tail, `f:4: workers: "0x10" is no whole number (write digits only)`},
		{"underscore", top + "    workers: 1_0\n" + tail, `f:4: workers: "1_0" is no whole number (write digits only)`},
		{"negative", top + "    workers: -1\n" + tail, `f:4: workers: "-1" is no whole number (write digits only)`},
		{"zero workers", top + "    workers: 0\n" + tail, `f:4: workers: 0 is out of range (write a number from 1 to 1024)`},
		{"many workers", top + "    workers: 1025\n" + tail, `f:4: workers: 1025 is out of range (write a number from 1 to 1024)`},
		{"yes", top + "    degraded: yes\n" + tail, `f:4: degraded: wants true or false, found "yes" (write true)`},
		{"off", top + "    direct_io: Off\n" + tail, `f:4: direct_io: wants true or false, found "Off" (write false)`},
		{"quoted true", top + "    degraded: \"true\"\n" + tail, `f:4: degraded: wants true or false, found the text "true" (write true or false, without quotes)`},
		{"number for boolean", top + "    degraded: 1\n" + tail, `f:4: degraded: wants true or false (write one of the two, without quotes)`},
		{"bare M", top + "    cache: 64M\n" + tail, `f:4: cache: "64M" is ambiguous (write 64MiB or 64MB)`},
		{"list for size", top + "    cache: [1]\n" + tail, `f:4: cache: wants a size, found a list (write for example 64MiB)`},
		{"small cache", top + "    cache: 0\n" + tail, `f:4: cache: 0 is too small for a tree block (write at least 64KiB)`},
		{"duration without unit", small + "limits: {drain: 10}\n", `f:7: drain: "10" has no unit (write 10s or 10ms)`},
		{"no handshake", small + "limits: {handshake: 0s}\n", `f:7: handshake: 0s is too short (write at least 1ms)`},
		{"list for duration", small + "limits: {drain: []}\n", `f:7: drain: wants a duration, found a list (write for example 10s)`},
		{"no connections", small + "limits: {connections: 0}\n", `f:7: connections: 0 is out of range (write a number from 1 to 1000000)`},

		// values
		{"relative path", top + "exports: [{name: a, path: vm1.raw}]\n", `f:4: path: "vm1.raw" is not absolute (write /vm1.raw; it is resolved inside the filesystem)`},
		{"empty path", top + "exports: [{name: a, path: \"\"}]\n", `f:4: path: the path is empty (write one)`},
		{"NUL in a path", top + `exports: [{name: a, path: "/\0"}]`, `f:4: path: "/\x00" holds a NUL (remove it)`},
		{"empty name", top + "exports: [{name: \"\", path: /a}]\n", `f:4: name: the name is empty (write a name)`},
		{"newline in a name", top + `exports: [{name: "a\nb", path: /a}]`, `f:4: name: "a\nb" holds the control character '\n' (remove it)`},
		{"long name", top + "exports: [{name: " + strings.Repeat("n", 4097) + ", path: /a}]\n", `f:4: name: the name has 4097 bytes, NBD allows 4096 (write a shorter one)`},
		{"long path", top + "exports: [{name: a, path: /" + strings.Repeat("n", 4096) + "}]\n", `f:4: path: the path has 4097 bytes, Linux allows 4096 (write a shorter one)`},
		{"long description", top + "exports: [{name: a, path: /a, description: " + strings.Repeat("n", 4097) + "}]\n", `f:4: description: the text has 4097 bytes, NBD allows 4096 (write a shorter one)`},
		{"NUL in a description", top + `exports: [{name: a, path: /a, description: "\0"}]`, `f:4: description: "\x00" holds the control character '\x00' (remove it)`},
		{"empty device", "filesystems: [{name: a, devices: [\"\"]}]\n" + tail, `f:1: devices[0]: the path is empty (write one)`},
		{"subvol and subvolid", top + "exports:\n  - name: a\n    path: /a\n    subvol: /s\n    subvolid: 256\n",
			`f:8: subvolid: the subvolume is already given on line 7 (keep subvol or subvolid)`},
		{"subvolid and subvol", top + "exports:\n  - name: a\n    path: /a\n    subvolid: 256\n    subvol: /s\n",
			`f:8: subvol: the subvolume is already given on line 7 (keep subvol or subvolid)`},
		{"no such subvolid", top + "exports: [{name: a, path: /a, subvolid: 6}]\n",
			`f:4: subvolid: no subvolume has the id 6 (5 is the top level, others begin at 256: see btrexport subvolumes)`},
		{"subvolid beyond the last", top + "exports: [{name: a, path: /a, subvolid: 18446744073709551361}]\n",
			`f:4: subvolid: 18446744073709551361 is out of range (write a number from 0 to 18446744073709551360)`},
		{"subvolid beyond 64 bits", top + "exports: [{name: a, path: /a, subvolid: 18446744073709551616}]\n",
			`f:4: subvolid: "18446744073709551616" is too large (write a smaller number)`},
		{"odd round_up", top + "exports: [{name: a, path: /a, round_up: 1000}]\n", `f:4: round_up: 1000 is no power of two from 512 to 32MiB (write 512 or 4096)`},
		{"small round_up", top + "exports: [{name: a, path: /a, round_up: 256}]\n", `f:4: round_up: 256 is no power of two from 512 to 32MiB (write 512 or 4096)`},
		{"large round_up", top + "exports: [{name: a, path: /a, round_up: 64MiB}]\n", `f:4: round_up: 64MiB is no power of two from 512 to 32MiB (write 512 or 4096)`},
		{"bad address", small + "listen: [\"127.0.0.1:10809\"]\n", `f:7: listen[0]: "127.0.0.1:10809" is no address (write unix:///path/to.sock or tcp://host:port)`},
		{"number for an address", small + "metrics: {listen: 9810}\n",
			`f:7: listen: wants an address, found the number 9810 (write for example 127.0.0.1:9810 for metrics, tcp://127.0.0.1:10809 for NBD, or unix:///run/x.sock)`},
		{"bad metrics address", small + "metrics: {listen: \"tcp://127.0.0.1:9810\"}\n",
			`f:7: listen: "tcp://127.0.0.1:9810" is no address for metrics (write 127.0.0.1:9810, or unix:///path/to.sock)`},

		// between elements
		{"doubled export", small + "  - name: vm1\n    path: /b\n", `f:7: export "vm1" is already defined on line 5 (give it another name)`},
		{"doubled filesystem", "filesystems:\n  - {name: a, devices: [/a]}\n  - {name: a, devices: [/b]}\nexports: [{name: vm1, filesystem: a, path: /p}]\n",
			`f:3: filesystem "a" is already defined on line 2 (give it another name)`},
		{"doubled device", "filesystems:\n  - {name: a, devices: [/a]}\n  - {name: b, devices: [/x, //a]}\nexports: [{name: vm1, filesystem: a, path: /p}]\n",
			`f:3: device //a is already given on line 2 (name it once)`},
		{"doubled address", small + "listen:\n  - tcp://127.0.0.1\n  - tcp://127.0.0.1:10809\n", `f:9: tcp://127.0.0.1:10809 is already used on line 8 (use another address)`},
		{"metrics on the default address", small + "metrics: {listen: \"127.0.0.1:10809\"}\n", `f:7: tcp://127.0.0.1:10809 is already used by default (use another address)`},
		{"no filesystem named", two + tail, `f:2: export "vm1" names no filesystem, and there are 2 (write filesystem: tank)`},
		{"unknown filesystem, near", two + "exports:\n- name: a\n  path: /a\n  filesystem: tnak\n", `f:5: export "a": filesystem "tnak" is not defined (did you mean "tank"?)`},
		{"unknown filesystem, far", two + "exports: [{name: a, path: /a, filesystem: zzzz}]\n", `f:2: export "a": filesystem "zzzz" is not defined (defined: tank, pool)`},

		// trust
		{"tls allow", small + "tls: {mode: allow}\n", `f:7: tls: mode allow needs a certificate (add certificate: FILE)
f:7: tls: mode allow needs a key (add key: FILE)`},
		{"tls require", small + "tls:\n  mode: require\n  certificate: c\n", `f:8: tls: mode require needs a key (add key: FILE)`},
		{"tls unknown", small + "tls: {mode: maybe}\n", `f:7: tls mode: "maybe" is not known (write off or allow or require)`},
		{"tls mode list", small + "tls: {mode: [off]}\n", `f:7: tls mode: wants text, found a list (write off or allow or require)`},
		{"tls of an export, and none", small + "    tls: require\n",
			`f:7: export "vm1": tls: require can't be kept, TLS is off (write tls: with mode: allow, certificate and key)`},
		{"tls of an export off", small + "    tls: off\n", `f:7: tls: "off" is not known (write allow or require)`},
		{"empty allow", small + "    allow: []\n", `f:7: allow is an empty list (add an entry)`},
		{"allow text", small + "    allow: 10.0.0.0/8\n", `f:7: allow: wants a list, found the text "10.0.0.0/8" (begin each entry with "- ", or write [a, b])`},
		{"allow number", small + "    allow: [7]\n", `f:7: allow[0]: wants text, found the number 7 (write for example "192.0.2.0/24", "uid:1000" or "name:vm-host-1")`},
		{"prefix too long", small + "    allow: [10.0.0.1/33]\n", `f:7: allow[0]: "10.0.0.1/33": the prefix's length is out of range (write a number from 0 to 32)`},
		{"bits behind", small + "    allow: [10.0.0.1/24]\n", `f:7: allow[0]: "10.0.0.1/24": has bits behind the prefix's length (write 10.0.0.0/24, or 10.0.0.1 for one address)`},
		{"mapped and more", small + "    allow: [\"::ffff:0:0/90\"]\n", `f:7: allow[0]: "::ffff:0:0/90": holds more than the IPv4 addresses (write the IPv4 network and the IPv6 network)`},
		{"zone", small + "    allow: [\"fe80::1%eth0\"]\n", `f:7: allow[0]: "fe80::1%eth0": has a zone (write fe80::1: it counts on every interface)`},
		{"host name", small + "    allow: [localhost]\n", `f:7: allow[0]: "localhost": is no network, uid, gid or name (write for example 192.0.2.0/24, uid:1000, gid:6 or name:vm-host-1)`},
		{"address of three", small + "    allow: [\"10.0.0/24\"]\n", `f:7: allow[0]: "10.0.0/24": is no network, uid, gid or name (write for example 192.0.2.0/24, uid:1000, gid:6 or name:vm-host-1)`},
		{"uid of letters", small + "    allow: [\"uid:root\"]\n", `f:7: allow[0]: "uid:root": wants a number (see id -u USER)`},
		{"gid out of range", small + "    allow: [\"gid:4294967295\"]\n", `f:7: allow[0]: "gid:4294967295": wants a number (see getent group GROUP)`},
		{"empty certificate name", small + "    allow: [\"name:\"]\n", `f:7: allow[0]: "name:": the name is empty (write a name)`},
		{"name without certificates", small + "    allow:\n      - name:x\ntls: {mode: allow, certificate: c, key: k}\n",
			`f:8: export "vm1": allow: name: fits nobody, clients show no certificates (add client_ca to tls, and mode: allow or require)`},
		{"unknown engine", top + "    io_engine: aio\n" + tail, `f:4: io_engine: "aio" is not known (write auto or io_uring or pread)`},
		{"no time to read", top + "    slow_read: 0s\n" + tail, `f:4: slow_read: 0s is too short (write at least 1ms)`},
		{"slow_read without unit", top + "    slow_read: 2\n" + tail, `f:4: slow_read: "2" has no unit (write 2s or 2ms)`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Parse("f", []byte(tc.text))
			if got := fmt.Sprint(err); got != tc.want {
				t.Errorf("%q\n got %s\nwant %s", tc.text, got, tc.want)
			}
		})
	}
}

// bomb is nine lists of nine aliases each to the one before: 9^9 values in 300 bytes.
func bomb() string {
	var b strings.Builder
	b.WriteString("x0: &x0 [a, a, a, a, a, a, a, a, a]\n")
	for i := 1; i < 9; i++ {
		ref := fmt.Sprintf("*x%d", i-1)
		fmt.Fprintf(&b, "x%d: &x%d [%s]\n", i, i, strings.Join([]string{ref, ref, ref, ref, ref, ref, ref, ref, ref}, ", "))
	}
	return b.String()
}

// TestEveryMistakeIsShown has one mistake in each part of the file.
func TestEveryMistakeIsShown(t *testing.T) {
	const text = `listen:
  - udp://1
metrics: {listen: "x"}
filesystems:
  - name: tank
    devices: [/dev/sdb]
    workers: no
  - name: tank
    devices: [/dev/sdb]
exports:
  - name: a
    path: a
limits:
  drain: soon
`
	_, err := Parse("f", []byte(text))
	var lines []string
	for line := range strings.SplitSeq(fmt.Sprint(err), "\n") {
		lines = append(lines, strings.SplitN(line, ":", 3)[1])
	}
	if got, want := strings.Join(lines, " "), "2 3 7 8 9 11 12 14"; got != want {
		t.Errorf("mistakes on lines %s, want %s:\n%v", got, want, err)
	}
}

func TestManyMistakesAreCut(t *testing.T) {
	for name, text := range map[string]string{
		"unknown keys":        top + tail + "limits:\n  x: 1\n" + repeat(999, "  nonsense%d: 1\n"),
		"unknown filesystems": top + "exports:\n\n" + repeat(1000, "- {name: n%d, path: /a, filesystem: x}\n"),
	} {
		_, err := Parse("f", []byte(text))
		lines := strings.Split(fmt.Sprint(err), "\n")
		if len(lines) != maxErrors+1 || lines[maxErrors] != "f:25: and 980 more (mend the ones above first)" {
			t.Errorf("%s: %d lines, the last %q; want %d and a count of 980", name, len(lines), lines[len(lines)-1], maxErrors+1)
		}
	}
}

func repeat(n int, format string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

// errorLine is what every line of an error looks like: a place, words, and a remedy at the end.
var errorLine = regexp.MustCompile(`^f:[1-9][0-9]*: .+ \(.+\)$`)

// goName are words of the library's and Go's own messages that people who write YAML must not meet.
var goName = regexp.MustCompile(`cannot unmarshal|configs\.|\[\]|map\[|yaml: |time\.|strconv|uint64|int64|%!`)

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"", small, top, tail, bomb(), "a: &a [*a]", "? x\n: y\n", "--- |\n a\n", "%YAML 1.1\n---\na: 1", "\ufeff" + small,
		small + "---\n" + small, "exports: [{name: 010, path: !!binary aGk=}]", "x: \"\\x00\"", strings.Repeat("[", 200), "a: 'b", "*", "&",
		"{a: 1, a: 2}", "limits: {drain: 9999999999h, connections: 99999999999999999999}", "filesystems: [{cache: 9223372036854775807TiB}]",
		"listen: [\"tcp://[::1%25lo]\", \"unix:\", \"tcp://a:b:c\", \"unix:///\"]", "filesystems:\n- devices: [a, a]\n- devices: [a]\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("f", data)
		if err != nil {
			if c != nil {
				t.Fatal("a Config and an error")
			}
			for line := range strings.SplitSeq(err.Error(), "\n") {
				if !errorLine.MatchString(line) {
					t.Fatalf("%q: error line %q", data, line)
				}
			}
			return
		}
		holds(t, c)
	})
}

// holds checks what Config promises to its users.
func holds(t *testing.T, c *Config) {
	t.Helper()
	if len(c.Listen) == 0 || len(c.Filesystems) == 0 || len(c.Exports) == 0 {
		t.Fatalf("accepted %+v without an address, a filesystem or an export", c)
	}
	known := map[string]bool{}
	for _, f := range c.Filesystems {
		if f.Name == "" || known[f.Name] || len(f.Devices) == 0 || f.Workers < 0 || f.Cache < minCache || f.Pos.Line < 1 {
			t.Fatalf("accepted filesystem %+v", f)
		}
		known[f.Name] = true
	}
	names := map[string]bool{}
	for _, e := range c.Exports {
		if e.Name == "" || names[e.Name] || !known[e.Filesystem] || !strings.HasPrefix(e.Path, "/") ||
			e.Subvol != "" && e.SubvolID != 0 || e.RoundUp&(e.RoundUp-1) != 0 || e.PathPos.Line < 1 {
			t.Fatalf("accepted export %+v", e)
		}
		names[e.Name] = true
	}
	for _, l := range c.Listen {
		if again, err := ParseListen(l.String()); err != nil || again.Address != l.Address {
			t.Fatalf("address %s does not read back: %+v, %v", l, again, err)
		}
	}
}

func TestNoGoNamesInErrors(t *testing.T) {
	for _, key := range []string{"listen", "metrics", "filesystems", "exports", "tls", "limits"} {
		for _, value := range []string{"1", "x", "true", "[1]", "[x]", "[{a: 1}]", "{a: 1}", "~", "1.5", "2024-01-01", "[[x]]", "{name: {}}"} {
			_, err := Parse("f", []byte(key+": "+value))
			if err == nil {
				t.Errorf("%s: %s is accepted", key, value)
				continue
			}
			if found := goName.FindString(err.Error()); found != "" {
				t.Errorf("%s: %s: %q in %v", key, value, found, err)
			}
		}
	}
}
