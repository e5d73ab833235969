package ondisk

import "errors"

// BackupSlots is how many roots of earlier commits a superblock keeps (BTRFS_NUM_BACKUP_ROOTS).
const BackupSlots = 4

// ErrNoBackup is a backup slot that was never written: there were fewer commits than slots.
var ErrNoBackup = errors.New("the slot was never written")

// Roots is where the trees of one committed generation begin.
type Roots struct {
	Generation            uint64 // of the root tree's topmost block
	Root                  Logical
	RootLevel             uint8
	ChunkRoot             Logical
	ChunkRootLevel        uint8
	ChunkRootGeneration   uint64 // at most Generation
	TotalBytes, BytesUsed uint64 // of the filesystem at that generation; not validated
}

// Roots returns the superblock's own: those of the last commit.
func (s *Superblock) Roots() Roots {
	return Roots{Generation: s.Generation, Root: s.Root, RootLevel: s.RootLevel, ChunkRoot: s.ChunkRoot,
		ChunkRootLevel: s.ChunkRootLevel, ChunkRootGeneration: s.ChunkRootGeneration, TotalBytes: s.TotalBytes, BytesUsed: s.BytesUsed}
}

// Backup returns the roots in a backup slot, validated as the superblock's own are. Slots are written in
// turn, one at each commit, so their order says nothing; one of them usually repeats the superblock's own.
// Precondition: 0 <= slot < BackupSlots. Errors: ErrNoBackup; ErrCorrupt.
func (s *Superblock) Backup(slot int) (Roots, error) {
	b := &s.Backups[slot]
	if b.TreeRoot == 0 && b.TreeRootGeneration == 0 {
		return Roots{}, ErrNoBackup
	}
	r := Roots{Generation: b.TreeRootGeneration, Root: b.TreeRoot, RootLevel: b.TreeRootLevel, ChunkRoot: b.ChunkRoot,
		ChunkRootLevel: b.ChunkRootLevel, ChunkRootGeneration: b.ChunkRootGeneration, TotalBytes: b.TotalBytes, BytesUsed: b.BytesUsed}
	return r, r.validate(slot, s)
}

// validate checks what a search will rely on.
func (r *Roots) validate(slot int, s *Superblock) error {
	mask := Logical(s.SectorSize - 1)
	switch {
	case r.Root == 0 || r.Root&mask != 0:
		return corrupt("superblock", "backup %d: tree_root %d, want a multiple of %d", slot, r.Root, s.SectorSize)
	case r.ChunkRoot == 0 || r.ChunkRoot&mask != 0:
		return corrupt("superblock", "backup %d: chunk_root %d, want a multiple of %d", slot, r.ChunkRoot, s.SectorSize)
	case r.RootLevel >= maxLevel || r.ChunkRootLevel >= maxLevel:
		return corrupt("superblock", "backup %d: levels %d and %d, want less than %d", slot, r.RootLevel, r.ChunkRootLevel, maxLevel)
	case r.Generation == 0 || r.Generation > s.Generation:
		return corrupt("superblock", "backup %d: generation %d, want 1 to %d", slot, r.Generation, s.Generation)
	case r.ChunkRootGeneration == 0 || r.ChunkRootGeneration > r.Generation:
		return corrupt("superblock", "backup %d: chunk_root generation %d, want 1 to %d", slot, r.ChunkRootGeneration, r.Generation)
	}
	return nil
}

// At returns a superblock that has r for its roots. All else, the log too, is that of s.
func (s *Superblock) At(r Roots) *Superblock {
	at := *s
	at.Generation, at.Root, at.RootLevel = r.Generation, r.Root, r.RootLevel
	at.ChunkRoot, at.ChunkRootLevel, at.ChunkRootGeneration = r.ChunkRoot, r.ChunkRootLevel, r.ChunkRootGeneration
	at.TotalBytes, at.BytesUsed = r.TotalBytes, r.BytesUsed
	return &at
}
