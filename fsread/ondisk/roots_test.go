package ondisk_test

import (
	"errors"
	"testing"

	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/ondisk/ondisktest"
)

// goodBackup is a slot of the superblock that ondisktest makes, of the commit before its last.
func goodBackup() ondisk.BackupRoot {
	return ondisk.BackupRoot{TreeRoot: 2 << 20, TreeRootGeneration: 6, TreeRootLevel: 1, ChunkRoot: 1 << 20, ChunkRootGeneration: 5,
		ChunkRootLevel: 2, TotalBytes: 1 << 30, BytesUsed: 15 << 20, NumDevices: 1}
}

func TestBackup(t *testing.T) {
	s := ondisktest.NewSuperblock()
	s.Backups[2] = goodBackup()
	s, err := ondisk.DecodeSuperblock(ondisktest.Super(s), superAt)
	if err != nil {
		t.Fatal(err)
	}
	want := ondisk.Roots{Generation: 6, Root: 2 << 20, RootLevel: 1, ChunkRoot: 1 << 20, ChunkRootLevel: 2, ChunkRootGeneration: 5,
		TotalBytes: 1 << 30, BytesUsed: 15 << 20}
	got, err := s.Backup(2)
	if err != nil || got != want {
		t.Fatalf("got %+v, %v, want %+v", got, err, want)
	}
	if _, err := s.Backup(0); !errors.Is(err, ondisk.ErrNoBackup) {
		t.Errorf("slot 0: got %v, want ErrNoBackup", err)
	}
	at := s.At(got)
	if at.Roots() != want || at.FSID != s.FSID || s.Generation != 7 {
		t.Errorf("at that state: %+v; the superblock itself is of generation %d", at.Roots(), s.Generation)
	}
	if s.At(s.Roots()).Roots() != s.Roots() {
		t.Error("a superblock at its own roots is another one")
	}
}

func TestBackupRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*ondisk.BackupRoot)
		part string
	}{
		{"no tree_root", func(b *ondisk.BackupRoot) { b.TreeRoot = 0 }, "backup 3: tree_root 0"},
		{"tree_root not aligned", func(b *ondisk.BackupRoot) { b.TreeRoot += 512 }, "tree_root 2097664"},
		{"no chunk_root", func(b *ondisk.BackupRoot) { b.ChunkRoot = 0 }, "chunk_root 0"},
		{"chunk_root not aligned", func(b *ondisk.BackupRoot) { b.ChunkRoot++ }, "chunk_root 1048577"},
		{"level", func(b *ondisk.BackupRoot) { b.TreeRootLevel = 8 }, "levels 8 and 2"},
		{"chunk level", func(b *ondisk.BackupRoot) { b.ChunkRootLevel = 255 }, "levels 1 and 255"},
		{"generation 0", func(b *ondisk.BackupRoot) { b.TreeRootGeneration = 0 }, "generation 0, want 1 to 7"},
		{"generation of the future", func(b *ondisk.BackupRoot) { b.TreeRootGeneration = 8 }, "generation 8, want 1 to 7"},
		{"chunk generation 0", func(b *ondisk.BackupRoot) { b.ChunkRootGeneration = 0 }, "chunk_root generation 0, want 1 to 6"},
		{"chunk generation of the future", func(b *ondisk.BackupRoot) { b.ChunkRootGeneration = 7 }, "chunk_root generation 7, want 1 to 6"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := ondisktest.NewSuperblock()
			s.Backups[3] = goodBackup()
			c.edit(&s.Backups[3])
			_, err := s.Backup(3)
			checkErr(t, err, ondisk.ErrCorrupt, c.part)
		})
	}
}
