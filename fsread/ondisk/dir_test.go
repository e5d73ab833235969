package ondisk_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/ondisk/ondisktest"
)

func TestNameHash(t *testing.T) {
	tests := []struct {
		name string
		want uint64
	}{
		{"default", 2378154706},
		{"", 0xFFFFFFFE},
	}
	for _, tt := range tests {
		if got := ondisk.NameHash([]byte(tt.name)); got != tt.want {
			t.Errorf("NameHash(%q): got %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestNextDirEntry(t *testing.T) {
	want := []ondisk.DirEntry{
		dirEntry,
		{Location: key(300, ondisk.TypeRootItem, 1<<64-1), Type: ondisk.FileTypeDir, Name: name("snapshot"), Data: []byte{}},
		{Type: ondisk.FileTypeXattr, Name: name("user.x"), Data: []byte("value")},
		{Type: ondisk.FileTypeSymlink, Name: make([]byte, 255), Data: []byte{}},
		{Type: ondisk.FileTypeUnknown, Name: name("\xff/\x00"), Data: []byte{}}, // bytes, unfiltered
	}
	var got []ondisk.DirEntry
	for b := ondisktest.DirEntries(want...); len(b) > 0; {
		e, rest, err := ondisk.NextDirEntry(b)
		if err != nil {
			t.Fatal(err)
		}
		if cap(e.Name) != len(e.Name) || cap(e.Data) != len(e.Data) {
			t.Errorf("%q: an append would write into what follows", e.Name)
		}
		got, b = append(got, e), rest
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("entries differ (-want +got):\n%s", d)
	}
}

func TestNextDirEntryRefuses(t *testing.T) {
	raw := ondisktest.DirEntries(dirEntry)
	for n := range len(raw) {
		_, rest, err := ondisk.NextDirEntry(raw[:n])
		checkErr(t, err, ondisk.ErrCorrupt, "directory entry")
		if rest != nil {
			t.Errorf("%d bytes: got a rest, a loop would go on", n)
		}
	}
	tests := []struct {
		name string
		e    ondisk.DirEntry
		part string
	}{
		{"no name", ondisk.DirEntry{Type: 1}, "name_len 0"},
		{"long name", ondisk.DirEntry{Type: 1, Name: make([]byte, 256)}, "name_len 256"},
		{"data of a file", ondisk.DirEntry{Type: 1, Name: name("a"), Data: name("b")}, "type 1 with data_len 1"},
		{"type", ondisk.DirEntry{Type: 9, Name: name("a")}, "type 9"},
	}
	for _, tt := range tests {
		_, _, err := ondisk.NextDirEntry(ondisktest.DirEntries(tt.e))
		checkErr(t, err, ondisk.ErrCorrupt, tt.part)
	}
}

// TestEncryptedNameIsSkippable: the entry is refused, the ones around it are not.
func TestEncryptedNameIsSkippable(t *testing.T) {
	encrypted := dirEntry
	encrypted.Type |= 0x80
	e, rest, err := ondisk.NextDirEntry(ondisktest.DirEntries(encrypted, dirEntry))
	checkErr(t, err, ondisk.ErrUnsupported, "name encrypted by fscrypt is not supported")
	if e.Type != dirEntry.Type || string(e.Name) != string(dirEntry.Name) {
		t.Errorf("got %+v, want the entry with its type", e)
	}
	e, rest, err = ondisk.NextDirEntry(rest)
	if d := cmp.Diff(dirEntry, e); err != nil || d != "" || len(rest) != 0 {
		t.Errorf("the next entry: %v, %d bytes after it, (-want +got):\n%s", err, len(rest), d)
	}
}
