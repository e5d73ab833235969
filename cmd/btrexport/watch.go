package main

import (
	"slices"
	"strings"

	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/metrics"
)

// watch has scrapes ask for the state of the site's filesystems.
func (s *site) watch(reg *metrics.Registry) {
	for _, f := range s.filesystems {
		reg.Watch(f.name, f.state(f.Info()))
	}
}

// state gives a function that tells the filesystem's state: i, and what has changed since.
func (f *siteFS) state(i fsread.Info) func() metrics.State {
	fixed := metrics.State{UUID: i.FSID.String(), Label: i.Label, Degraded: i.Degraded(),
		DataProfile: profilesFor(i.Groups, "data"), MetadataProfile: profilesFor(i.Groups, "metadata")}
	return func() metrics.State {
		m, c := fixed, f.Counts()
		for _, d := range f.Devices() {
			s := metrics.DeviceState{DevID: uint64(d.DevID), Path: d.Name, Model: d.Model, Up: !d.Missing && !d.Doubtful}
			if noted, ok := f.errors[d.DevID]; ok {
				s.Errors = noted[:]
			}
			m.Devices = append(m.Devices, s)
		}
		m.Caches = []metrics.CacheState{cacheState("tree", c.Trees), cacheState("extent", c.Extents)}
		for _, d := range c.Inflating {
			m.Decompress = append(m.Decompress, metrics.DecompressState{Algorithm: d.Algorithm, Seconds: d.Took.Seconds()})
		}
		return m
	}
}

func cacheState(kind string, c fsread.CacheCounts) metrics.CacheState {
	return metrics.CacheState{Kind: kind, Hits: c.Hits, Misses: c.Misses, Evictions: c.Evictions, Bytes: c.Bytes}
}

// profilesFor names the profiles of the chunks that hold data, or metadata: "raid1"; "single,raid1" where there are both.
func profilesFor(groups []fsread.BlockGroups, kind string) string {
	var list []string
	for _, g := range groups {
		if name := g.Profile.String(); slices.Contains(strings.Split(g.Kind, "+"), kind) && !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	return strings.Join(list, ",")
}
