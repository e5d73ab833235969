package configs

import (
	"strings"
	"testing"
)

func TestParseListen(t *testing.T) {
	long := "/" + strings.Repeat("a", 107)
	for _, tc := range []struct{ in, network, address, err string }{
		{in: "unix:///run/x.sock", network: "unix", address: "/run/x.sock"},
		{in: "unix:///a%20b", network: "unix", address: "/a%20b"},
		{in: "unix://" + long[:107], network: "unix", address: long[:107]},
		{in: "tcp://127.0.0.1:10809", network: "tcp", address: "127.0.0.1:10809"},
		{in: "tcp://127.0.0.1", network: "tcp", address: "127.0.0.1:10809"},
		{in: "tcp://:99", network: "tcp", address: ":99"},
		{in: "tcp://0.0.0.0:0", network: "tcp", address: "0.0.0.0:0"},
		{in: "tcp://[::1]:99", network: "tcp", address: "[::1]:99"},
		{in: "tcp://[::1]", network: "tcp", address: "[::1]:10809"},
		{in: "tcp://[fe80::1%eth0]:1", network: "tcp", address: "[fe80::1%eth0]:1"},
		{in: "tcp://Host-1.example:65535", network: "tcp", address: "Host-1.example:65535"},
		{in: "unix:///a?b", network: "unix", address: "/a?b"},
		{in: "unix:///a?mod=0660", err: `"unix:///a?mod=0660": "mod=0660" is unknown or doubled (known: mode, user, group)`},
		{in: "unix:///a?mode=0660&mode=0600", err: `"unix:///a?mode=0660&mode=0600": "mode=0600" is unknown or doubled (known: mode, user, group)`},
		{in: "unix:///a?mode=0688", err: `"unix:///a?mode=0688": "mode=0688" is no mode of a socket (write for example mode=0660)`},
		{in: "unix:///a?mode=4755", err: `"unix:///a?mode=4755": "mode=4755" is no mode of a socket (write for example mode=0660)`},
		{in: "unix:///a?mode=0", err: `"unix:///a?mode=0": "mode=0" is no mode of a socket (write for example mode=0660)`},
		{in: "unix:///a?group=", err: `"unix:///a?group=": "group=" has no value (write mode=0660, user=NAME or group=NAME)`},
		{in: "unix:///a?group=disk&", err: `"unix:///a?group=disk&": "" has no value (write mode=0660, user=NAME or group=NAME)`},
		{in: "unix://" + long, err: quote("unix://"+long) + ": the path has 108 bytes, a socket's may have 107 (use a shorter one)"},
		{in: "unix:///", err: `"unix:///" is a directory (name the socket: unix:///nbd.sock)`},
		{in: "unix:///run/", err: `"unix:///run/" is a directory (name the socket: unix:///run/nbd.sock)`},
		{in: "unix://run/x", err: `"unix://run/x": the socket's path is not absolute (write unix:///run/x)`},
		{in: "unix:/run/x", err: `"unix:/run/x": the socket's path is not absolute (write unix:///run/x)`},
		{in: "unix:x", err: `"unix:x": the socket's path is not absolute (write unix:///x)`},
		{in: "", err: `"" is no address (write unix:///path/to.sock or tcp://host:port)`},
		{in: "/run/x.sock", err: `"/run/x.sock" is no address (write unix:///path/to.sock or tcp://host:port)`},
		{in: "nbd://host", err: `"nbd://host" is no address (write unix:///path/to.sock or tcp://host:port)`},
		{in: "tcp://", err: `"tcp://" names no host (write tcp://127.0.0.1, or tcp://:10809 for every interface)`},
		{in: "tcp://::1", err: `"tcp://::1": an IPv6 address stands in brackets (write [::1]:PORT)`},
		{in: "tcp://h:1/", err: `"tcp://h:1/": wants a host and a port and nothing else (write host:port)`},
		{in: "tcp://h:1:2", err: `"tcp://h:1:2": is no host and port (write host:port)`},
		{in: "tcp://h:", err: `"tcp://h:": port "" is no whole number (write digits only)`},
		{in: "tcp://h:nbd", err: `"tcp://h:nbd": port "nbd" is no whole number (write digits only)`},
		{in: "tcp://h:65536", err: `"tcp://h:65536": port 65536 is out of range (write a number from 1 to 65535, or 0 for any free port)`},
		{in: "tcp://h:010", err: `"tcp://h:010": port "010" has a leading zero (write 10, or 8 if you mean octal)`},
		{in: "tcp://256.0.0.1:1", err: `"tcp://256.0.0.1:1": "256.0.0.1" is no IP address (write four numbers from 0 to 255)`},
		{in: "tcp://*:1", err: `"tcp://*:1": '*' in the host "*" is no letter of a host name (write a name or an IP address)`},
		{in: "tcp://" + strings.Repeat("h", 254), err: quote("tcp://"+strings.Repeat("h", 254)) + ": the host has 254 bytes, a name may have 253 (write a shorter one)"},
	} {
		got, err := ParseListen(tc.in)
		if want := (Listen{Network: tc.network, Address: tc.address}); got != want || errText(err) != tc.err {
			t.Errorf("ParseListen(%q) = %+v, %v\nwant %+v, %s", tc.in, got, err, want, tc.err)
		}
	}
}

func TestParseMetricsListen(t *testing.T) {
	for _, tc := range []struct {
		in, network, address, err string
		mode                      uint32
		user, group               string
	}{
		{in: "127.0.0.1:9810", network: "tcp", address: "127.0.0.1:9810"},
		{in: ":9810", network: "tcp", address: ":9810"},
		{in: "[::1]:9810", network: "tcp", address: "[::1]:9810"},
		{in: "localhost:0", network: "tcp", address: "localhost:0"},
		{in: "unix:///run/m.sock", network: "unix", address: "/run/m.sock"},
		{in: "unix:///m?mode=0660&user=root&group=prometheus", network: "unix", address: "/m", mode: 0o660, user: "root", group: "prometheus"},
		{in: "unix:///m?mode=0", err: `"unix:///m?mode=0": "mode=0" is no mode of a socket (write for example mode=0660)`},
		{in: "127.0.0.1", err: `"127.0.0.1": the port is missing (write 127.0.0.1:PORT)`},
		{in: "::1", err: `"::1": an IPv6 address stands in brackets (write [::1]:PORT)`},
		{in: "http://127.0.0.1:9810/", err: `"http://127.0.0.1:9810/" is no address for metrics (write 127.0.0.1:9810, or unix:///path/to.sock)`},
		{in: "", err: `"": the port is missing (write :PORT)`},
		{in: "unix://m.sock", err: `"unix://m.sock": the socket's path is not absolute (write unix:///m.sock)`},
	} {
		got, err := ParseMetricsListen(tc.in)
		if want := (Listen{Network: tc.network, Address: tc.address, Mode: tc.mode, User: tc.user, Group: tc.group}); got != want || errText(err) != tc.err {
			t.Errorf("ParseMetricsListen(%q) = %+v, %v\nwant %+v, %s", tc.in, got, err, want, tc.err)
		}
	}
}
