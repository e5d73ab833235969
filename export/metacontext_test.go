package export

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/btrexport/btrexport/export/nbdwire"
)

const (
	optListMeta = nbdwire.OptListMetaContext
	optSetMeta  = nbdwire.OptSetMetaContext

	base    = "base:allocation"
	ourKind = "x-btrexport:compression"
	ourSure = "x-btrexport:verified"
)

// meta sends a query and returns the contexts of the reply up to the ACK, by id.
func (c *rawConn) meta(option uint32, name string, queries ...string) map[string]uint32 {
	c.t.Helper()
	c.option(option, nbdwire.AppendMetaQuery(nil, nbdwire.MetaQuery{Name: name, Queries: queries}))
	got := make(map[string]uint32)
	for {
		h, err := nbdwire.DecodeOptionReply(c.get(nbdwire.OptionReplyLen))
		if err != nil || h.ID != option {
			c.t.Fatalf("reply %+v, %v", h, err)
		}
		data := c.get(int(h.Length))
		if h.Type == repAck {
			return got
		}
		id, context, err := nbdwire.DecodeMetaContext(data)
		if h.Type != nbdwire.RepMetaContext || err != nil {
			c.t.Fatalf("reply type %#x %q %v", h.Type, data, err)
		}
		if _, twice := got[context]; twice {
			c.t.Fatalf("%s was told twice", context)
		}
		got[context] = id
	}
}

// TestMetaContexts names the items of the protocol checklist that it checks.
func TestMetaContexts(t *testing.T) {
	data := pattern()[:100000]
	files := []Export{{Name: "disk", File: &fakeFile{data: data}}, {Name: "other", File: &fakeFile{data: data}}}
	refused := func(c *rawConn, option uint32, data []byte, want uint32) {
		c.t.Helper()
		c.option(option, data)
		c.reply(option, want)
	}
	query := func(name string, queries ...string) []byte {
		return nbdwire.AppendMetaQuery(nil, nbdwire.MetaQuery{Name: name, Queries: queries})
	}
	want := func(c *rawConn, got map[string]uint32, names ...string) {
		c.t.Helper()
		var list []string
		ids := make(map[uint32]bool)
		for name, id := range got {
			list = append(list, name)
			ids[id] = true
		}
		slices.Sort(list)
		if slices.Sort(names); !slices.Equal(list, names) {
			c.t.Fatalf("got %v, want %v", got, names)
		}
	}
	// status tells which contexts answer a BLOCK_STATUS of the export that was chosen.
	status := func(c *rawConn, ids ...uint32) {
		c.t.Helper()
		c.put(requestBytes(7, 0, 1, 0, 4096))
		if len(ids) == 0 {
			c.wantError(1, nbdwire.ReplyError, einval)
			return
		}
		var got []uint32
		for _, p := range c.parts(1) {
			got = append(got, p.context)
		}
		if !slices.Equal(got, ids) {
			c.t.Fatalf("answered by %v, want %v", got, ids)
		}
	}
	for _, tc := range []struct {
		name string
		run  func(c *rawConn)
	}{
		{"47 malformed", func(c *rawConn) {
			for _, option := range []uint32{optListMeta, optSetMeta} {
				for _, data := range [][]byte{nil, be32(0), append(be32(5), "disk"...), append(query("disk"), 0), query("di\x00k"), query("disk", "\xff"),
					append(be32(math.MaxUint32), make([]byte, 64)...), append(append(be32(4), "disk"...), be32(math.MaxUint32)...),
					append(append(append(be32(4), "disk"...), be32(1)...), be32(math.MaxInt32)...)} {
					refused(c, option, data, nbdwire.RepErrInvalid)
				}
				refused(c, option, query("nope", base), repUnknown)
			}
		}},
		{"49 SET replaces, also when it fails", func(c *rawConn) {
			want(c, c.meta(optSetMeta, "disk", base, ourKind), base, ourKind)
			want(c, c.meta(optSetMeta, "disk", ourKind), ourKind)
			refused(c, optSetMeta, []byte{1}, nbdwire.RepErrInvalid)
			c.choose("disk")
			status(c)
		}},
		{"49 SET of an unknown export clears", func(c *rawConn) {
			c.meta(optSetMeta, "disk", base)
			refused(c, optSetMeta, query("nope", base), repUnknown)
			c.choose("disk")
			status(c)
		}},
		{"49 SET without a query selects none", func(c *rawConn) {
			c.meta(optSetMeta, "disk", base)
			want(c, c.meta(optSetMeta, "disk"))
			c.choose("disk")
			status(c)
		}},
		{"50 LIST without a query", func(c *rawConn) {
			got := c.meta(optListMeta, "disk")
			want(c, got, base, ourKind, ourSure)
			if got[base] != 0 || got[ourKind] != 0 {
				c.t.Fatalf("ids %v", got)
			}
		}},
		{"51 wildcards", func(c *rawConn) {
			want(c, c.meta(optListMeta, "disk", "base:"), base)
			want(c, c.meta(optListMeta, "disk", "x-btrexport:", "base:"), base, ourKind, ourSure)
			want(c, c.meta(optListMeta, "disk", "base:nope", "qemu:", "nope", "", "base"))
			want(c, c.meta(optSetMeta, "disk", "base:", "x-btrexport:", "base:nope", "qemu:dirty-bitmap:x", ""))
		}},
		{"52 twice is once, in any order", func(c *rawConn) {
			got := c.meta(optSetMeta, "disk", ourSure, base, base, "nope:", ourSure)
			want(c, got, base, ourSure)
			c.choose("disk")
			status(c, got[base], got[ourSure])
		}},
		{"53 too many queries", func(c *rawConn) {
			for _, option := range []uint32{optListMeta, optSetMeta} {
				refused(c, option, query("disk", slices.Repeat([]string{base}, maxQueries+1)...), nbdwire.RepErrTooBig)
			}
			want(c, c.meta(optSetMeta, "disk", slices.Repeat([]string{base}, maxQueries)...), base)
		}},
		{"40 GO of another export", func(c *rawConn) {
			c.meta(optSetMeta, "other", base)
			c.choose("disk")
			status(c)
		}},
		{"40 INFO of another, then GO", func(c *rawConn) {
			got := c.meta(optSetMeta, "disk", base)
			c.infos(optInfo, "other")
			c.choose("disk")
			status(c, got[base])
		}},
		{"LIST leaves the selection", func(c *rawConn) {
			got := c.meta(optSetMeta, "disk", base)
			c.meta(optListMeta, "disk", ourKind)
			refused(c, optListMeta, nil, nbdwire.RepErrInvalid)
			c.choose("disk")
			status(c, got[base])
		}},
		{"EXPORT_NAME", func(c *rawConn) {
			got := c.meta(optSetMeta, "disk", base, ourKind)
			c.option(1, []byte("disk"))
			c.get(10)
			status(c, got[base], got[ourKind])
		}},
		{"75 none selected", func(c *rawConn) { c.choose("disk"); status(c) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := start(t, Options{Exports: files}).greeted()
			c.option(optSR, nil)
			c.reply(optSR, repAck)
			tc.run(c)
		})
	}
	t.Run("48 before structured replies", func(t *testing.T) {
		c := start(t, Options{Exports: files}).greeted()
		refused(c, optSetMeta, query("disk", base), nbdwire.RepErrInvalid)
		refused(c, optListMeta, query("disk"), nbdwire.RepErrInvalid)
		c.choose("disk")
		c.alive(data)
	})
}

// TestContextIDs: they are unique and the names are strings of a namespace.
func TestContextIDs(t *testing.T) {
	seen := make(map[string]bool)
	for i, c := range contexts {
		if id := fmt.Sprint(contextID(i)); seen[id] || seen[c.name] || contextID(i) == 0 || nbdwire.CheckString(c.name) != nil {
			t.Errorf("context %d: %q id %s", i, c.name, id)
		} else {
			seen[id], seen[c.name] = true, true
		}
	}
	if len(contexts) > 8 {
		t.Error("a contextSet has 8 bits")
	}
}
