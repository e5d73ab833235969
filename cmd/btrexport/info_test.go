package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

func TestAllocated(t *testing.T) {
	group := func(kind string, p ondisk.Profile, mib uint64) fsread.BlockGroups {
		return fsread.BlockGroups{Kind: kind, Profile: p, Bytes: mib << 20}
	}
	for _, c := range []struct {
		name   string
		groups []fsread.BlockGroups
		exact  bool
		want   string
	}{
		{"none", nil, false, ""},
		{"one profile each", []fsread.BlockGroups{group("data", ondisk.Single, 8), group("metadata", ondisk.DUP, 32), group("system", ondisk.DUP, 8)}, false,
			"data 8 MiB   metadata 32 MiB   system 8 MiB"},
		{"converted half way", []fsread.BlockGroups{group("data", ondisk.RAID0, 1024), group("data", ondisk.RAID1, 1), group("data", ondisk.Single, 2), group("system", ondisk.RAID1, 8)}, false,
			"data raid0 1 GiB, raid1 1 MiB, single 2 MiB   system 8 MiB"},
		{"exact", []fsread.BlockGroups{group("data+metadata", ondisk.Single, 1)}, true, "data+metadata 1048576"},
	} {
		if got := byKind(c.groups, c.exact, func(g *fsread.BlockGroups) uint64 { return g.Bytes }); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func TestLogLines(t *testing.T) {
	refused := map[uint64]error{257: &fsread.LogError{Subvolume: 257, Err: errors.New("an odd\nitem")}}
	for _, c := range []struct {
		name string
		log  fsread.LogInfo
		want string
		json string
	}{
		{"none", fsread.LogInfo{}, "", `{"present":false}`},
		{"ignored", fsread.LogInfo{Present: true, Ignored: true}, "log         present, ignored: what was synced after the last commit is not shown", `{"present":true,"ignored":true}`},
		{"replayed", fsread.LogInfo{Present: true, Subvolumes: []uint64{5, 256}}, "log         present, replayed in memory for 2 subvolumes", `{"present":true,"replayed":[5,256]}`},
		{"one refused", fsread.LogInfo{Present: true, Subvolumes: []uint64{5, 257}, Refused: refused}, "log         present, replayed in memory for 1 subvolume\n" +
			`            refused: subvolume id 257: log tree can't be replayed: an odd\nitem`,
			`{"present":true,"replayed":[5],"refused":[{"subvolume":257,"reason":"subvolume id 257: log tree can't be replayed: an odd\nitem"}]}`},
	} {
		if got := strings.Join(logLines(&c.log), "\n"); got != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", c.name, got, c.want)
		}
		var b bytes.Buffer
		if err := printJSON(&b, logObject(&c.log)); err != nil || strings.TrimSpace(b.String()) != c.json {
			t.Errorf("%s: got %s, want %s, error %v", c.name, &b, c.json, err)
		}
	}
}
