// Package fsreadtest gives tests the golden images of testdata/images: filesystems made by
// mkfs.btrfs and the running kernel, and beside each a manifest of what the kernel showed after
// a fresh mount. Load unpacks one. The package knows no btrfs format, so that it cannot share a
// mistake with the reader under test.
package fsreadtest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Manifest is the truth about one golden image. Lists are in a stable order: devices by devid,
// subvolumes by id, entries by the bytes of their path.
type Manifest struct {
	Header
	// Subvolumes lists all but the top level (id 5).
	Subvolumes []Subvolume `json:"subvolumes"`
	// Entries is every path below the top level subvolume (mount option subvolid=5).
	Entries []Entry `json:"entries"`
	// DefaultEntries is every path that a mount without options shows. It is empty if the default
	// subvolume is the top level: then Entries is that view too.
	DefaultEntries []Entry `json:"default_entries,omitempty"`
}

// Header tells how an image was made and what its superblock says.
type Header struct {
	Name string `json:"name"`
	// Note says what the image is for.
	Note string `json:"note"`
	// Mkfs holds the arguments of mkfs.btrfs without the devices, MountOptions those of the mount
	// that filled it.
	Mkfs         []string `json:"mkfs"`
	MountOptions string   `json:"mount_options,omitempty"`
	Kernel       string   `json:"kernel"`
	Progs        string   `json:"progs"`
	// Seed is the seed of the content generator (kernelfs.Content).
	Seed       uint64 `json:"seed"`
	Label      string `json:"label"`
	UUID       string `json:"uuid"`
	Nodesize   uint32 `json:"nodesize"`
	Sectorsize uint32 `json:"sectorsize"`
	Csum       string `json:"csum"`
	// Profiles lists the block group types with their profiles, as `btrfs filesystem df` names
	// them ("Data, RAID0"); there are several of one type after a partial conversion.
	Profiles []string `json:"profiles"`
	// FSTreeLevel is the height of the top level subvolume's tree, 0 for a single leaf.
	FSTreeLevel      int      `json:"fs_tree_level"`
	DefaultSubvolume uint64   `json:"default_subvolume"`
	Devices          []Device `json:"devices"`
}

// Device is one image file of the package.
type Device struct {
	File   string `json:"file"`
	Devid  uint64 `json:"devid"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// Subvolume is one subvolume or snapshot. Path is relative to the top level.
type Subvolume struct {
	ID         uint64 `json:"id"`
	Path       Name   `json:"path"`
	Parent     uint64 `json:"parent"`
	ReadOnly   bool   `json:"ro,omitempty"`
	UUID       string `json:"uuid"`
	ParentUUID string `json:"parent_uuid,omitempty"`
}

// Entry is one path as the kernel shows it. The root of the view has the path ".".
type Entry struct {
	Path Name `json:"path"`
	// Type is file, dir, symlink, fifo, socket, char or block.
	Type string `json:"type"`
	// Size is st_size in bytes.
	Size int64 `json:"size"`
	// Mode holds permission, setuid, setgid and sticky bits (st_mode & 07777), in octal.
	Mode      string `json:"mode"`
	UID       uint32 `json:"uid,omitempty"`
	GID       uint32 `json:"gid,omitempty"`
	MtimeSec  int64  `json:"mtime_sec"`
	MtimeNsec int64  `json:"mtime_nsec"`
	Nlink     uint64 `json:"nlink"`
	Ino       uint64 `json:"ino"`
	// Subvol is the id of the subvolume whose tree holds the inode.
	Subvol uint64 `json:"subvol"`
	// Rdev is major:minor of a char or block node.
	Rdev   string `json:"rdev,omitempty"`
	Target Name   `json:"target,omitempty"`
	// SHA256 of the content, for a regular file that is not empty and has at most 64 MiB.
	SHA256 string `json:"sha256,omitempty"`
	// Pieces stands in for SHA256 where the file is larger: its data, in order; all else is zeros.
	Pieces []Piece `json:"pieces,omitempty"`
	// NoCOW is chattr's C: the file's data carries no checksums.
	NoCOW bool `json:"nocow,omitempty"`
}

// Piece is a range of a large sparse file, in bytes.
type Piece struct {
	Off    int64  `json:"off"`
	Len    int64  `json:"len"`
	SHA256 string `json:"sha256"`
}

const base64Prefix = "base64:"

// Name is a path, a name or a symlink's target: any bytes. In JSON it is a plain string if it is
// valid UTF-8, else "base64:" and its standard base64 form.
type Name string

// MarshalJSON implements json.Marshaler.
func (n Name) MarshalJSON() ([]byte, error) {
	s := string(n)
	if !utf8.ValidString(s) || strings.HasPrefix(s, base64Prefix) {
		s = base64Prefix + base64.StdEncoding.EncodeToString([]byte(n))
	}
	return marshal(s)
}

// UnmarshalJSON implements json.Unmarshaler.
func (n *Name) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	if enc, ok := strings.CutPrefix(s, base64Prefix); ok {
		raw, err := base64.StdEncoding.DecodeString(enc)
		if err != nil {
			return fmt.Errorf("name %q: %w", s, err)
		}
		s = string(raw)
	}
	*n = Name(s)
	return nil
}

// Encode writes the manifest as JSON with one line for each subvolume and entry, so that a
// regenerated image gives a readable diff.
func (m *Manifest) Encode(w io.Writer) error {
	head, err := json.MarshalIndent(m.Header, "", "  ")
	if err != nil {
		return fmt.Errorf("manifest %s: %w", m.Name, err)
	}
	out := bytes.NewBuffer(bytes.TrimSuffix(head, []byte("\n}")))
	if err := encodeLines(out, "subvolumes", m.Subvolumes); err != nil {
		return err
	}
	if err := encodeLines(out, "entries", m.Entries); err != nil {
		return err
	}
	if len(m.DefaultEntries) > 0 {
		if err := encodeLines(out, "default_entries", m.DefaultEntries); err != nil {
			return err
		}
	}
	out.WriteString("\n}\n")
	_, err = w.Write(out.Bytes())
	return err
}

// Decode reads what Encode wrote. A field that Manifest does not have is an error.
func Decode(r io.Reader) (*Manifest, error) {
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	m := new(Manifest)
	if err := d.Decode(m); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return m, nil
}

func encodeLines[T any](out *bytes.Buffer, key string, list []T) error {
	fmt.Fprintf(out, ",\n  %q: [", key)
	for i, v := range list {
		line, err := marshal(v)
		if err != nil {
			return fmt.Errorf("%s %d: %w", key, i, err)
		}
		if i > 0 {
			out.WriteByte(',')
		}
		out.WriteString("\n    ")
		out.Write(line)
	}
	out.WriteString("\n  ]")
	return nil
}

// marshal is json.Marshal without the escapes for HTML, which only obscure file names.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
