package configs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"
)

// Defaults of what a configuration leaves out.
const (
	DefaultListen      = "tcp://127.0.0.1:10809"
	DefaultPort        = "10809"     // of a tcp:// address without one; IANA's port of NBD
	DefaultCache       = 64 << 20    // bytes
	DefaultSlowRead    = time.Second // until another copy is asked as well
	DefaultConnections = 100
	DefaultHandshake   = 10 * time.Second
	DefaultDrain       = 10 * time.Second
)

// maxFile bounds a configuration file in bytes. A thousand exports need about 200 KiB.
const maxFile = 1 << 20

// Config is a checked configuration. Listen, Filesystems and Exports hold at least one element each.
type Config struct {
	File        string // as the user wrote it; empty if flags alone made the Config
	Listen      []Listen
	Metrics     *Listen // nil: no metrics are served
	Filesystems []Filesystem
	Exports     []Export
	TLS         TLS
	Limits      Limits
}

// Listen is an address to accept connections on.
type Listen struct {
	Network string // "unix" or "tcp", as net.Listen takes it
	Address string // the socket's absolute path, or host:port
	Mode    uint32 // permissions of the socket's file; 0: as the umask has it
	User    string // its owner, by name or number; empty: who runs the server
	Group   string // likewise
	Pos     Pos    // without a line and a flag if DefaultListen was filled in
}

// Filesystem is a set of devices that belong together, and how to read them.
type Filesystem struct {
	Name         string // unique; empty only from flags, where the caller takes the filesystem's label or uuid
	Devices      []Device
	Degraded     bool          // open although devices are missing
	DirectIO     bool          // true unless the file says otherwise
	Workers      int           // reads in flight per physical device, 1 to 1024; 0: what suits the engine
	Cache        int64         // bytes of tree blocks and decompressed extents, upper bound
	IOEngine     string        // "auto", "io_uring" or "pread"
	AllowMounted bool          // read devices that are mounted read-write
	IgnoreLog    bool          // show the last commit of a filesystem that was not unmounted
	SlowRead     time.Duration // the next copy is asked when a device has taken as long; below 0: never
	Generation   uint64        // of an older state to open; 0: not asked for. Flags alone give it, as BackupRoot
	BackupRoot   int           // 1 + the superblock's slot of an older state; 0: not asked for
	Pos          Pos           // of the name
}

// Device names a block device or an image file, in the user's spelling.
type Device struct {
	Path string
	Pos  Pos
}

// Export is a file that is served under a name.
type Export struct {
	Name          string // unique, valid UTF-8, at most 4096 bytes (the limit of NBD)
	Filesystem    string // always the Name of one of Config.Filesystems
	Subvol        string // absolute path of the subvolume; empty if SubvolID or the default subvolume says
	SubvolID      uint64 // 0 if Subvol or the default subvolume says
	Path          string // absolute, inside the subvolume
	Description   string
	RoundUp       int64  // the size is padded with zeroes to a multiple of it; 0: not padded
	TLS           string // "allow" or "require"; empty: TLS.Mode says
	Allow         Access
	Pos           Pos // of the name; what is left out below has the place of the export
	PathPos       Pos // of the path
	SubvolPos     Pos // of subvol or subvolid, whichever was given
	FilesystemPos Pos // of the filesystem's name
	TLSPos        Pos // of tls
	AllowPos      Pos // of the list
}

// TLS is the tls section. Unless Mode is off, Certificate and Key are set. What the files hold is not checked here.
type TLS struct {
	Mode           string // "off", "allow" or "require"
	Certificate    string
	Key            string
	ClientCA       string // empty: clients need no certificate
	Pos            Pos
	CertificatePos Pos
	KeyPos         Pos
	ClientCAPos    Pos
}

// Limits bounds what clients can ask of the server.
type Limits struct {
	Connections           int           // at the same time, over all addresses
	ConnectionsPerAddress int           // of one client address over TCP; 0: as many as Connections
	Handshake             time.Duration // from accept to the end of negotiation
	Idle                  time.Duration // a client that asks nothing for so long is disconnected; 0: never
	Drain                 time.Duration // after SIGTERM or a reload, for reads in flight; may be 0
}

// SameAs tells whether both exports serve the same bytes under the same terms, wherever they were written.
// A reload keeps the connections of an export that is the same in both configurations.
func (e Export) SameAs(o Export) bool {
	return e.Name == o.Name && e.SameFile(o) && e.Description == o.Description && e.RoundUp == o.RoundUp && e.TLS == o.TLS &&
		slices.Equal(e.Allow.Networks, o.Allow.Networks) && slices.Equal(e.Allow.UIDs, o.Allow.UIDs) &&
		slices.Equal(e.Allow.GIDs, o.Allow.GIDs) && slices.Equal(e.Allow.Names, o.Allow.Names)
}

// SameFile tells whether both name the same file of filesystems of the same name.
func (e Export) SameFile(o Export) bool {
	return e.Filesystem == o.Filesystem && e.Subvol == o.Subvol && e.SubvolID == o.SubvolID && e.Path == o.Path
}

// SameAs tells whether both filesystems name the same devices, in any order, and read them in the same way.
func (f Filesystem) SameAs(o Filesystem) bool {
	return f.Name == o.Name && sameDevices(f.Devices, o.Devices) && f.Degraded == o.Degraded &&
		f.DirectIO == o.DirectIO && f.Workers == o.Workers && f.Cache == o.Cache &&
		f.IOEngine == o.IOEngine && f.AllowMounted == o.AllowMounted && f.IgnoreLog == o.IgnoreLog && f.SlowRead == o.SlowRead &&
		f.Generation == o.Generation && f.BackupRoot == o.BackupRoot
}

// sameDevices compares two lists without regard to their order.
func sameDevices(a, b []Device) bool {
	if len(a) != len(b) {
		return false
	}
	more := make(map[string]int, len(a)) // in a than in b
	for i := range a {
		more[a[i].Path]++
		more[b[i].Path]--
	}
	for _, n := range more {
		if n != 0 {
			return false
		}
	}
	return true
}

// Load reads and checks the configuration file at path. Its errors are those of Parse, or one of the
// operating system (errors.Is finds fs.ErrNotExist and the like).
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open configuration %s: %w (name another with -c)", path, cause(err))
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration %s: %w (name a file with -c)", path, cause(err))
	}
	return Parse(path, data)
}

// cause drops the "open PATH:" that the operating system's errors begin with: we say it once.
func cause(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// Parse checks the text of a configuration; name stands for it in errors. Each error is an *Error; several
// are joined (errors.Join), one per line, in the order of their lines.
func Parse(name string, data []byte) (*Config, error) {
	root, err := parseYAML(name, data)
	if err != nil {
		return nil, err
	}
	d := &decoder{file: name}
	c := d.config(root)
	c.check(&d.errs)
	if err := d.errs.err(); err != nil {
		return nil, err
	}
	return c, nil
}

func defaultListen() Listen {
	return Listen{Network: "tcp", Address: "127.0.0.1:" + DefaultPort}
}

func defaultLimits() Limits {
	return Limits{Connections: DefaultConnections, Handshake: DefaultHandshake, Drain: DefaultDrain}
}

func defaultFilesystem() Filesystem {
	return Filesystem{DirectIO: true, Cache: DefaultCache, IOEngine: "auto", SlowRead: DefaultSlowRead}
}
